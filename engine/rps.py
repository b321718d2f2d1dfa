"""Receive packet steering: which CPU processes a frame. The four hashes of NetBSD's pktqueue, whose rules are in rps.h, and
the buckets of FreeBSD, which keep most flows where they are when the number of CPUs changes.
"""

from __future__ import annotations

from pktring.shm.errors import Error

from . import _engine

ROUTINES: tuple[str, ...] = _engine.RPS_ROUTINES
DEFAULT = "curcpu"  # the one that means something for every protocol
BUCKET_BITS_MAX = 7


def rps_hash(name: str, frame: bytes, ncpu: int, curcpu: int) -> int:
    """Hash a frame as a pktqueue with `ncpu` CPUs does on CPU `curcpu`; the frame goes to CPU hash % ncpu.

    `name`: zero, curcpu (both say a CPU), toeplitz (32 bits of hash) or toeplitz-othercpus (a CPU, never `curcpu` if there
    are two or more). Raises E_RPS.
    """
    if not 0 <= curcpu < ncpu < 2**32:
        raise Error("E_RPS", f"CPU {curcpu} of {ncpu}: count CPUs from 0, and have one at least")
    return _engine.rps_hash(routine(name), frame, ncpu, curcpu)


def routine(name: str) -> int:
    """Find the number of a routine, the word that pr_rps_hash takes. Raises E_RPS (the BSDs say ENOENT)."""
    if name not in ROUTINES:
        raise Error("E_RPS", f"no hash {name!r}: one of {', '.join(ROUTINES)}")
    return ROUTINES.index(name)


def buckets(ncpu: int) -> list[int]:
    """Deal buckets to CPUs in turn, two or more to each up to 64 of them: hash & (len - 1) is the number of a flow's bucket.

    FreeBSD's table (sys/net/rss_config.c): a power of two, 128 at most.
    """
    bits = min((ncpu - 1).bit_length() + 1, BUCKET_BITS_MAX)
    return [bucket % ncpu for bucket in range(1 << bits)]
