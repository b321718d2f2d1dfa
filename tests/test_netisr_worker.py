"""netisr(9), queues and workers: rows N-W of the specification, and N-S5."""

import errno
import os
import select
import threading
import time

import pytest
from netisr_lab import Lab, numbered

from pktring.engine.netisr import INTERNAL, NO_PORT

RUNNING, DISPATCHING, SCHEDULED = 1, 2, 4


@pytest.fixture
def lab():
    with Lab(2, maxqlimit=256) as lab:
        lab.register("ip", 1, qlimit=8)
        yield lab


def test_N_W1_below_the_limit_it_is_appended(lab):
    for i in range(4):
        assert lab.queue(0, 1, [bytes([i])]) == 0
        assert lab.work() == lab.work() | {"len": i + 1, "watermark": i + 1, "queued": i + 1, "qdrops": 0, "handled": 0}
        assert lab.pending() == 1 << 1
    lab.serve()
    assert lab.frames() == [bytes([i]) for i in range(4)]
    lab.queue(0, 1, [b"x"])
    assert lab.work() == lab.work() | {"len": 1, "watermark": 4}


def test_N_W2_at_the_limit_the_tail_is_dropped_and_freed(lab):
    free = lab.pools[0].free
    assert lab.queue(0, 1, numbered(12)) == -errno.ENOBUFS
    assert lab.work() == lab.work() | {"len": 8, "watermark": 8, "queued": 8, "qdrops": 4}
    assert lab.pools[0].free == free - 8
    assert lab.queue(1, 1, numbered(2), source=0) == -errno.ENOBUFS
    assert lab.work() == lab.work() | {"len": 8, "watermark": 8, "queued": 8, "qdrops": 6}
    lab.serve()
    assert lab.frames() == numbered(8)  # never the head
    lab.check()


def test_N_W2_the_limit_counts_frames_not_slots(lab):
    big = [bytes([i]) * 1000 for i in range(10)]  # four slots each
    assert lab.queue(0, 1, big) == -errno.ENOBUFS
    assert lab.work() == lab.work() | {"len": 8, "queued": 8, "qdrops": 2} and lab.pools[0].count()["inflight"] == 32
    lab.serve()
    assert lab.frames() == big[:8] and lab.work()["handled"] == 8 and lab.work()["watermark"] == 8
    assert lab.pools[0].count()["owned"] == lab.pools[0].count()["inflight"] == 0


def test_a_lane_whose_slots_are_full_refuses_whole_frames():
    with Lab(1, maxqlimit=64, defaultqlimit=64) as lab:
        lab.register()
        assert lab.netisr.capacity == 128
        big = [bytes([i]) * 1000 for i in range(40)]
        assert [lab.queue(0, 1, big[i : i + 10]) for i in range(0, 40, 10)] == [0, 0, 0, -errno.ENOBUFS]
        assert lab.work() == lab.work() | {"len": 32, "queued": 32, "qdrops": 8}
        lab.serve()
        assert lab.frames() == big[:32]
        lab.check()


def test_N_W3_a_burst_to_an_idle_worker_wakes_it_once(lab):
    lab.queue(0, 1, numbered(5))
    for i in range(3):
        lab.queue(0, 1, [bytes([i])])
    lab.queue(1, 1, [b"x"], source=0)
    assert (lab.wakes(0), lab.wakes(1)) == (1, 0) and lab.flags() == SCHEDULED
    lab.serve()
    assert lab.flags() == 0
    lab.queue(1, 1, [b"x"], source=0)
    assert (lab.wakes(0), lab.wakes(1)) == (1, 1)


@pytest.mark.parametrize("flags", ["running", "dispatching"])
def test_N_W3_a_busy_worker_is_not_woken(lab, flags):
    lab.netisr.set_dispatch("hybrid")
    lab.hooks.append(lambda end, proto, frames: lab.queue(1, 1, numbered(3), source=0))
    (lab.queue if flags == "running" else lab.dispatch)(0, 1, [b"x"])
    lab.serve()
    assert lab.wakes(1) == 0 and len(lab.frames()) == 4


