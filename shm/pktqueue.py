"""pktqueue(9): per-CPU input queues that many processes fill and one process a CPU empties. Layout and rules are in pktqueue.h.

    queue = PktQueue(256, handler, ncpu=2)      # then fork: the queues, their buffers and doorbells are shared by all children
    queue.enqueue(frame, hash)                  # any process; False = full, the frame is still yours
    queue.serve(cpu=1, timeout_s=1.0)           # the process that is CPU 1: handler(queue), which dequeues until None
"""

from __future__ import annotations

import math
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from . import _shm
from .doorbell import MAX_S, SPINS, Doorbell
from .errors import Error
from .holders import Holding, alive, pid_of
from .pool import Pool, descriptor, indexes, parts

MAXLEN_MAX: int = _shm.PR_PKTQ_MAX
SPARE = 64  # buffers of a process beyond what its queues hold: a burst in its hands

Frame = bytes | bytearray | memoryview
Handler = Callable[["PktQueue"], object]


class PktQueue:
    """Queues of at most `maxlen` frames, one for each of `ncpu` CPUs (default: those this process may run on).

    `handler(queue)` is called by `serve`. Frames are copied into buffers of up to `frame_size` bytes; at most `producers` processes
    may hold the queue at a time, a dead one's place is taken over. `ceiling` bounds what set_maxlen may ask for later. It all lies
    in memory shared with the children forked after this. Raises E_MAXLEN, E_SHM_SPACE.
    """

    def __init__(
        self,
        maxlen: int,
        handler: Handler | None = None,
        *,
        ncpu: int | None = None,
        producers: int = 8,
        ceiling: int = MAXLEN_MAX,
        frame_size: int = 2048,
    ):
        ncpu = len(os.sched_getaffinity(0)) if ncpu is None else ncpu
        if not 1 <= maxlen <= ceiling <= MAXLEN_MAX:
            raise Error("E_MAXLEN", f"maxlen {maxlen} is not in 1..{min(ceiling, MAXLEN_MAX)}")
        self.handler = handler
        self.frame_size = frame_size
        home_size = ceiling * ncpu + SPARE
        n_bufs = _shm.PR_FIRST_BUF + producers * home_size
        words_at = _page(_shm.pktqueue_size(ncpu, producers, ceiling, SPARE))
        self._bufs_at = words_at + _page(8 * n_bufs)
        self._mem = memoryview(_anonymous(self._bufs_at + n_bufs * frame_size))
        _shm.pktqueue_format(self._mem[:words_at], ncpu, producers, ceiling, SPARE, maxlen, 0, 1)
        self._queues = _shm.Queues(self._mem[:words_at])
        self.bells = [Doorbell(word) for word in _need_words(self._mem, ncpu)]
        self._hold = Holding(self._queues, self._mem[words_at : self._bufs_at], home_size, [bell.fd for bell in self.bells])

    # ---- enqueue ----

    def enqueue(self, frame: Frame | int, hash: int) -> bool:
        """Queue a frame, or a descriptor of a buffer of `pool`, for CPU `hash % ncpu`; False when that queue is full.

        Bytes are copied. A descriptor's buffer is the queue's on True and still the caller's on False. Raises E_FRAME_SIZE, E_BUF_OWNER,
        E_PRODUCERS (too many processes hold the queue).
        """
        member = self._hold.member()
        if isinstance(frame, int):
            if not member.pool.owns(frame & 0xFFFFFFFF):
                raise Error("E_BUF_OWNER", f"idx={frame & 0xFFFFFFFF}: enqueue only buffers that this process took from pool")
            return member.producer.put_one(member.pool, hash & 0xFFFFFFFF, frame)
        desc = self._copy_in(member.pool, frame)
        if member.producer.put_one(member.pool, hash & 0xFFFFFFFF, desc):
            return True
        if desc:
            member.pool.give(indexes([desc]))
        return False

    def _copy_in(self, pool: Pool, frame: Frame) -> int:
        if len(frame) > self.frame_size:
            raise Error("E_FRAME_SIZE", f"frame of {len(frame)} bytes, buffers of {self.frame_size}: make the queue with larger ones")
        bufs = pool.take(1)
        if not bufs:
            return 0  # all of them are in consumers' hands. Buffer 0 is nobody's: the put counts a drop
        at = self._bufs_at + bufs[0] * self.frame_size
        self._mem[at : at + len(frame)] = frame
        return descriptor(bufs[0], len(frame))

    @property
    def pool(self) -> Pool:
        """The buffers of this process: take some, fill them through `buffer`, enqueue their descriptors."""
        return self._hold.member().pool

    def buffer(self, desc: int) -> memoryview:
        """The bytes that a descriptor names; valid while this process owns the buffer."""
        index, length, _ = parts(desc)
        if not self.pool.owns(index):
            raise Error("E_BUF_OWNER", f"idx={index}: not in the hands of this process")
        at = self._bufs_at + index * self.frame_size
        return self._mem[at : at + length]

    def give(self, descs: Iterable[int]) -> int:
        """Send the buffers of descriptors home; how many were this process's to give."""
        return self.pool.give(indexes(list(descs)))

    # ---- dequeue ----

    def dequeue(self, *, raw: bool = False) -> bytes | int | None:
        """Take the next frame from the queue of this process's CPU; None when it is empty.

        `raw` gives the descriptor, whose buffer is then this process's: read it with `buffer`, return it with `give`. A process that
        was not bound to a CPU empties every queue that nobody else serves. Raises E_QUEUE_BUSY when others serve all of them.
        """
        pool = self._hold.member().pool
        for consumer in self._hold.current():
            desc = consumer.take_one(pool)
            if desc is not None:
                return desc if raw else self._copy_out(pool, desc)
        return None

    def _copy_out(self, pool: Pool, desc: int) -> bytes:
        index, length, _ = parts(desc)
        at = self._bufs_at + index * self.frame_size
        frame = bytes(self._mem[at : at + length])
        pool.give(array("I", [index]))
        return frame

    def bind(self, cpu: int) -> None:
        """Make this process CPU `cpu`: dequeue takes from that queue only, and no other process may. Raises E_QUEUE_BUSY."""
        self._hold.consumer(cpu)
        self._hold.cpu = cpu

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until something is queued for the CPU this process is bound to (or the only one); False after `timeout_s`."""
        cpu = self._this_cpu()
        consumer = self._hold.consumer(cpu)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = MAX_S if deadline is None else min(MAX_S, max(0.0, deadline - time.monotonic()))
            if consumer.wait(self.bells[cpu].fd, SPINS, math.ceil(left * 1000)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def serve(self, cpu: int | None = None, timeout_s: float | None = None) -> bool:
        """Be CPU `cpu`: wait until something is queued, call `handler(queue)` once. False when nothing came in `timeout_s`."""
        if cpu is not None:
            self.bind(cpu)
        if not self.wait(timeout_s):
            return False
        self._handle(self._this_cpu())
        return True

    def _this_cpu(self) -> int:
        self._hold.member()
        if self._hold.cpu is None and self._queues.ncpu > 1:
            raise Error("E_UNBOUND", f"{self._queues.ncpu} CPUs: bind(cpu) says which one this process is")
        return self._hold.cpu or 0

    def _handle(self, cpu: int) -> None:
        """Call the handler as that CPU."""
        if self.handler is None:
            raise Error("E_HANDLER", "the queue was made without a handler: dequeue by hand")
        before, self._hold.cpu = self._hold.cpu, cpu
        try:
            self.handler(self)
        finally:
            self._hold.cpu = before

    # ---- barrier, flush, resize ----

    def barrier(self, timeout_s: float = 1.0) -> None:
        """Return when every frame enqueued before this call has been dequeued (not: processed). Producers go on meanwhile.

        Queues that this process serves, or nobody, are emptied by calling the handler here. Raises E_CONSUMER_GONE when the process
        that should dequeue is dead or missing, E_BARRIER_TIMEOUT.
        """
        self._hold.member()
        heads = self._queues.heads()
        deadline = time.monotonic() + timeout_s
        for cpu in range(self._queues.ncpu):
            for _ in self._until(partial(self._queues.passed, cpu, heads), cpu, deadline, "E_BARRIER_TIMEOUT"):
                if self._hold.mine(cpu):
                    self._handle(cpu)
                elif self.handler and not self._queues.holder(cpu):
                    with self._hold.lent(cpu):
                        self._handle(cpu)
                else:
                    self._expect_alive(cpu)

    def flush(self, timeout_s: float = 1.0) -> None:
        """Empty all queues; what was in them counts as dequeued and its buffers go home.

        The process that serves a CPU does it when it next dequeues or waits, here it is only asked; a CPU that nobody serves is flushed
        by this process. Raises E_FLUSH_TIMEOUT.
        """
        pool = self._hold.member().pool
        deadline = time.monotonic() + timeout_s
        for cpu in range(self._queues.ncpu):
            if mine := self._hold.mine(cpu):
                mine.flush(pool)
            elif not alive(self._queues.holder(cpu)):
                with self._hold.lent(cpu) as consumer:
                    consumer.flush(pool)
            else:
                ticket = self._queues.ask_flush(cpu)
                for _ in self._until(partial(self._queues.flush_done, cpu, ticket), cpu, deadline, "E_FLUSH_TIMEOUT"):
                    self._expect_alive(cpu)

    def set_maxlen(self, maxlen: int) -> None:
        """Change how many frames each CPU's queue may hold. Nothing moves: no frame is lost, reordered or delayed.

        After shrinking, a longer queue takes nothing until it has been emptied below the new limit. Raises E_MAXLEN.
        """
        if not 1 <= maxlen <= self._queues.ceiling:
            raise Error("E_MAXLEN", f"maxlen {maxlen} is not in 1..{self._queues.ceiling}")
        self._queues.limit = maxlen
        for bell in self.bells:
            bell.ring()

    def _until(self, done: Callable[[], bool], cpu: int, deadline: float, code: str) -> Iterator[None]:
        """Yield until `done()`, waking the CPU's consumer; raise `code` at the deadline."""
        nap = 0.0001
        while not done():
            if time.monotonic() > deadline:
                pid = pid_of(self._queues.holder(cpu))
                raise Error(code, f"CPU {cpu} (pid {pid}) has {self._queues.depth(cpu)} queued and does not dequeue")
            self.bells[cpu].ring()
            yield
            if not done():
                time.sleep(nap)
                nap = min(nap * 2, 0.005)

    def _expect_alive(self, cpu: int) -> None:
        holder = self._queues.holder(cpu)
        if not alive(holder):
            raise Error("E_CONSUMER_GONE", f"nobody dequeues for CPU {cpu} (last pid {pid_of(holder)}): bind a process to it")

    # ---- facts ----

    @property
    def maxlen(self) -> int:
        return self._queues.limit

    @property
    def ncpu(self) -> int:
        return self._queues.ncpu

    def stats(self) -> dict:
        """The counters, exact at rest, over all processes; `cpus` has them for each CPU.

        `enqueue dequeue drop` as pktqueue(9)'s; `len` = what is queued, never below 0; `over` = admitted past maxlen by producers that
        looked at the same moment; `lost` = frames that a killed consumer had begun to take; `crashed` = buffers found in dead hands.
        """
        cpus = [self._cpu_stats(cpu) for cpu in range(self._queues.ncpu)]
        total = {key: sum(c[key] for c in cpus) for key in cpus[0]}
        return total | {"crashed": self._queues.crashed, "maxlen": self.maxlen, "drops": total["drop"], "cpus": cpus}

    def _cpu_stats(self, cpu: int) -> dict[str, int]:
        cells = [self._queues.cell(cpu, row) for row in range(self._queues.rows)]
        sums = dict(zip(("enqueue", "drop", "over", "dequeue", "lost"), map(sum, zip(*cells, strict=True)), strict=True))
        return sums | {"len": max(0, sums["enqueue"] - sums["dequeue"] - sums["lost"])}

    # ---- end ----

    def close(self, force: bool = False) -> None:
        """Let go of this process's CPUs and row. Raises E_BUSY unless the queues are empty or `force`d (pktq_destroy)."""
        left = sum(self._queues.depth(cpu) for cpu in range(self._queues.ncpu))
        if left and not force:
            raise Error("E_BUSY", f"{left} frames are queued: flush() first, or close(force=True)")
        self._hold.close()

    def __enter__(self) -> PktQueue:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(force=True)


def ifdetach(queues: Iterable[PktQueue], timeout_s: float = 1.0) -> None:
    """A barrier on every queue: after it no queued frame still names an interface that is going away (pktq_ifdetach)."""
    for queue in queues:
        queue.barrier(timeout_s)


def _anonymous(size: int) -> mmap.mmap:
    """Zeroed memory shared with children, taken from the system only where it is touched."""
    fd = os.memfd_create("pktqueue", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    except (OSError, OverflowError) as why:
        raise Error("E_SHM_SPACE", f"need {size} bytes of address space ({why}): lower ceiling, producers or frame_size") from None
    finally:
        os.close(fd)


def _need_words(mem: memoryview, ncpu: int) -> list[memoryview]:
    """The doorbell word of each CPU."""
    (offset, size), (_, header), (_, cell) = (_shm.LANE_LAYOUT[f] for f in ("pr_pktq_cpu.need", "pr_pktqueue", "pr_pktq_cpu"))
    return [mem[at : at + size] for at in (header + cpu * cell + offset for cpu in range(ncpu))]


def _page(n: int) -> int:
    return -(-n // mmap.PAGESIZE) * mmap.PAGESIZE
