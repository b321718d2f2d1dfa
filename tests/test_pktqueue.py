"""pktqueue(9): the C core against the plain model, then every P- row of the list of its behaviours that applies here, by id.

Rows without a test, and why:
P-C1 softint allocation: there is none, `serve` takes its place. P-C7 the global list of queues: whoever has queues has the list.
P-E5 preemption off: nothing here is reserved before it is published. P-E6 the rump kernel ignores the hash; this one does not.
P-M1, P-M2 compare-and-swap of the index word: lanes have none; P-M4 weak memory orders: test_lane.py (ThreadSanitizer), test_spin.py.
P-H1..11 and P-S2 (RPS hashes, their selector) belong to the engine; P-S1 and P-S3 here by `stats`, the sysctl nodes there.
"""

import ctypes
import mmap
import os
import signal
import struct
import subprocess
import threading
import time
import traceback
from array import array
from contextlib import contextmanager
from pathlib import Path

import ckernel
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model.pktqueue import Queues as Model
from model.pool import FIRST, Ledger

import pktring
from pktring.shm import _shm
from pktring.shm.pktqueue import MAXLEN_MAX, PktQueue, ifdetach
from pktring.shm.pool import Pool, descriptor, indexes

HOME = 8


class PktQueueMachine(RuleBasedStateMachine):
    """Rows enqueue for CPUs, CPUs dequeue, flush, die and are replaced; after every step counters, cursors and words agree."""

    @initialize(ncpu=st.integers(1, 3), rows=st.integers(1, 3), limit=st.integers(1, 4), ceiling=st.sampled_from([4, 7]))
    def make(self, ncpu, rows, limit, ceiling):
        n = FIRST + rows * HOME
        mem = mmap.mmap(-1, _shm.pktqueue_size(ncpu, rows, ceiling, 1))
        _shm.pktqueue_format(mem, ncpu, rows, ceiling, 1, limit, 0, 1)
        self.queues = _shm.Queues(mem)
        self.words = bytearray(8 * n)
        self.ledger = Ledger(n, HOME)
        self.model = Model(self.ledger, ncpu, rows, ceiling, self.queues.capacity, limit)
        self.gen = [0] * (rows + 1)
        self.pools = [None] + [Pool(self.words, owner, 0, HOME) for owner in range(1, rows + 1)]
        for owner in range(1, rows + 1):
            self.pools[owner].format()
            self.ledger.deal((owner, 0))
        self.producers = [_shm.Producer(self.queues, row, [-1] * ncpu) for row in range(rows)]
        self.consumers = [_shm.Consumer(self.queues, cpu) for cpu in range(ncpu)]
        self.ncpu, self.rows, self.serial = ncpu, rows, 0

    def me(self, owner):
        return owner, self.gen[owner]

    @rule(row=st.integers(0, 2), cpu=st.integers(0, 2), n=st.integers(0, 5))
    def put(self, row, cpu, n):
        row, cpu, owner = row % self.rows, cpu % self.ncpu, row % self.rows + 1
        bufs = list(self.pools[owner].take(n))
        assert self.ledger.took(self.me(owner), bufs, n)
        self.serial += 1
        descs = [descriptor(b, self.serial % 2**16, i) for i, b in enumerate(bufs)]
        done = self.producers[row].put(self.pools[owner], cpu, array("Q", descs))
        assert done == self.model.put(self.me(owner), row, cpu, descs)
        for b in indexes(descs[done:]):
            assert self.pools[owner].give([b]) == self.ledger.give(self.me(owner), b) == 1

    @rule(owner=st.integers(0, 2), cpu=st.integers(0, 2), n=st.integers(0, 5))
    def take(self, owner, cpu, n):
        owner, cpu = owner % self.rows + 1, cpu % self.ncpu
        out = array("Q", [0] * n)
        got = list(out[: self.consumers[cpu].take(self.pools[owner], out)])
        assert got == self.model.take(self.me(owner), cpu, n)
        for b in indexes(got):
            assert self.pools[owner].give([b]) == self.ledger.give(self.me(owner), b) == 1

    @rule(owner=st.integers(0, 2), cpu=st.integers(0, 2), asked=st.booleans())
    def flush(self, owner, cpu, asked):
        owner, cpu = owner % self.rows + 1, cpu % self.ncpu
        if asked:
            ticket = self.queues.ask_flush(cpu)
            assert not self.queues.flush_done(cpu, ticket) and self.consumers[cpu].ready()
            assert self.consumers[cpu].take(self.pools[owner], array("Q")) == 0
            assert self.queues.flush_done(cpu, ticket)
        else:
            self.consumers[cpu].flush(self.pools[owner])
        self.model.flush(self.me(owner), cpu)

    @rule(limit=st.integers(0, 9))
    def set_limit(self, limit):
        if 1 <= limit <= self.model.ceiling:
            self.model.limit = self.queues.limit = limit
        else:
            with pytest.raises(ValueError, match=f"limit {limit} is not in"):
                self.queues.limit = limit

    @rule(row=st.integers(0, 2), n=st.integers(0, 3), cpu=st.integers(0, 2))
    def kill_halfway_through_a_put(self, row, n, cpu):
        row, cpu, owner = row % self.rows, cpu % self.ncpu, row % self.rows + 1
        bufs = list(self.pools[owner].take(n))
        assert self.ledger.took(self.me(owner), bufs, n)
        lane = self.model.lanes[cpu][row]
        for i, b in enumerate(bufs[: lane.capacity - len(lane.queued)]):
            assert self.pools[owner].hand_over(b, lane.id, lane.head + i)
        lane.put_killed(self.me(owner), bufs, n)
        self.gen[owner] += 1
        self.pools[owner] = Pool(self.words, owner, self.gen[owner], HOME)
        assert self.queues.bury(self.pools[owner], row) == self.model.bury(self.me(owner), row)
        self.producers[row] = _shm.Producer(self.queues, row, [-1] * self.ncpu)

    @rule(cpu=st.integers(0, 2))
    def replace_the_consumer(self, cpu):
        cpu %= self.ncpu
        self.consumers[cpu] = _shm.Consumer(self.queues, cpu)
        self.model.turn[cpu] = 0

    @invariant()
    def they_agree(self):
        for cpu in range(self.ncpu):
            assert self.queues.depth(cpu) == self.model.depth(cpu)
            assert [self.queues.cell(cpu, row) for row in range(self.rows)] == [tuple(cell.values()) for cell in self.model.cells[cpu]]
        assert [self.pools[1].word(b) for b in range(len(self.ledger.words))] == self.ledger.words