def test_N_W3_the_bell_rings_only_for_a_sleeper(lab):
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    try:
        lab.ends = []
        with Lab(2, maxqlimit=256, bells=bells) as lab:
            lab.register()
            lab.queue(0, 1, [b"awake"])
            assert not select.select(bells, [], [], 0)[0]
            lab.serve()
            asleep = threading.Thread(target=lambda: woke.append(lab.ends[1].wait(100)))
            woke, deadline = [], time.monotonic() + 10
            asleep.start()
            while not lab.netisr.workstream(1)[5]:
                assert time.monotonic() < deadline
            lab.queue(0, 1, [b"x"], source=1)
            asleep.join(10)
            assert woke == [True] and lab.wakes(0) == 2
    finally:
        for bell in bells:
            os.close(bell)


def test_N_W4_a_worker_woken_while_dispatching_does_nothing(lab):
    lab.netisr.set_dispatch("hybrid")
    got = []

    def inside(end, proto, frames):
        lab.queue(1, 1, [b"queued"], source=0)
        got.append((end.serve(), lab.flags(), lab.pending()))

    lab.hooks.append(inside)
    lab.dispatch(0, 1, [b"x"])
    assert got == [(0, DISPATCHING, 2)] and lab.frames() == [b"x"]
    assert lab.flags() == SCHEDULED and lab.ends[0].ready()
    lab.serve()
    assert lab.frames() == [b"x", b"queued"]


def test_a_handler_cannot_make_its_worker_serve(lab):
    got = []
    lab.hooks.append(lambda end, proto, frames: lab.queue(0, 1, [b"later"]) or got.append(end.serve()))
    lab.queue(0, 1, [b"x"])
    lab.serve()
    assert got == [0] and lab.frames() == [b"x", b"later"]


def test_N_W5_protocols_are_served_in_ascending_order_once_a_snapshot(lab):
    for proto in (15, 0, 9, 4):
        lab.register(f"p{proto}", proto)
    lab.ends[0].budget = 10**6
    flags = []
    lab.hooks.append(lambda end, proto, frames: flags.append(lab.flags()))
    for proto in (15, 9, 1, 4, 0):
        lab.queue(0, proto, [bytes([proto])])
    lab.ends[0].serve()
    assert [proto for _, proto, _ in lab.seen] == [0, 1, 4, 9, 15]
    assert flags == [RUNNING] and lab.flags() == 0 and lab.pending() == 0  # SCHEDULED was cleared at the start


def test_N_W6_effective_depth_is_twice_the_limit(lab):
    lab.netisr.setqlimit(1, 4)
    results = []

    def block(end, proto, frames):
        """On the first of four."""
        results.extend(lab.queue(0, 1, [b"m%d" % i]) for i in range(5))
        results.append(lab.work()["len"])

    lab.hooks.append(block)
    assert lab.queue(0, 1, numbered(4)) == 0
    lab.serve()
    assert results == [0, 0, 0, 0, -errno.ENOBUFS, 4]
    assert lab.frames() == [*numbered(4), b"m0", b"m1", b"m2", b"m3"]
    assert lab.work() == lab.work() | {"queued": 8, "qdrops": 1, "handled": 8, "watermark": 4, "len": 0}
    lab.check()


def test_N_W6_a_long_queue_is_detached_at_once(lab):
    """It is handled in several bursts, and counts as taken from the first on."""
    lab.netisr.setqlimit(1, 200)
    for i in range(4):
        lab.queue(0, 1, numbered(50, 50 * i))
    found = []
    lab.hooks.append(lambda end, proto, frames: found.append((len(frames), lab.work()["len"], lab.queue(1, 1, [b"x"], source=0))))
    lab.serve()
    assert found == [(64, 0, 0)] and lab.frames() == [*numbered(200), b"x"]


def test_N_W7_arrivals_for_the_same_protocol_wait_for_the_others(lab):
    lab.register("arp", 4)
    lab.hooks.append(lambda end, proto, frames: lab.queue(0, 1, [b"again"]) or lab.queue(0, 4, [b"more"]))
    lab.queue(0, 1, [b"first"])
    lab.queue(0, 4, [b"second"])
    lab.serve()
    assert [frame for _, _, frame in lab.seen] == [b"first", b"second", b"more", b"again"]


def test_N_W8_drained_is_called_once_after_a_batch(lab):
    lab.register("epair", 8, drainedcpu="m:d", qlimit=200)
    for i in range(4):
        lab.queue(0, 8, numbered(50, i))
    lab.queue(0, 1, [b"x"])
    lab.serve()
    assert lab.drained == [(0, 8, 0)] and len(lab.frames(8)) == 200  # three bursts, one batch
    lab.queue(0, 8, [b"x"])
    lab.serve()
    assert lab.drained == [(0, 8, 0)] * 2 and lab.work(8)["drained"] == 2


