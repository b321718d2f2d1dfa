"""Lanes: the C core against the plain model, cursors and words after every step, kills halfway included; order between processes;
data races under ThreadSanitizer, which has to find those of weakened copies."""

import mmap
import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import ckernel
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model import lane as model
from model.pool import FIRST, INFLIGHT, OWNED, Ledger

from pktring.shm import _shm
from pktring.shm.lane import CAPACITY_MAX, CONSUMER, PRODUCER, Lane, make, size
from pktring.shm.pool import Pool, descriptor, indexes, parts

HEAD, TAIL = _shm.LANE_LAYOUT["pr_lane.head"][0], _shm.LANE_LAYOUT["pr_lane.tail"][0]
HOME = 6
N = FIRST + 2 * HOME


def memory(capacity, start=0, lane_id=7):
    mem = mmap.mmap(-1, size(capacity))
    make(mem, lane_id, capacity)
    for cursor in (HEAD, TAIL):
        struct.pack_into("<I", mem, cursor, start % 2**32)
    return mem


class LaneMachine(RuleBasedStateMachine):
    """A producer (process 1) and a consumer (process 2) send each other's buffers round; both get killed halfway and replaced."""

    @initialize(capacity=st.sampled_from([1, 2, 4, 8]), start=st.sampled_from([0, 2**16 - 3, 2**32 - 3]))
    def make(self, capacity, start):
        self.words = bytearray(8 * N)
        self.mem = memory(capacity, start)
        self.gen = [None, 0, 0]
        self.pools = [None, Pool(self.words, 1, 0, HOME), Pool(self.words, 2, 0, HOME)]
        self.ledger = Ledger(N, HOME)
        self.pools[1].format()
        self.ledger.deal((1, 0))
        self.ends = [None, Lane(self.mem, PRODUCER), Lane(self.mem, CONSUMER)]
        self.model = model.Lane(self.ledger, 7, capacity, start)
        self.serial = 0

    def me(self, owner):
        return owner, self.gen[owner]

    def some(self, n, bad=()):
        """n descriptors of buffers that the producer takes now, and indexes that are not its own to hand over."""
        bufs = list(self.pools[1].take(n))
        assert self.ledger.took(self.me(1), bufs, n)
        self.serial += 1
        return [descriptor(b, self.serial % 2**16, len(bad)) for b in [*bufs, *bad]]

    def keep(self, descs):
        """What was not put is given back."""
        for b in indexes(descs):
            assert self.pools[1].give([b]) == self.ledger.give(self.me(1), b)

    @rule(n=st.integers(0, HOME), bad=st.lists(st.integers(0, N), max_size=1))
    def put(self, n, bad):
        descs = self.some(n, bad)
        done = self.ends[1].put(self.pools[1], descs)
        assert done == self.model.put(self.me(1), descs)
        self.keep(descs[done:])

    @rule(n=st.integers(0, HOME))
    def take(self, n):
        got = list(self.ends[2].take(self.pools[2], n))
        assert got == self.model.take(self.me(2), n)
        for b in indexes(got):
            assert self.pools[2].give([b]) == self.ledger.give(self.me(2), b) == 1

    @rule(n=st.integers(1, HOME), at=st.integers(0, HOME))
    def kill_the_producer_halfway(self, n, at):
        descs = self.some(n)
        end, pool = self.ends[1], self.pools[1]
        for i in range(min(at, end.reserve(len(descs)), len(descs))):
            assert pool.hand_over(parts(descs[i])[0], end.id, end.mine + i)
            end.fill(i, descs[i])
        self.model.put_killed(self.me(1), descs, at)
        self.replace(1, PRODUCER)
        assert self.ends[1].reclaim(self.pools[1]) == self.model.reclaim()

    @rule(n=st.integers(1, HOME), at=st.integers(0, HOME))
    def kill_the_consumer_halfway(self, n, at):
        end, pool = self.ends[2], self.pools[2]
        for i in range(min(at, end.peek(n))):
            pool.accept(parts(end.slot(i))[0], end.id, end.mine + i)
        self.model.take_killed(self.me(2), n, at)
        self.replace(2, CONSUMER)

    def replace(self, owner, side):
        self.gen[owner] += 1
        self.pools[owner] = Pool(self.words, owner, self.gen[owner], HOME)
        assert self.pools[owner].reclaim_process(owner) == self.ledger.reclaim_process(self.me(owner), owner)
        self.ends[owner] = Lane(self.mem, side)
        self.model.skipped = self.model.skipped if owner == 1 else 0

    @invariant()
    def they_agree(self):
        assert self.ends[1].cursors == (self.model.head, self.model.tail)
        assert self.ends[2].skipped == self.model.skipped
        assert [self.pools[1].word(b) for b in range(N)] == self.ledger.words
        assert not self.ends[1].broken and not self.ends[2].broken


