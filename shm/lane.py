"""Lanes: single-producer single-consumer rings of descriptors between trusted processes. Layout and rules are written in lane.h.

    mem = mmap.mmap(-1, size(1024)); make(mem, 7, 1024)
    Lane(mem, PRODUCER).put(pool, [descriptor(b, 60)])        # in one process
    Lane(mem, CONSUMER).take(pool, 64)                        # in the other, with its own Pool over the same words
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from . import _shm

PRODUCER: int = _shm.PR_PRODUCER
CONSUMER: int = _shm.PR_CONSUMER
CAPACITY_MAX: int = _shm.PR_LANE_MAX


def size(capacity: int) -> int:
    """Bytes of a lane of `capacity` slots. Raises ValueError unless it is a power of two up to CAPACITY_MAX."""
    return _shm.lane_size(capacity)


def make(mem: object, lane_id: int, capacity: int) -> None:
    """Make an empty lane in writable, 64-aligned memory that nobody uses yet. `lane_id` names it in owner words."""
    _shm.lane_format(mem, lane_id, capacity)


class Lane(_shm.Lane):
    """One end of the lane in `mem`, where that end's last holder left it; `side` is PRODUCER or CONSUMER.

    `put` and `take` move whole bursts with their owner words. The verbs below them, `reserve fill submit` and `peek slot release`,
    move descriptors alone. `cursors` is (head, tail); `broken` tells that the other's cursor made no sense and nothing moves any more.
    """

    def put(self, pool: _shm.Pool, descs: Iterable[int]) -> int:
        """Hand this process's buffers over; how many of the burst went, from its start."""
        return super().put(pool, descs if isinstance(descs, array) else array("Q", descs))

    def take(self, pool: _shm.Pool, n: int = 64) -> array[int]:
        """Take up to `n` buffers over; an array of as many descriptors as there were."""
        descs = array("Q", bytes(8 * n))
        del descs[super().take(pool, descs) :]
        return descs