TestPktQueue = PktQueueMachine.TestCase
TestPktQueue.settings = settings(max_examples=800, stateful_step_count=20, deadline=None)



# ---- rows ----

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@contextmanager
def child(work, *args):
    """Run `work` in a process of its own, which ends with the block at the latest. Yields its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.alarm(30)
            if os.getppid() == parent:
                work(*args)
                status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.0005)


def succeeds(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def drain(queue):
    return list(iter(queue.dequeue, None))


def small(maxlen=4, handler=None, *, ncpu=1, **more):
    return PktQueue(maxlen, handler, ncpu=ncpu, **{"ceiling": 1024, **more})


def fill(queue, n, hash=0):
    return [queue.enqueue(b"%d" % i, hash) for i in range(n)]


def code(error):
    return error.value.code


def serve_for_ever(queue, cpu=0):
    while True:
        queue.serve(cpu)


def test_P_C2_maxlen_is_1_to_65535():
    for wrong in (0, MAXLEN_MAX + 1, -1):
        with pytest.raises(pktring.Error) as why:
            PktQueue(wrong, ncpu=1)
        assert code(why) == "E_MAXLEN" and str(wrong) in str(why.value)
    assert PktQueue(1, ncpu=1).maxlen == 1 and PktQueue(MAXLEN_MAX, ncpu=1).maxlen == MAXLEN_MAX == 65535


def test_P_C3_the_queues_of_all_cpus_together_hold_maxlen_times_ncpu():
    queue = small(3, ncpu=2)
    assert sum(fill(queue, 5, hash=0) + fill(queue, 5, hash=1)) == 6


@pytest.mark.parametrize("maxlen", [1, 2, 3, 4, 255, 256, 257, 1024])
def test_P_C4_a_queue_holds_exactly_maxlen(maxlen):
    queue = small(maxlen)
    assert fill(queue, maxlen + 1) == [True] * maxlen + [False]
    assert drain(queue) == [b"%d" % i for i in range(maxlen)]


def test_P_C4_the_largest_queue_holds_exactly_maxlen():
    queue = PktQueue(MAXLEN_MAX, ncpu=1, frame_size=64)
    frame = bytes(60)
    assert sum(queue.enqueue(frame, 0) for _ in range(MAXLEN_MAX + 2)) == MAXLEN_MAX


def test_P_C5_a_queue_is_closed_when_empty_or_by_force():
    queue = small()
    fill(queue, 1)
    with pytest.raises(pktring.Error) as why:
        queue.close()
    assert code(why) == "E_BUSY"
    queue.close(force=True)
    assert drain(queue) == [b"0"]
    queue.close()


def test_P_C6_words_of_different_writers_lie_on_different_cache_lines():
    at = {name: offset // 64 for name, (offset, _) in _shm.LANE_LAYOUT.items()}
    assert at["pr_pktqueue.ncpu"] != at["pr_pktqueue.limit"]
    assert at["pr_pktq_cpu.need"] == at["pr_pktq_cpu.flushed"] != at["pr_pktq_cpu.holder"] == at["pr_pktq_cpu.flush_asked"]
    sizes = [size for name, (_, size) in _shm.LANE_LAYOUT.items() if "." not in name]
    assert len(sizes) == 4 and all(size % 64 == 0 for size in sizes)


def test_P_E1_the_cpu_is_hash_modulo_ncpu_and_it_is_woken():
    queue = small(ncpu=3)
    for hash in (0, 1, 2, 3, 0xFFFFFFFF):
        queue.enqueue(b"x", hash)
    assert [cpu["len"] for cpu in queue.stats()["cpus"]] == [3, 1, 1]
    got = []
    queue = small(handler=lambda q: got.extend(drain(q)), ncpu=2)
    with child(lambda: (time.sleep(0.2), queue.enqueue(b"up", 1))):
        assert queue.serve(1, timeout_s=5) and got == [b"up"]


def asleep(queue, cpu=0):
    """As if that CPU's consumer slept. Whether its bell is rung later tells `rung`."""
    _shm.doorbell_arm(queue.bells[cpu].word)


