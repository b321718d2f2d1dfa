"""A region without a name, for one app that is not trusted: its memory is a memfd that nobody can cut short, its books are the engine's.

    mem        the app's: rings and buffers in the layout of any region; sealed SHRINK | GROW | SEAL, so that no access of the
               engine's can end in SIGBUS. Holes punched into it read as zeros. Reaches the app as a descriptor.
    ledger     where the rings really stand; never given to the app
    counters   unused, but a region has them
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from . import _shm
from .errors import Error
from .region import Region
from .segment import Segment, start_time

NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL, since Linux 6.3
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
KINDS = {"mem": _shm.PR_MEM, "ledger": _shm.PR_LEDGER, "counters": _shm.PR_COUNTERS}


def create(label: str, *, rings: int, slots: int, stride: int) -> tuple[Region, list[int]]:
    """Make one with room for `rings` rings of `slots` slots. -> (region, its descriptors: mem, ledger, counters), the caller's to close.

    Raises E_SHM_SPACE, E_REGION.
    """
    shape = (4, rings, slots, rings * slots + _shm.FIRST_BUF, stride)
    try:
        geometry = _shm.carve(*shape)
    except (ValueError, OverflowError) as why:
        raise Error("E_REGION", f"{why}: give fewer or shorter rings") from None
    sizes = {"mem": geometry["size"], "ledger": geometry["ledger_size"], "counters": geometry["counters_size"]}
    fds: list[int] = []
    try:
        maps = {part: _memory(f"pktring.{label}.{part}", size, fds) for part, size in sizes.items()}
    except OSError as why:
        _close(fds)
        raise Error("E_SHM_SPACE", f"{sum(sizes.values())} bytes for {label}: {why.strerror}: give fewer or shorter rings") from None
    generation, pid = time.time_ns(), os.getpid()
    for part, memory in maps.items():
        _shm.header_write(memory, KINDS[part], *shape, generation, pid, start_time(pid), label[-47:], 0, 1)
        _shm.header_state(memory, _shm.PR_READY)
    fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, SEALS)
    return join(label, fds), fds


def join(label: str, fds: list[int]) -> Region:
    """Map one by its descriptors: what the app wrote into its header is checked, and copied once. Raises E_REGION."""
    segments = {}
    for part, fd in zip(KINDS, fds, strict=True):
        memory = mmap.mmap(fd, os.fstat(fd).st_size)
        segments[part] = Segment(label, part, memory, os.dup(fd), _shm.header_read(memory), False)
    try:
        return Region(label, segments)
    except ValueError as why:
        raise Error("E_REGION", f"{label}: {why}") from None


def _memory(name: str, size: int, fds: list[int]) -> mmap.mmap:
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | NOEXEC_SEAL)
    except OSError:  # an older kernel
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fds.append(fd)
    os.posix_fallocate(fd, 0, size)
    return mmap.mmap(fd, size)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