TestLane = LaneMachine.TestCase
TestLane.settings = settings(max_examples=800, stateful_step_count=20, deadline=None)


@pytest.fixture
def lane():
    words = bytearray(8 * N)
    mem = memory(4)
    pools = Pool(words, 1, 0, HOME), Pool(words, 2, 0, HOME)
    pools[0].format()
    return Lane(mem, PRODUCER), Lane(mem, CONSUMER), *pools, mem, words


def some(pool, n):
    return [descriptor(b, 60) for b in pool.take(n)]


def test_a_full_lane_refuses_and_the_buffers_stay_the_producers(lane):
    tx, rx, one, two, *_ = lane
    descs = some(one, 6)
    assert tx.put(one, descs) == 4
    assert tx.put(one, descs[4:]) == 0
    assert one.give(indexes(descs)) == 2


def test_a_burst_is_seen_whole_or_not_at_all(lane):
    tx, rx, one, two, *_ = lane
    for i in range(tx.reserve(3)):
        tx.fill(i, 100 + i)
        assert rx.peek(4) == 0
    tx.submit(3)
    assert [rx.slot(i) for i in range(rx.peek(4))] == [100, 101, 102]
    rx.release(3)
    assert tx.reserve(4) == 4


def test_a_buffer_that_is_not_the_producers_ends_the_burst(lane):
    tx, rx, one, two, *_ = lane
    descs = some(one, 2)
    assert tx.put(one, [descs[0], descriptor(3 + HOME, 60), descs[1]]) == 1
    assert one.refused == 1 and one.owns(parts(descs[1])[0])


def test_a_taken_buffer_is_the_consumers(lane):
    tx, rx, one, two, *_ = lane
    (desc,) = some(one, 1)
    tx.put(one, [desc])
    assert one.word(2)[:2] == (INFLIGHT, 7)
    assert list(rx.take(two)) == [desc] and two.owns(2)
    assert two.word(2) == (OWNED, 2, 0, 0)


def test_a_reclaimed_buffer_is_not_delivered_by_its_old_slot(lane):
    tx, rx, one, two, mem, words = lane
    descs = some(one, 3)
    tx.put(one, descs)
    rx.peek(1)
    two.accept(2, 7, rx.mine)  # and killed before the tail
    heir, again = Pool(words, 2, 1, HOME), Lane(mem, CONSUMER)
    assert heir.reclaim_process(2) == 1
    assert list(again.take(heir)) == descs[1:] and again.skipped == 1


NONSENSE = [(PRODUCER, TAIL, 1), (PRODUCER, TAIL, 2**31), (CONSUMER, HEAD, 5), (CONSUMER, HEAD, 2**32 - 1)]


@pytest.mark.parametrize("side, cursor, nonsense", NONSENSE)
def test_a_cursor_that_makes_no_sense_quarantines_the_lane(side, cursor, nonsense):
    mem = memory(4)
    end = Lane(mem, side)
    struct.pack_into("<I", mem, cursor, nonsense)
    look = end.peek if side == CONSUMER else end.reserve
    assert (look(5), end.broken) == (0, 1)
    struct.pack_into("<I", mem, cursor, 0)
    assert look(5) == 0


def test_a_head_that_moves_back_quarantines_the_lane(lane):
    tx, rx, one, two, mem, _ = lane
    tx.put(one, some(one, 3))
    assert rx.peek(4) == 3
    struct.pack_into("<I", mem, HEAD, 2)
    assert rx.peek(4) == 0 and rx.broken


def test_memory_without_a_lane_is_refused():
    with pytest.raises(ValueError, match="no lane in these"):
        Lane(mmap.mmap(-1, 4096), PRODUCER)
    with pytest.raises(ValueError, match="not aligned"):
        Lane(memoryview(memory(4))[8:], PRODUCER)
    short = memory(8)
    with pytest.raises(ValueError, match="no lane in these"):
        Lane(memoryview(short)[: size(8) - 8], PRODUCER)
    struct.pack_into("<I", short, HEAD, 9)
    with pytest.raises(ValueError, match="no lane in these"):
        Lane(short, PRODUCER)


@pytest.mark.parametrize("capacity", [0, 3, 2 * CAPACITY_MAX, 2**32 + 4])
def test_a_capacity_is_a_power_of_two(capacity):
    with pytest.raises((ValueError, OverflowError)):
        size(capacity)