def rung(queue, cpu=0):
    try:
        return os.eventfd_read(queue.bells[cpu].fd) > 0
    except BlockingIOError:
        return False


def test_P_E2_a_full_queue_refuses_counts_and_wakes_nobody():
    queue = small(1)
    asleep(queue)
    assert queue.enqueue(b"a", 0) and rung(queue)
    (b,) = queue.pool.take(1)
    desc = descriptor(b, 1)
    queue.buffer(desc)[:] = b"b"
    assert not queue.enqueue(desc, 0) and not rung(queue)
    assert queue.buffer(desc) == b"b" and queue.give([desc]) == 1
    assert (queue.stats()["enqueue"], queue.stats()["drop"], queue.stats()["len"]) == (1, 1, 1)


def test_P_E3_each_process_counts_in_cells_of_its_own_and_readers_sum():
    queue = small(16)
    fill(queue, 2)
    with child(fill, queue, 3) as pid:
        assert succeeds(pid)
    cells = [queue._queues.cell(0, row) for row in range(2)]
    assert [cell[0] for cell in cells] == [2, 3]
    assert queue.stats()["enqueue"] == 5


def test_P_E4_the_length_is_never_negative():
    queue = small(64)

    def send():
        while True:
            queue.enqueue(b"x", 0)

    with child(send):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            queue.dequeue()
            assert 0 <= queue.stats()["len"] <= 66
    with child(drain, queue) as pid:
        os.waitpid(pid, 0)


