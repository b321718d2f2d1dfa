"""Doorbells: an eventfd and a word in shared memory, so that a sleeper is woken and nobody else is. The protocol is in doorbell.h."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from . import _shm

MAX_S: float = _shm.PR_DOORBELL_MAX_MS / 1000
SPINS = 200  # looks before sleeping: some 10 us, half of what a sleep and a wake-up across CPUs cost


class Doorbell:
    """`word` is 4 bytes of shared memory, written by the one process that waits; `fd` an eventfd, made here when there is none yet.

    The eventfd reaches other processes by fork or by SCM_RIGHTS. `fileno()` makes it work with select, poll and asyncio.
    """

    def __init__(self, word: memoryview, fd: int | None = None):
        self.word = word
        self._made = fd is None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd

    def fileno(self) -> int:
        return self.fd

    def ring(self) -> None:
        """Wake the consumer, whether it sleeps or not: after a death, a resize, a request."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass  # rung 2^64 - 2 times and nobody came

    def kick(self) -> None:
        """Wake the consumer if it sleeps; call this after publishing."""
        if _shm.doorbell_needed(self.word):
            self.ring()

    def wait(self, ready: Callable[[], object], timeout_s: float | None = None, spins: int = SPINS) -> bool:
        """Look, then sleep until `ready()` is true; False when `timeout_s` has passed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in range(spins):
            if ready():
                return True
        while not ready():
            left = MAX_S if deadline is None else min(MAX_S, deadline - time.monotonic())
            if left <= 0:
                return False
            self._sleep(ready, left)
        return True

    def _sleep(self, ready: Callable[[], object], timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        _shm.doorbell_arm(self.word)
        try:
            if not ready() and poll.poll(timeout_s * 1000):
                os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # another holder of the eventfd read it first
        finally:
            _shm.doorbell_disarm(self.word)

    def close(self) -> None:
        if self._made and self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    __del__ = close