def test_no_more_slots_are_passed_than_were_seen(lane):
    tx, rx, *_ = lane
    for wrong in (lambda: tx.submit(5), lambda: rx.release(1)):
        with pytest.raises(ValueError, match="slots of"):
            wrong()
    for wrong in (lambda: tx.fill(4, 0), lambda: rx.slot(0)):
        with pytest.raises(IndexError, match="slot"):
            wrong()


def test_words_of_different_writers_lie_on_different_cache_lines():
    line = {name: offset // 64 for name, (offset, _) in _shm.LANE_LAYOUT.items() if name.startswith("pr_lane.")}
    assert len(set(line.values())) == 4


def test_two_processes_pass_buffers_in_order_and_lose_none():
    n, burst = 200_000, 64
    words = mmap.mmap(-1, 8 * (FIRST + 512))
    mem = memory(256)
    Pool(words, 1, 0, 512).format()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        pool, end, sent = Pool(words, 1, 0, 512), Lane(mem, PRODUCER), 0
        while sent < n:
            bufs = pool.take(min(burst, n - sent))
            descs = [descriptor(b, (sent + i) % 2**16) for i, b in enumerate(bufs)]
            done = 0
            while done < len(descs):
                put = end.put(pool, descs[done:])
                done += put
                if not put:
                    os.sched_yield()
            sent += len(descs)
        os._exit(0 if pool.refused == 0 else 1)
    pool, end, seen = Pool(words, 2, 0, 512), Lane(mem, CONSUMER), 0
    deadline = time.monotonic() + 20
    while seen < n and time.monotonic() < deadline:
        descs = end.take(pool, burst)
        assert [d >> 32 & 0xFFFF for d in descs] == [(seen + i) % 2**16 for i in range(len(descs))]
        assert pool.give(indexes(descs)) == len(descs)
        seen += len(descs)
        if not descs:
            os.sched_yield()
    assert os.waitpid(child, 0)[1] == 0
    assert (seen, end.skipped, end.cursors) == (n, 0, (n, n))
    assert pool.count()["free"] == 512


# ---- data races ----

SOURCE = Path(__file__).with_name("tsan_lanes.c")
MUTANTS = {
    "head": ("lane.h", "&e->lane->head, e->mine, __ATOMIC_RELEASE", "&e->lane->head, e->mine, __ATOMIC_RELAXED"),
    "tail": ("lane.h", "&e->lane->tail, e->mine, __ATOMIC_RELEASE", "&e->lane->tail, e->mine, __ATOMIC_RELAXED"),
    "peek": ("lane.h", "&e->lane->head, __ATOMIC_ACQUIRE); /* pairs with pr_lane_submit", "&e->lane->head, __ATOMIC_RELAXED); /*"),
    "word": ("pool.h", "&p->word[b], word, __ATOMIC_RELEASE", "&p->word[b], word, __ATOMIC_RELAXED"),
    "look": ("pool.h", "&p->word[b], __ATOMIC_ACQUIRE", "&p->word[b], __ATOMIC_RELAXED"),
}


def under_tsan(headers):
    """Build the two threads with these headers and run them. -> (exit status, what ThreadSanitizer said)."""
    exe = ckernel.program(SOURCE.read_text(), flags=["-fsanitize=thread", "-pthread", f"-iquote{headers}"], sanitize=False)
    run = ["setarch", "--addr-no-randomize", exe]  # large random offsets put the mapping where TSan keeps its own
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "LD_PRELOAD": ""}
    got = subprocess.run(run, capture_output=True, text=True, timeout=60, env=env)
    if "FATAL: ThreadSanitizer" in got.stderr:
        pytest.skip(f"tool: ThreadSanitizer does not run here: {got.stderr.splitlines()[0]}")
    return got.returncode, got.stderr


@pytest.mark.needs("setarch")
def test_no_data_race_between_the_two_ends():
    status, said = under_tsan(ckernel.TOP / "shm")
    assert status == 0, said


@pytest.mark.needs("setarch")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_weakened_order_is_a_data_race(mutant):
    name, strong, weak = MUTANTS[mutant]
    headers = ckernel.BUILD / f"mutant_{mutant}"
    headers.mkdir(parents=True, exist_ok=True)
    for header in ("lane.h", "pool.h"):
        text = (ckernel.TOP / "shm" / header).read_text()
        assert header != name or text.count(strong) == 1
        (headers / header).write_text(text.replace(strong, weak))
    assert any("data race" in under_tsan(headers)[1] for _ in range(5))  # the threads have to meet