def test_P_D1_a_bound_process_dequeues_from_its_cpus_queue_only():
    queue = small(ncpu=2)
    queue.bind(1)
    queue.enqueue(b"zero", 0)
    assert queue.dequeue() is None
    queue.enqueue(b"one", 1)
    assert queue.dequeue() == b"one" and queue.stats()["dequeue"] == 1
    queue.bind(0)
    assert drain(queue) == [b"zero"]


def test_P_D2_a_barrier_leaves_no_marker_that_would_end_a_handlers_run():
    runs = []
    queue = small(handler=lambda q: runs.append(drain(q)))
    queue.bind(0)
    queue.enqueue(b"p1", 0)
    with child(queue.barrier, 5) as pid:
        time.sleep(0.05)
        queue.enqueue(b"p2", 0)
        assert queue.serve(0, timeout_s=5) and runs == [[b"p1", b"p2"]]
        assert succeeds(pid)


def test_P_D3_no_wake_up_is_lost_between_an_empty_look_and_sleep():
    queue = small(64)

    def echo():
        queue.bind(0)
        while (got := queue.wait(1.0) and queue.dequeue()) != b"end":
            assert got

    with child(echo) as pid:
        for i in range(300):
            queue.enqueue(b"x", 0)
            began = time.monotonic()
            while queue.stats()["len"]:
                assert time.monotonic() - began < 1, f"frame {i} lies there"
                os.sched_yield()
        queue.enqueue(b"end", 0)
        assert succeeds(pid)


def test_P_D4_two_processes_may_not_dequeue_for_one_cpu():
    queue = small(ncpu=2)
    queue.bind(0)

    def intrude():
        with pytest.raises(pktring.Error) as why:
            queue.bind(0)
        assert code(why) == "E_QUEUE_BUSY" and str(os.getppid()) in str(why.value)
        queue.bind(1)

    with child(intrude) as pid:
        assert succeeds(pid)


def test_P_D5_order_is_kept_for_each_producer_and_cpu():
    queue = small(64, ncpu=2)

    def send(who, n=2000):
        for i in range(n):
            while not queue.enqueue(b"%d %d" % (who, i), i % 2):
                os.sched_yield()

    with child(send, 1) as one, child(send, 2) as two:
        seen = {(who, cpu): [] for who in (1, 2) for cpu in (0, 1)}
        until(lambda: [take_note(queue.dequeue(), seen) for _ in range(64)] and sum(map(len, seen.values())) == 4000)
        assert succeeds(one) and succeeds(two)
    assert all(numbers == list(range(cpu, 2000, 2)) for (_, cpu), numbers in seen.items())
    assert queue.stats()["over"] < 4000


def take_note(frame, seen):
    if frame:
        who, number = map(int, frame.split())
        seen[who, number % 2].append(number)


def test_producers_are_served_in_turn():
    queue = small(64)
    with child(fill, queue, 30) as pid:
        assert succeeds(pid)
    for _ in range(3):
        queue.enqueue(b"quiet", 0)
    assert [queue.dequeue() for _ in range(6)].count(b"quiet") == 3


def test_P_B1_a_barrier_works_on_a_full_queue():
    queue = small(2, handler=drain)
    fill(queue, 2)
    with child(serve_for_ever, queue):
        queue.barrier(5)
        assert queue.stats()["len"] == 0


def test_P_B2_after_a_barrier_all_that_was_queued_before_is_dequeued():
    queue = small(1024, handler=drain, ncpu=2)
    with child(serve_for_ever, queue, 0), child(serve_for_ever, queue, 1):
        for round in range(1, 30):
            for i in range(40):
                assert queue.enqueue(b"x", i)
            queue.barrier(5)
            assert queue.stats()["dequeue"] == 40 * round


def test_P_B3_producers_go_on_during_a_barrier():
    queue = small(64, handler=drain)

    def send():
        while True:
            queue.enqueue(b"x", 0)

    with child(send), child(serve_for_ever, queue):
        until(lambda: queue.stats()["dequeue"] > 1000)
        for _ in range(20):
            queue.barrier(5)
        before = queue.stats()["enqueue"]
        until(lambda: queue.stats()["enqueue"] > before)


def test_P_B4_a_barrier_on_empty_queues_returns_at_once():
    queue = small(ncpu=4)
    queue.stats()
    queue.barrier()
    began = time.monotonic()
    queue.barrier()
    assert time.monotonic() - began < 0.05


