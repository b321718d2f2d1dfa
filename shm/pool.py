"""Buffers and who owns them: one process's hold on the ledger. States, homes and legal changes are written in pool.h."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from . import _shm

RESERVED, FREE, OWNED, INFLIGHT, LENT, KERNEL = STATES = range(6)
STATE_NAMES = ("reserved", "free", "owned", "inflight", "lent", "kernel")
assert tuple(STATES) == (_shm.PR_RESERVED, _shm.PR_FREE, _shm.PR_OWNED, _shm.PR_INFLIGHT, _shm.PR_LENT, _shm.PR_KERNEL)


class Pool(_shm.Pool):
    """The buffers of process `owner` (from 1 on) in a region's ledger, or in 8-byte words of any shared memory.

    `words` is a `_shm.View` or a writable buffer; `gen` tells this process from a dead one of the same number; each process's home
    is `home_size` buffers (default: all of them are process 1's). From C come `owns hand_over accept lend unlend to_kernel
    from_kernel` (each says whether the word allowed it), `reclaim_process reclaim_app reclaim_socket`, `word`, `rebuild`,
    and `n home home_end free refused`.
    """

    def __init__(self, words: object, owner: int, gen: int = 0, home_size: int = 0):
        super().__init__(words, owner, gen, home_size)
        self.owner = owner

    def format(self) -> None:
        """Make the buffers of this home free that were never dealt before."""
        self.deal()

    def take(self, n: int) -> array[int]:
        """Take up to `n` free buffers; an array of as many indexes as there were."""
        bufs = array("I", bytes(4 * n))
        del bufs[super().take(bufs) :]
        return bufs

    def give(self, bufs: Iterable[int]) -> int:
        """Send buffers home; how many were this process's to give. The others are left alone and counted in `refused`."""
        return super().give(bufs if isinstance(bufs, array) else array("I", bufs))

    def count(self) -> dict[str, int]:
        """Buffers in each state; they add up to `n` at any moment of rest. `broken` is a state that does not exist."""
        return dict(zip((*STATE_NAMES, "broken"), super().count(), strict=True))


def descriptor(index: int, length: int, flags: int = 0) -> int:
    """The u64 that lanes and queues carry: buffer index, length, flags (lane.h)."""
    return index | length << 32 | flags << 48


def parts(desc: int) -> tuple[int, int, int]:
    """The buffer index, length and flags of a descriptor."""
    return desc & 0xFFFFFFFF, desc >> 32 & 0xFFFF, desc >> 48


def indexes(descs: Sequence[int]) -> array[int]:
    """The buffer indexes of descriptors, to be given back."""
    return array("I", (d & 0xFFFFFFFF for d in descs))
