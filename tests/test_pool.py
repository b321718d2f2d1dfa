"""The ledger: the C core against the plain model, word by word after every step, and its rules one by one."""

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model.pool import FIRST, FREE, INFLIGHT, KERNEL, LENT, NOBODY, OWNED, Ledger

from pktring.shm import _shm
from pktring.shm.pool import Pool, descriptor, indexes, parts

PROCESSES = 3
HOME = 5
N = FIRST + PROCESSES * HOME
process = st.integers(1, PROCESSES)
buffer = st.integers(0, N + 1)
small = st.integers(1, 3)


class PoolMachine(RuleBasedStateMachine):
    """Three processes do right and wrong things with each other's buffers, and die."""

    @initialize()
    def make(self):
        self.memory = bytearray(8 * N)
        self.model = Ledger(N, HOME)
        self.gen = [0] * (PROCESSES + 1)
        self.pools = {owner: Pool(self.memory, owner, 0, HOME) for owner in range(1, PROCESSES + 1)}
        for owner, pool in self.pools.items():
            pool.format()
            self.model.deal((owner, 0))

    def me(self, owner):
        return owner, self.gen[owner]

    @rule(owner=process, n=st.integers(0, HOME + 1))
    def take(self, owner, n):
        assert self.model.took(self.me(owner), list(self.pools[owner].take(n)), n)

    @rule(owner=process, bufs=st.lists(buffer, max_size=4))
    def give(self, owner, bufs):
        assert self.pools[owner].give(bufs) == sum(self.model.give(self.me(owner), b) for b in bufs)

    @rule(owner=process, b=buffer, verb=st.sampled_from(["lend", "unlend"]), app=small)
    def with_an_app(self, owner, b, verb, app):
        assert getattr(self.pools[owner], verb)(b, app) == getattr(self.model, verb)(self.me(owner), b, app)

    @rule(owner=process, b=buffer, verb=st.sampled_from(["hand_over", "accept", "to_kernel", "from_kernel"]), x=small, y=small)
    def with_a_lane_or_the_kernel(self, owner, b, verb, x, y):
        assert getattr(self.pools[owner], verb)(b, x, y) == getattr(self.model, verb)(self.me(owner), b, x, y)

    @rule(owner=process)
    def die_and_be_replaced(self, owner):
        self.gen[owner] += 1
        self.pools[owner] = Pool(self.memory, owner, self.gen[owner], HOME)
        assert self.pools[owner].reclaim_process(owner) == self.model.reclaim_process(self.me(owner), owner)

    @rule(owner=process, app=small)
    def an_app_dies(self, owner, app):
        assert self.pools[owner].reclaim_app(app) == self.model.reclaim_app(app)

    @rule(owner=process, port=small, gen=small)
    def a_socket_is_closed(self, owner, port, gen):
        assert self.pools[owner].reclaim_socket(port, gen) == self.model.reclaim_socket(port, gen)

    @rule(owner=process)
    def lose_the_stack(self, owner):
        self.pools[owner].rebuild()

    @invariant()
    def the_words_agree(self):
        pool = self.pools[1]
        assert [pool.word(b) for b in range(N)] == self.model.words

    @invariant()
    def every_buffer_is_somewhere(self):
        count = self.pools[1].count()
        assert sum(count.values()) == N and count["broken"] == 0 and count["reserved"] == FIRST
        assert [p.free for p in self.pools.values()] == [len(self.model.free((owner, 0))) for owner in self.pools]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=800, stateful_step_count=15, deadline=None)


@pytest.fixture
def pool():
    pool = Pool(bytearray(8 * 12), 1, 7, 5)
    pool.format()
    return pool



def test_state_numbers_are_those_of_the_core():
    assert [_shm.PR_RESERVED, _shm.PR_FREE, _shm.PR_OWNED, _shm.PR_INFLIGHT, _shm.PR_LENT, _shm.PR_KERNEL] == [
        NOBODY[0], FREE, OWNED, INFLIGHT, LENT, KERNEL
    ]  # fmt: skip