def test_P_B4_many_barriers_may_be_under_way():
    queue = small(64, handler=lambda q: (time.sleep(0.01), drain(q)))
    fill(queue, 3)
    with child(queue.barrier, 10) as one, child(queue.barrier, 10) as two, child(serve_for_ever, queue):
        assert succeeds(one) and succeeds(two)


def test_P_B5_a_barrier_does_not_wait_for_a_dead_consumer():
    queue = small(handler=drain)
    with child(serve_for_ever, queue) as pid:
        until(lambda: queue._queues.holder(0))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    fill(queue, 1)
    began = time.monotonic()
    with pytest.raises(pktring.Error) as why:
        queue.barrier(5)
    assert code(why) == "E_CONSUMER_GONE" and str(pid) in str(why.value)
    assert time.monotonic() - began < 1
    assert drain(queue) == [b"0"]


def test_P_B5_a_barrier_does_not_wait_for_ever_for_a_stopped_consumer():
    queue = small(handler=drain)
    with child(serve_for_ever, queue) as pid:
        until(lambda: queue._queues.holder(0))
        os.kill(pid, signal.SIGSTOP)
        fill(queue, 1)
        with pytest.raises(pktring.Error) as why:
            queue.barrier(0.2)
        assert code(why) == "E_BARRIER_TIMEOUT" and str(pid) in str(why.value)
        os.kill(pid, signal.SIGCONT)
        queue.barrier(5)


def test_a_barrier_calls_the_handler_for_queues_that_this_process_or_nobody_serves():
    queue = small(64, handler=drain, ncpu=2)
    fill(queue, 5, hash=0)
    fill(queue, 5, hash=1)
    queue.bind(1)
    queue.barrier()
    assert queue.stats()["len"] == 0 and queue._queues.holder(0) == 0


def test_a_barrier_without_handler_or_consumer_is_refused():
    queue = small()
    fill(queue, 1)
    with pytest.raises(pktring.Error) as why:
        queue.barrier()
    assert code(why) == "E_CONSUMER_GONE"


def test_P_I1_ifdetach_is_a_barrier_on_every_queue():
    ifdetach([])
    queues = [small(handler=drain), small(handler=drain)]
    for queue in queues:
        fill(queue, 2)
    ifdetach(queues)
    assert [queue.stats()["len"] for queue in queues] == [0, 0]


def test_P_F1_a_flush_empties_all_cpus_and_counts_as_dequeue():
    queue = small(ncpu=2)
    fill(queue, 3, hash=0)
    fill(queue, 2, hash=1)
    queue.flush()
    stats = queue.stats()
    assert (stats["dequeue"], stats["drop"], stats["len"]) == (5, 0, 0)
    assert queue.pool.count()["inflight"] == queue.pool.count()["owned"] == 0


def test_P_F1_a_flush_is_done_by_the_process_that_serves_the_cpu():
    queue = small(64)
    handled = []

    def slow(q):
        time.sleep(0.1)
        handled.append(q.dequeue())

    queue.handler = slow
    with child(serve_for_ever, queue):
        until(lambda: queue._queues.holder(0))
        fill(queue, 20)
        queue.flush(5)
        assert queue.stats()["len"] == 0 and queue.stats()["dequeue"] == 20


def test_P_F1_a_flush_does_not_wait_for_the_dead_or_the_stopped():
    queue = small(handler=drain)
    with child(serve_for_ever, queue) as pid:
        until(lambda: queue._queues.holder(0))
        os.kill(pid, signal.SIGSTOP)
        fill(queue, 1)
        with pytest.raises(pktring.Error) as why:
            queue.flush(0.1)
        assert code(why) == "E_FLUSH_TIMEOUT"
    queue.flush()
    assert queue.stats()["len"] == 0


def test_P_F2_after_a_flush_the_length_is_0_and_drops_stay():
    queue = small(2)
    fill(queue, 5)
    queue.flush()
    assert (queue.stats()["len"], queue.stats()["drop"]) == (0, 3)
    assert fill(queue, 3) == [True, True, False]