def test_N_W8_drained_gets_the_cpu_not_the_workstream():
    with Lab(2, cpus=(3, 5)) as lab:
        lab.register("epair", 8, drainedcpu="m:d")
        lab.queue(0, 8, [b"x"], source=1)
        lab.serve()
        assert lab.drained == [(1, 8, 5)]


def test_N_W8_never_for_direct_hybrid_or_an_empty_queue(lab):
    lab.register("epair", 8, drainedcpu="m:d")
    for policy in ("direct", "hybrid"):
        lab.netisr.set_dispatch(policy)
        lab.dispatch(0, 8, [b"x"])
    lab.queue(0, 8, [b"x"])
    lab.netisr.unregister_vnet(8, 0)
    lab.serve()
    assert lab.drained == [] and lab.pending() == 0


def test_N_W9_a_pending_bit_over_an_empty_queue_is_cleared(lab):
    lab.queue(0, 1, numbered(3))
    lab.netisr.unregister_vnet("ip", 0)
    assert lab.work()["len"] == 0 and lab.work()["purged"] == 3 and lab.pending() == 2
    deadline = time.monotonic() + 5
    turns = 0
    while lab.ends[0].serve():
        turns += 1
        assert turns < 10 and time.monotonic() < deadline
    assert lab.pending() == 0 and lab.flags() == 0 and not lab.ends[0].ready() and not lab.seen
    lab.check()


def test_N_W10_handled_grows_after_the_batch(lab):
    found = []
    lab.hooks.append(lambda end, proto, frames: found.append((len(frames), lab.work()["handled"], lab.work()["len"])))
    lab.queue(0, 1, numbered(5))
    lab.serve()
    assert found == [(5, 0, 0)] and lab.work()["handled"] == 5


def test_N_W10_frames_of_a_port_that_is_gone_are_handled_unseen(lab):
    for port in (4, 5, 6):
        lab.netisr.set_port(port, 100 * port)
    for port in (4, 5, 6, NO_PORT):
        lab.queue(0, 1, [port.to_bytes(2)], source=port % 2, port=port)
    lab.netisr.drop_port(4)
    lab.netisr.set_port(5, 500)  # the same interface, another life
    free = lab.pools[0].free
    lab.serve()
    assert sorted(lab.frames()) == [(6).to_bytes(2), NO_PORT.to_bytes(2)]
    assert sum(lab.work(1, ws)["handled"] for ws in range(2)) == 4 and sum(lab.work(1, ws)["purged"] for ws in range(2)) == 0
    assert lab.pools[0].free == free + 4
    lab.check()


def test_N_W10_a_port_that_lives_on_is_not_gone(lab):
    lab.netisr.set_port(4, 1)
    lab.queue(0, 1, [b"x"], source=1, port=4)
    lab.netisr.set_port(5, 1)
    lab.serve()
    assert lab.frames() == [b"x"]


def test_N_W11_a_handler_is_told_the_vnet_of_the_receive_interface(lab):
    vnets = [0, lab.netisr.make_vnet(), lab.netisr.make_vnet()]
    for port, vnet in enumerate(vnets):
        lab.netisr.set_port(port, 10, vnet)
        lab.netisr.register_vnet("ip", vnet)
    found = []
    lab.ends[0].handle = lambda proto, descs: found.extend(lab.ends[0].read(descs))
    for policy in ("direct", "deferred"):
        lab.netisr.set_dispatch(policy)
        for port in (*range(3), NO_PORT):
            lab.dispatch(0, 1, [b"x"], port=port)
        lab.serve()
    assert [(port, vnet) for _, port, _, vnet in found] == [(0, 0), (1, vnets[1]), (2, vnets[2]), (NO_PORT, 0)] * 2


def test_N_S5_a_worker_woken_for_nothing_does_nothing(lab):
    assert lab.ends[0].serve() == 0 and not lab.ends[0].ready()
    lab.queue(0, 1, [b"x"])
    lab.serve()
    assert lab.ends[0].serve() == 0 and lab.flags() == 0