def test_the_first_two_buffers_are_never_handed_out(pool):
    assert sorted(pool.take(100)) == [2, 3, 4, 5, 6]


def test_buffers_come_lowest_first(pool):
    assert list(pool.take(3)) == [2, 3, 4]


def test_a_double_give_is_refused(pool):
    bufs = pool.take(1)
    assert pool.give(bufs) == 1
    assert pool.give(bufs) == 0 and pool.refused == 1
    assert pool.free == 5 and len(pool.take(100)) == 5


def test_a_free_buffer_goes_nowhere_but_to_its_process(pool):
    assert not any([pool.hand_over(2, 1, 0), pool.lend(2, 1), pool.to_kernel(2, 1, 1), pool.accept(2, 1, 0)])
    assert pool.word(2) == (FREE, 1, 0, 0)


def test_an_index_beyond_the_ledger_is_refused(pool):
    assert pool.give([12, 2**32 - 1]) == 0 and not pool.lend(12, 1) and not pool.owns(12)
    with pytest.raises(IndexError, match="12 of 12"):
        pool.word(12)


def test_a_lent_buffer_comes_back_from_its_app_alone_and_once(pool):
    (b,) = pool.take(1)
    assert pool.lend(b, 9)
    assert not pool.unlend(b, 8) and not pool.owns(b)
    assert pool.unlend(b, 9) and not pool.unlend(b, 9)


def test_a_buffer_comes_back_from_the_socket_it_went_to(pool):
    (b,) = pool.take(1)
    assert pool.to_kernel(b, 3, 1)
    assert not pool.from_kernel(b, 3, 2)
    assert pool.reclaim_socket(3, 2) == 0 and pool.word(b)[0] == KERNEL
    assert pool.from_kernel(b, 3, 1)


def test_somebody_elses_buffer_is_sent_home_and_found_there():
    memory = bytearray(8 * 12)
    one, two = Pool(memory, 1, 0, 5), Pool(memory, 2, 0, 5)
    one.format()
    bufs = one.take(5)
    assert all(one.hand_over(b, 4, i) and two.accept(b, 4, i) for i, b in enumerate(bufs))
    assert two.give(bufs) == 5 and len(two.take(1)) == 0
    assert len(one.take(5)) == 5


def test_a_replacement_takes_what_the_dead_one_had_and_no_more():
    memory = bytearray(8 * 12)
    dead = Pool(memory, 1, 0, 5)
    dead.format()
    in_hand, lent = dead.take(2)
    dead.lend(lent, 9)
    heir = Pool(memory, 1, 1, 5)
    assert not heir.owns(in_hand) and heir.give([in_hand]) == 0
    assert heir.reclaim_process(1) == 1
    assert heir.free == 4 and heir.word(lent) == (LENT, 9, 0, 0)
    assert heir.reclaim_app(9) == 1 and heir.free == 5
    assert heir.reclaim_process(1) == 0


def test_a_stack_refills_from_a_home_larger_than_one_look():
    pool = Pool(bytearray(8 * 1002), 1)
    pool.format()
    assert list(pool.take(1000)) == list(range(2, 1002))
    assert pool.give(range(2, 1002)) == 1000 and len(pool.take(2000)) == 1000


def test_wrong_words_and_owners_are_refused():
    with pytest.raises(ValueError, match="owner 0"):
        Pool(bytearray(80), 0)
    with pytest.raises(ValueError, match="not aligned"):
        Pool(memoryview(bytearray(88))[1:81], 1)
    with pytest.raises(ValueError, match="at least 3"):
        Pool(bytearray(16), 1)


def test_a_descriptor_has_three_parts():
    assert parts(descriptor(7, 60, 1)) == (7, 60, 1)
    assert indexes([descriptor(7, 60), descriptor(2**32 - 1, 65535, 65535)]) == array("I", [7, 2**32 - 1])