def test_P_L1_a_maxlen_out_of_range_is_refused_and_the_same_one_does_nothing():
    queue = PktQueue(4, ncpu=1)
    for wrong in (0, MAXLEN_MAX + 1, -1):
        with pytest.raises(pktring.Error) as why:
            queue.set_maxlen(wrong)
        assert code(why) == "E_MAXLEN"
    fill(queue, 4)
    queue.set_maxlen(4)
    assert queue.maxlen == 4 and drain(queue) == [b"0", b"1", b"2", b"3"]


def test_P_L2_a_resize_loses_and_reorders_nothing():
    queue = small(4)
    fill(queue, 4)
    queue.set_maxlen(1024)
    assert fill(queue, 1024) == [True] * 1020 + [False] * 4
    assert drain(queue) == [b"%d" % i for i in [*range(4), *range(1020)]]


def test_P_L3_a_shrunk_queue_takes_nothing_until_there_is_room_again():
    queue = small(8)
    fill(queue, 8)
    began = time.monotonic()
    queue.set_maxlen(2)
    assert time.monotonic() - began < 0.1
    assert not queue.enqueue(b"x", 0) and queue.stats()["len"] == 8
    assert [queue.dequeue() for _ in range(6)] and not queue.enqueue(b"x", 0)
    assert queue.dequeue() == b"6" and queue.enqueue(b"x", 0)
    assert queue.stats()["over"] == 0


def test_P_L4_what_was_queued_before_a_resize_is_delivered_without_more_traffic():
    got = []
    queue = small(8, handler=lambda q: got.extend(drain(q)))
    fill(queue, 5)
    before = queue.stats()["enqueue"], queue.stats()["drop"]
    asleep(queue)
    queue.set_maxlen(16)
    assert rung(queue)
    began = time.monotonic()
    assert queue.serve(0, timeout_s=1) and len(got) == 5
    assert time.monotonic() - began < 0.1
    assert (queue.stats()["enqueue"], queue.stats()["drop"]) == before


def test_P_L5_a_thousand_resizes_under_traffic_lose_and_duplicate_nothing():
    queue = small(64)

    def send(n):
        for i in range(n):
            while not queue.enqueue(b"%d" % i, 0):
                os.sched_yield()

    with child(send, 10_000) as pid:
        got = []
        for i in range(1000):
            queue.set_maxlen(1 + (i * 37) % 100)
            got += [queue.dequeue() for _ in range(5)]
        until(lambda: got.extend(queue.dequeue() for _ in range(100)) or got.count(b"9999"))
        assert succeeds(pid)
    assert [int(frame) for frame in got if frame is not None] == list(range(10_000))


def test_P_M3_buffer_0_is_nobodys_and_cannot_be_queued():
    queue = small()
    for desc in (0, descriptor(1, 60), descriptor(2**32 - 1, 60)):
        with pytest.raises(pktring.Error) as why:
            queue.enqueue(desc, 0)
        assert code(why) == "E_BUF_OWNER"
    assert queue.stats()["len"] == 0


def test_P_M5_a_consumer_that_said_it_sleeps_is_rung_and_no_other():
    queue = small(ncpu=2)
    queue.enqueue(b"x", 0)
    assert not rung(queue, 0)
    asleep(queue, 0)
    queue.enqueue(b"x", 1)
    assert not rung(queue, 0) and not rung(queue, 1)
    queue.enqueue(b"x", 0)
    assert rung(queue, 0)


def under_fire(victim, headers=None, seed=1):
    """Kill that end a thousand times. -> (exit status, the facts it prints)."""
    flags = [f"-iquote{headers}"] if headers else []
    exe = ckernel.program(Path(__file__).with_name("kill_pktqueue.c").read_text(), flags=flags, sanitize=False)
    env = {**os.environ, "LD_PRELOAD": ""}
    got = subprocess.run([exe, victim, "1000", str(seed)], capture_output=True, text=True, timeout=60, env=env)
    return got.returncode, got.stdout