def test_a_serve_ends_at_its_budget_and_the_next_goes_on(lab):
    lab.register("arp", 4)
    lab.netisr.setqlimit(1, 256)
    for i in range(4):
        lab.queue(0, 1, numbered(64, 64 * i))
    lab.queue(0, 4, [b"arp"])
    lab.ends[0].budget = 100
    assert [lab.ends[0].serve() for _ in range(4)] == [128, 128, 1, 0]
    assert lab.frames() == numbered(256) and lab.frames(4) == [b"arp"] and lab.flags() == 0


def test_a_batch_is_whole_frames_of_all_producers_in_their_order(lab):
    lab.netisr.setqlimit(1, 256)
    sent = {who: [bytes([who, i]) * (400 if i % 3 else 20) for i in range(40)] for who in range(3)}
    for who, frames in sent.items():
        for i in range(0, 40, 20):
            assert lab.queue(who, 1, frames[i : i + 20], source=0) == 0
    sizes = []
    for _ in range(20):
        lab.hooks.append(lambda end, proto, frames: sizes.append(len(frames)))
    lab.serve()
    for who, frames in sent.items():
        assert [f for f in lab.frames() if f[0] == who] == frames
    assert sum(sizes) == 120 and max(sizes) <= 64
    lab.check()


@pytest.mark.parametrize("call", ["queue_src", "dispatch_src"])
def test_holes_in_a_batch_are_nobodys(lab, call):
    """A frame whose buffer went elsewhere: it is neither queued, nor handled, nor counted."""
    for policy in ("deferred", "hybrid", "direct"):
        lab.netisr.set_dispatch(policy)
        a, b = lab.make(0, [b"a", b"b"])
        assert getattr(lab.ends[0], call)(1, 0, [0, a, 0, b, 0]) == 0
        lab.serve()
    assert lab.frames() == [b"a", b"b"] * 3 and lab.work()["handled"] == 6
    lab.check()


# ---- the internal protocol ----


def test_frames_of_the_engine_itself_are_whole_or_refused():
    with Lab(2, maxqlimit=64, defaultqlimit=64) as lab:
        end = lab.ends[0]
        one = end.make(b"x", NO_PORT, None)
        assert end.put(INTERNAL, 1, one) == 0  # not yet made
        lab.netisr.open_lanes(INTERNAL)
        assert end.put(INTERNAL, 1, one) == 1
        assert end.put(INTERNAL, 2, one) == 0 == end.put(1, 0, one)  # no such workstream; not internal
        chain = end.make(bytes(1000), NO_PORT, None)
        while end.put(INTERNAL, 1, chain) == 4:
            chain = end.make(bytes(1000), NO_PORT, None)
        assert len(chain) == 4 and lab.pools[0].owns(chain[0] & 0xFFFFFFFF)  # refused: still mine, whole
        end.free(chain)
        assert lab.pending(1) == 1 << 16
        assert not lab.netisr.registered() and not lab.netisr.tables()["protocol"]
        lab.serve()
        assert len(lab.frames(INTERNAL, 1)) == 1 + 127 // 4
        assert lab.pools[0].count()["owned"] == lab.pools[0].count()["inflight"] == 0


def test_frames_of_the_engine_come_last_and_know_no_limit_and_no_vnet(lab):
    lab.netisr.open_lanes(INTERNAL)
    lab.ends[1].put(INTERNAL, 0, lab.make(1, numbered(20)))
    lab.queue(0, 1, [b"ip"])
    lab.netisr.set_port(0, 1)
    lab.netisr.drop_port(0)
    lab.serve()
    assert lab.seen[0] == (0, 1, b"ip") and lab.frames(INTERNAL) == numbered(20)


# ---- several that look at the same moment ----


def test_producers_that_look_together_admit_at_most_a_burst_too_many_and_it_is_counted(lab):
    """Stopped between looking and putting, in m2flow's place: the other fills the queue meanwhile."""
    lab.netisr.unregister("ip")
    lab.register("ip", 1, qlimit=8)
    stop = threading.Event()
    seen = []

    def flood(who):
        while not stop.is_set():
            lab.queue(who, 1, numbered(4))
            seen.append(lab.work()["len"])

    threads = [threading.Thread(target=flood, args=(who,)) for who in range(3)]
    for t in threads:
        t.start()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        lab.ends[0].serve()
    stop.set()
    for t in threads:
        t.join()
    lab.serve()
    assert max(seen) <= 8 + 2 * 4
    lab.check()
