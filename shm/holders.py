"""Who holds a row or a CPU of a pktqueue: claims by live processes, and the succession of dead ones. The words are drawn in pktqueue.h."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import _shm
from .errors import Error
from .pool import Pool

PID_BITS = 22  # pid_max is at most 2^22 (proc(5)); the rest of a holder word is the start time


@dataclass
class Member:
    """What a process needs to enqueue: a row of its own, and the buffers of that row's home."""

    row: int
    pool: Pool
    producer: _shm.Producer


class Holding:
    """What this process holds; a child begins with nothing after fork. `words` is the ledger, `fds` the eventfds of the CPUs."""

    def __init__(self, queues: _shm.Queues, words: memoryview, home_size: int, fds: list[int]):
        self.queues = queues
        self._words, self._home_size, self._fds = words, home_size, fds
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._me = holder(self._pid)
        self._member: Member | None = None
        self._consumers: dict[int, _shm.Consumer] = {}
        self.cpu: int | None = None  # the CPU that this process is bound to
        self._turn = 0

    def member(self) -> Member:
        """This process's row, claimed at the first use. Raises E_PRODUCERS."""
        if os.getpid() != self._pid:
            self._forget()
        if self._member is None:
            row, was = self._claim_row()
            pool = Pool(self._words, self.queues.first_owner + row, self.queues.next_gen(row), self._home_size)
            if was:
                self.queues.bury(pool, row)
            pool.format()
            self._member = Member(row, pool, _shm.Producer(self.queues, row, self._fds))
        return self._member

    def consumer(self, cpu: int) -> _shm.Consumer:
        """The consuming end of a CPU, claimed at the first use. Raises E_QUEUE_BUSY."""
        pool = self.member().pool
        if cpu not in self._consumers:
            was = self.queues.holder(cpu)
            if alive(was) or not self.queues.claim(cpu, was, self._me):
                raise Error("E_QUEUE_BUSY", f"CPU {cpu} is served by pid {pid_of(self.queues.holder(cpu))}: bind to another")
            if was:
                self._bury_all(pool)
            self._consumers[cpu] = _shm.Consumer(self.queues, cpu)
        return self._consumers[cpu]

    def mine(self, cpu: int) -> _shm.Consumer | None:
        """The consuming end of a CPU if this process holds it already."""
        return self._consumers.get(cpu) if os.getpid() == self._pid else None

    @contextmanager
    def lent(self, cpu: int) -> Iterator[_shm.Consumer]:
        """Hold a CPU that nobody serves, for the moment."""
        try:
            yield self.consumer(cpu)
        finally:
            self._release(cpu)

    def current(self) -> Iterator[_shm.Consumer]:
        """The ends to dequeue from: the bound CPU's, else those of all CPUs that others do not serve, in turn. Raises E_QUEUE_BUSY."""
        self.member()
        if self.cpu is not None:
            yield self.consumer(self.cpu)
            return
        busy = None
        for _ in range(self.queues.ncpu):
            cpu, self._turn = self._turn, (self._turn + 1) % self.queues.ncpu
            try:
                consumer = self.consumer(cpu)
            except Error as why:
                busy = why
            else:
                yield consumer
        if busy and not self._consumers:
            raise busy

    def close(self) -> None:
        """Let go of everything."""
        if os.getpid() != self._pid:
            self._forget()
        for cpu in list(self._consumers):
            self._release(cpu)
        if self._member:
            self.queues.claim(self.queues.ncpu + self._member.row, self._me, 0)
            self._member = None

    def _release(self, cpu: int) -> None:
        if self._consumers.pop(cpu, None):
            self.queues.claim(cpu, self._me, 0)

    def _claim_row(self) -> tuple[int, int]:
        """(row, the dead process that held it, 0 = none); free rows come first."""
        for want_dead in (False, True):
            for row in range(self.queues.rows):
                was = self.queues.holder(self.queues.ncpu + row)
                if bool(was) == want_dead and not alive(was) and self.queues.claim(self.queues.ncpu + row, was, self._me):
                    return row, was
        raise Error("E_PRODUCERS", f"all {self.queues.rows} places are held by living processes: make the queue with more producers")

    def _bury_all(self, pool: Pool) -> None:
        """Send home what dead processes held, and free their rows."""
        for row in range(self.queues.rows):
            was = self.queues.holder(self.queues.ncpu + row)
            if was and not alive(was) and self.queues.claim(self.queues.ncpu + row, was, self._me):
                self.queues.bury(pool, row)
                self.queues.claim(self.queues.ncpu + row, self._me, 0)


def holder(pid: int) -> int:
    """A process in one word: pids come back, a pid and a start time do not."""
    return _stat(pid)[1] << PID_BITS | pid


def pid_of(word: int) -> int:
    return word & ((1 << PID_BITS) - 1)


def alive(word: int) -> bool:
    """Does that process still run? A zombie does not: it has stored its last word."""
    state, start = _stat(pid_of(word)) if word else ("", 0)
    return state not in ("", "Z", "X") and start == word >> PID_BITS


def _stat(pid: int) -> tuple[str, int]:
    """State and start time (clock ticks since boot) of a process, proc(5); ("", 0) when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return "", 0
    return fields[0].decode(), int(fields[19])