def until_a_kill_hits(victim):
    """Kill thousand after thousand until one of them had frames in its hands; all must end well. -> the facts of each thousand"""
    told = []
    while not told or " crashed=0 " in told[-1]:
        assert len(told) < 10, "no kill hit a burst in flight"
        status, facts = under_fire(victim, seed=1 + len(told))
        assert status == 0, facts
        told.append(facts)
    return told


def test_P_M6_a_thousand_killed_producers_wedge_nothing_and_lose_no_published_frame():
    assert all(" lost=0 " in facts for facts in until_a_kill_hits("producer"))


def test_P_M7_a_thousand_killed_consumers_lose_a_burst_each_at_most_and_repeat_nothing():
    assert until_a_kill_hits("consumer")


MUTANTS = {
    "tail before the words": ("consumer", "lane.h", "(ready = pr_lane_peek(e, n));",
                              "(ready = pr_lane_peek(e, n)) && (e->lane->tail = e->mine + ready, 1);"),
    "reclaimed frames delivered": ("consumer", "lane.h", "e->id, e->mine + i))\n                desc[got++]",
                                   "e->id, e->mine + i) || 1)\n                desc[got++]"),
    "unpublished words forgotten": ("producer", "pktqueue.h", "n += pr_lane_reclaim(&end, pool);", "n += 0;"),
    "buffers in hand forgotten": ("producer", "pktqueue.h", "n += pr_pool_reclaim_process(pool, (uint16_t)(v->first_owner + row));", ""),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails_under_fire(mutant):
    victim, name, right, wrong = MUTANTS[mutant]
    headers = ckernel.BUILD / f"mutant_{mutant.replace(' ', '_')}"
    headers.mkdir(parents=True, exist_ok=True)
    for header in ("doorbell.h", "lane.h", "pktqueue.h", "pool.h"):
        text = (ckernel.TOP / "shm" / header).read_text()
        assert header != name or text.count(right) == 1
        (headers / header).write_text(text.replace(right, wrong))
    assert any("FAILED" in under_fire(victim, headers, seed)[1] for seed in range(20))


def test_P_M6_a_killed_process_is_replaced_and_the_others_go_on():
    queue = small(64, producers=2, frame_size=64)
    free = queue.pool.free

    def send(who):
        number = 0
        while True:
            number += queue.enqueue(b"%d %d" % (who, number), 0)

    for who in range(20):
        with child(send, who) as pid:
            got = []
            until(lambda got=got: got.append(queue.dequeue()) or any(got))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            got = [frame.split() for frame in [*got, *drain(queue)] if frame]
            assert got == [[b"%d" % who, b"%d" % i] for i in range(len(got))]
    queue._hold._bury_all(queue.pool)
    stats = queue.stats()
    assert stats["enqueue"] == stats["dequeue"] and stats["lost"] == 0
    count = queue.pool.count()
    assert count["owned"] == count["inflight"] == 0 and queue.pool.free == free and count["free"] == 2 * free


def test_P_M7_a_dead_consumers_queue_passes_to_the_next():
    queue = small(64)

    def take_one_and_hang():
        queue.bind(0)
        until(lambda: queue.dequeue(raw=True))
        time.sleep(30)

    with child(take_one_and_hang) as pid:
        until(lambda: queue._queues.holder(0))
        fill(queue, 3)
        until(lambda: queue.stats()["dequeue"])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    queue.bind(0)
    assert drain(queue) == [b"1", b"2"]
    assert queue.stats()["crashed"] == 1 and queue.pool.count()["owned"] == 0


def test_P_M8_counters_of_two_writers_share_no_cache_line():
    at = {name: offset // 64 for name, (offset, _) in _shm.LANE_LAYOUT.items() if name.startswith("pr_pktq_cell.")}
    assert {at["pr_pktq_cell.enqueue"], at["pr_pktq_cell.drop"], at["pr_pktq_cell.over"]} == {0}
    assert {at["pr_pktq_cell.dequeue"], at["pr_pktq_cell.lost"]} == {1}


def test_P_M8_what_a_killed_process_did_not_come_to_count_is_made_up_by_the_next():
    mem = mmap.mmap(-1, _shm.pktqueue_size(1, 1, 8, 1))
    _shm.pktqueue_format(mem, 1, 1, 8, 1, 8, 0, 1)
    queues, pool = _shm.Queues(mem), Pool(bytearray(8 * 10), 1)
    pool.format()
    assert _shm.Producer(queues, 0, [-1]).put(pool, 0, array("Q", pool.take(5))) == 5
    assert _shm.Consumer(queues, 0).take(pool, array("Q", bytes(8 * 3))) == 3
    cell = sum(_shm.LANE_LAYOUT[part][1] for part in ("pr_pktqueue", "pr_pktq_cpu", "pr_pktq_row"))
    for counter, value in (("enqueue", 1), ("dequeue", 0)):
        struct.pack_into("Q", mem, cell + _shm.LANE_LAYOUT[f"pr_pktq_cell.{counter}"][0], value)
    assert queues.cell(0, 0) == (1, 0, 0, 0, 0)
    _shm.Producer(queues, 0, [-1]), _shm.Consumer(queues, 0)
    assert queues.cell(0, 0) == (5, 0, 0, 3, 0)


def test_P_S1_stats_have_the_sysctls_values():
    queue = small(2)
    fill(queue, 3)
    stats = queue.stats()
    assert (stats["len"], stats["maxlen"], stats["drops"]) == (2, 2, 1)


def test_P_S3_a_barrier_is_not_counted_as_queued():
    queue = small(8)
    queue.enqueue(b"x", 0)
    waiting = threading.Thread(target=lambda: pytest.raises(pktring.Error, queue.barrier, 0.1))
    waiting.start()
    assert queue.stats()["len"] == 1 and queue.stats()["enqueue"] == 1
    waiting.join(5)


# ---- frames ----


def test_frames_of_all_sizes_come_out_as_they_went_in():
    queue = small(64, frame_size=2048)
    frames = [bytes([n % 256]) * n for n in (0, 1, 60, 1514, 2047, 2048)]
    assert all(queue.enqueue(frame, 0) for frame in frames)
    assert queue.enqueue(bytearray(b"ab"), 0) and queue.enqueue(memoryview(b"cd"), 0)
    assert drain(queue) == [*frames, b"ab", b"cd"]


def test_a_frame_that_no_buffer_holds_is_refused():
    with pytest.raises(pktring.Error) as why:
        small(frame_size=64).enqueue(bytes(65), 0)
    assert code(why) == "E_FRAME_SIZE"


def test_a_frame_is_passed_without_a_copy_by_its_descriptor():
    queue = small(handler=None)
    (b,) = queue.pool.take(1)
    desc = descriptor(b, 5)
    queue.buffer(desc)[:] = b"hello"
    assert queue.enqueue(desc, 0)
    with pytest.raises(pktring.Error):
        queue.buffer(desc)
    assert queue.dequeue(raw=True) == desc and queue.buffer(desc) == b"hello"
    assert queue.give([desc]) == 1 and queue.give([desc]) == 0


def test_without_a_free_buffer_a_frame_is_dropped_and_counted():
    queue = PktQueue(4, ncpu=1, ceiling=4)
    queue.pool.take(10_000)
    assert not queue.enqueue(b"x", 0) and queue.stats()["drop"] == 1


def test_no_more_processes_join_than_there_are_places():
    queue = small(producers=1)
    queue.enqueue(b"x", 0)

    def join():
        with pytest.raises(pktring.Error) as why:
            queue.enqueue(b"y", 0)
        assert code(why) == "E_PRODUCERS"

    with child(join) as pid:
        assert succeeds(pid)


def test_a_handler_is_needed_to_serve_and_a_cpu_to_wait():
    with pytest.raises(pktring.Error) as why:
        small(ncpu=2).wait(0)
    assert code(why) == "E_UNBOUND"
    queue = small()
    fill(queue, 1)
    with pytest.raises(pktring.Error) as why:
        queue.serve(timeout_s=0)
    assert code(why) == "E_HANDLER"


def test_waiting_ends_at_its_time():
    queue = small()
    began = time.monotonic()
    assert not queue.wait(0.15)
    assert 0.14 < time.monotonic() - began < 1
