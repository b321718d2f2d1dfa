"""netmap rings: the C core against the plain model, step by step, and the rules of sync one by one."""

import ctypes
from pathlib import Path

import ckernel
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model.ring import RX, TX, Ring

SOURCE = (Path(__file__).parent / "ring_kernel.c").read_text()
FIXED = 7


class Core:
    """The C ring behind ctypes, with the model's names."""

    lib: ctypes.CDLL | None = None

    def __init__(self, n, direction, first_buf=2):
        if Core.lib is None:
            Core.lib = ckernel.load(SOURCE)
            Core.lib.ring_new.restype = ctypes.c_void_p
            Core.lib.ring_counted_reinits.restype = ctypes.c_uint64
        self.n = n
        self.p = ctypes.c_void_p(Core.lib.ring_new(n, direction, first_buf))

    def __getattr__(self, name):
        function = getattr(Core.lib, f"ring_{name}")
        return lambda *args: function(self.p, *args)

    def fill(self, lengths):
        Core.lib.ring_fill(self.p, (ctypes.c_uint16 * len(lengths))(*lengths), len(lengths))

    def read(self):
        out = (ctypes.c_uint32 * (FIXED + 3 * self.n))()
        Core.lib.ring_state(self.p, out)
        slots = [tuple(out[FIXED + 3 * i : FIXED + 3 * i + 3]) for i in range(self.n)]
        return tuple(out[:FIXED]), slots

    def free(self):
        Core.lib.ring_free(self.p)


def picture(model):
    return (model.head, model.cur, model.tail, model.hwcur, model.hwtail, model.rhead, model.reinits), model.slots


class RingMachine(RuleBasedStateMachine):
    """Both sides take turns, the app now and then writes nonsense; after every step the two agree on every word."""

    direction = RX

    @initialize(n=st.integers(2, 17))
    def make(self, n):
        self.model = Ring(n, self.direction)
        self.core = Core(n, self.direction)

    def teardown(self):
        if hasattr(self, "core"):
            self.core.free()

    @rule()
    def engine_enters(self):
        assert (self.core.enter() == 0) == self.model.enter()

    @rule(data=st.data())
    def app_gives_back(self, data):
        step = data.draw(st.integers(0, self.model.ready()))
        to = (self.model.head + step) % self.model.n
        self.core.advance(to)
        self.model.advance(to)

    @rule(data=st.data())
    def app_holds_slots_behind_cur(self, data):
        m = self.model
        head = data.draw(st.integers(0, m.ready()))
        cur = data.draw(st.integers(head, m.ready()))
        at = (m.head + head) % m.n, (m.head + cur) % m.n
        self.core.app_writes(*at, m.tail)
        m.head, m.cur = at

    @rule(head=st.integers(0, 20), cur=st.integers(0, 20), tail=st.integers(0, 2**32 - 1))
    def app_writes_nonsense(self, head, cur, tail):
        """tail is the engine's: what the app writes there is repaired at the next publish, never believed."""
        self.core.app_writes(head, cur, tail)
        self.model.head, self.model.cur, self.model.tail = head, cur, tail
        self.engine_enters()
        if self.direction == RX:
            self.engine_fills([])
        else:
            self.engine_sends(0)

    @rule(data=st.data(), buf=st.sampled_from([0, 1, 2, 3, 2**32 - 1]), length=st.sampled_from([0, 60, 1792, 1793, 65535]))
    def app_writes_a_slot(self, data, buf, length):
        i = data.draw(st.integers(0, self.model.n - 1))
        self.core.app_slot(i, buf, length)
        self.model.slots[i] = (buf, length, self.model.slots[i][2])

    def engine_fills(self, lengths):
        self.core.fill(lengths)
        self.model.fill(lengths)

    def engine_sends(self, k):
        self.core.done(k)
        self.model.done(k)

    @precondition(lambda self: self.direction == RX)
    @rule(data=st.data())
    def engine_receives(self, data):
        assert self.core.space() == self.model.space()
        self.engine_fills(data.draw(st.lists(st.integers(14, 1792), max_size=self.model.space())))

    @precondition(lambda self: self.direction == TX)
    @rule(data=st.data())
    def engine_transmits(self, data):
        assert self.core.pending() == self.model.pending()
        self.engine_sends(data.draw(st.integers(0, self.model.pending())))

    @invariant()
    def they_agree(self):
        if hasattr(self, "core"):
            assert self.core.read() == picture(self.model)


class TxMachine(RingMachine):
    direction = TX


TestRxRing = RingMachine.TestCase
TestTxRing = TxMachine.TestCase
TestRxRing.settings = TestTxRing.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)


@pytest.fixture
def rx():
    core = Core(8, RX)
    yield core
    core.free()


@pytest.fixture
def tx():
    core = Core(8, TX)
    yield core
    core.free()


def fixed(core):
    return dict(zip(("head", "cur", "tail", "hwcur", "hwtail", "rhead", "reinits"), core.read()[0], strict=True))


def test_a_receive_ring_starts_empty_and_holds_one_frame_less_than_slots(rx):
    assert fixed(rx) | {"reinits": 0} == dict.fromkeys(("head", "cur", "tail", "hwcur", "hwtail", "rhead", "reinits"), 0)
    assert rx.space() == 7


def test_a_transmit_ring_starts_with_all_but_one_slot_free(tx):
    assert fixed(tx)["tail"] == 7 and tx.ready() == 7


def test_slots_held_back_behind_cur_stay_the_apps(rx):
    rx.fill([60] * 5)
    rx.app_writes(1, 5, 5)
    assert rx.enter() == 0
    assert rx.space() == 3, "five filled, one given back"


@pytest.mark.parametrize(("head", "cur"), [(4, 4), (0, 4), (2, 1), (8, 8), (2**32 - 1, 0), (0, 2**32 - 1), (7, 7)])
def test_receive_cursors_outside_of_what_was_published_reinitialise_the_ring(rx, head, cur):
    rx.fill([60] * 3)
    rx.app_writes(head, cur, 3)
    assert rx.enter() == -1
    state = fixed(rx)
    assert (state["head"], state["cur"], state["tail"]) == (state["hwcur"], state["hwcur"], state["hwtail"])
    assert rx.counted_reinits() == 1


@pytest.mark.parametrize(("head", "cur"), [(3, 2), (2, 7 + 1), (1, 0), (9, 9)])
def test_transmit_cursors_that_go_back_or_past_tail_reinitialise_the_ring(tx, head, cur):
    tx.app_writes(2, 2, 7)
    assert tx.enter() == 0
    tx.app_writes(head, cur, 7)
    assert tx.enter() == -1


def test_a_transmit_head_moved_back_behind_the_last_sync_is_a_breach(tx):
    tx.app_writes(3, 3, 7)
    assert tx.enter() == 0 and tx.pending() == 3
    tx.app_writes(1, 3, 7)
    assert tx.enter() == -1


def test_reinitialising_wipes_bad_indexes_and_lengths_and_keeps_good_ones(rx):
    rx.app_slot(0, 0xFFFFFFFF, 60)
    rx.app_slot(1, 3, 60000)
    rx.app_writes(5, 5, 0)
    assert rx.enter() == -1
    slots = rx.read()[1]
    assert slots[0][:2] == (0, 0) and slots[1][:2] == (3, 0) and slots[2][:2] == (4, 1792)


def test_what_the_app_writes_into_tail_is_repaired(rx):
    rx.fill([60] * 2)
    rx.app_writes(0, 0, 6)
    assert rx.enter() == 0
    rx.fill([60])
    assert fixed(rx)["tail"] == 3


def test_forwarding_exchanges_buffers_and_loses_none():
    a, b = Core(4, RX, 2), Core(4, TX, 6)
    a.fill([100, 200, 300])
    assert Core.lib.ring_swap_all(a.p, b.p) == 3
    sent = b.read()[1][:3]
    assert [s[0] for s in sent] == [2, 3, 4] and [s[1] for s in sent] == [100, 200, 300]
    assert {s[0] for s in a.read()[1]} | {s[0] for s in b.read()[1]} == set(range(2, 10)), "eight buffers, each in one slot"
    a.free()
    b.free()
