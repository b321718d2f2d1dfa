"""netisr(9), dispatch: rows N-D of the specification."""

import errno
import random

import pytest
from netisr_lab import Lab, numbered

RUNNING, DISPATCHING, SCHEDULED = 1, 2, 4


@pytest.fixture
def lab():
    with Lab(2, maxqlimit=256) as lab:
        yield lab


def counts(lab, proto=1, ws=0):
    work = lab.work(proto, ws)
    return tuple(work[key] for key in ("dispatched", "hybrid_dispatched", "queued", "handled"))


@pytest.mark.parametrize("policy", ["deferred", "hybrid", "direct"])
@pytest.mark.parametrize("own", ["deferred", "hybrid", "direct", "default"])
def test_N_D1_the_protocols_policy_comes_before_the_global_one(lab, policy, own):
    assert lab.netisr.settings()["dispatch"] == "direct"  # initially
    lab.netisr.set_dispatch(policy)
    lab.register("ip", 1, dispatch=own)
    lab.dispatch(0, 1, [b"x"])
    in_force = policy if own == "default" else own
    assert counts(lab) == {"deferred": (0, 0, 1, 0), "hybrid": (0, 1, 0, 1), "direct": (1, 0, 0, 1)}[in_force]


def test_N_D1_it_may_change_at_any_moment(lab):
    lab.register("ip", 1)
    for policy, want in (("deferred", (0, 0, 1, 0)), ("direct", (1, 0, 1, 1))):
        lab.netisr.set_dispatch(policy)
        lab.dispatch(0, 1, [b"x"])
        assert counts(lab) == want


@pytest.mark.parametrize("own", ["deferred", "hybrid", "direct", "default"])
def test_N_D2_queue_always_defers(lab, own):
    lab.register("ip", 1, dispatch=own)
    lab.queue(0, 1, numbered(3))
    assert counts(lab) == (0, 0, 3, 0) and not lab.seen
    lab.serve()
    assert counts(lab) == (0, 0, 3, 3)


def test_N_D2_without_source_is_source_zero(lab):
    lab.register("ip", 1, dispatch="deferred")
    for call in (lab.queue, lab.dispatch):
        call(1, 1, [b"x"])
    assert lab.work(1, 0)["len"] == 2


@pytest.mark.parametrize("policy", ["deferred", "hybrid", "direct"])
@pytest.mark.parametrize("call", ["queue", "dispatch"])
def test_N_D3_a_vnet_without_the_protocol(lab, policy, call):
    lab.netisr.set_dispatch(policy)
    lab.register("ip", 1)
    vnet = lab.netisr.make_vnet()
    lab.netisr.set_port(5, 77, vnet)
    assert getattr(lab, call)(0, 1, numbered(3), port=5) == -errno.ENOPROTOOPT
    assert not any(any(lab.work(1, ws)[key] for key in lab.work() if key != "noproto") for ws in range(2))
    assert lab.netisr.done_by(1, 0)["noproto"] == 3 and not lab.seen
    lab.check()
    assert getattr(lab, call)(0, 1, [b"x"], port=6) == 0  # the default vnet has it


def test_N_D3_frames_of_both_kinds_in_one_burst(lab):
    lab.register("ip", 1)
    lab.netisr.set_port(5, 77, lab.netisr.make_vnet())
    ends = lab.ends[0]
    mixed = [d for i, frame in enumerate(numbered(9)) for d in ends.make(frame, 5 if i % 3 == 1 else 6, None)]
    assert ends.dispatch_src(1, 0, mixed) == -errno.ENOPROTOOPT
    assert lab.frames() == [frame for i, frame in enumerate(numbered(9)) if i % 3 != 1]
    assert lab.netisr.done_by(1, 0)["noproto"] == 3
    lab.check()


@pytest.mark.parametrize("call", ["queue", "dispatch"])
def test_N_D3_before_anything_is_asked_of_the_policy(lab, call):
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.netisr.set_port(5, 77, lab.netisr.make_vnet())

    def never(proto, descs):
        raise AssertionError

    lab.ends[0].m2flow = never
    assert getattr(lab, call)(0, 1, [b"x"], port=5) == -errno.ENOPROTOOPT


@pytest.mark.parametrize("call", ["queue", "dispatch"])
@pytest.mark.parametrize(("proto", "number"), [(3, errno.ENOPROTOOPT), (16, errno.EINVAL), (2**32 - 1, errno.EINVAL)])
def test_a_protocol_that_is_not_there(lab, call, proto, number):
    assert getattr(lab, call)(0, proto, numbered(2)) == -number
    lab.check()


def test_N_D4_deferred_is_queue_src(lab):
    lab.register("ip", 1, dispatch="deferred", qlimit=4)
    assert lab.dispatch(0, 1, numbered(3), source=1) == 0
    assert lab.dispatch(0, 1, numbered(3), source=1) == -errno.ENOBUFS
    assert lab.work(1, 1) == lab.work(1, 1) | {"len": 4, "queued": 4, "qdrops": 2, "watermark": 4}


def test_N_D5_direct_runs_before_it_returns_and_counts_before_it_runs(lab):
    lab.register("ip", 1)
    seen = []
    lab.hooks.append(lambda end, proto, frames: seen.append((counts(lab), lab.flags(), lab.pending())))
    assert lab.dispatch(0, 1, numbered(3), source=1) == 0
    assert lab.frames(1, 0) == numbered(3)  # no placement: source 1 would be workstream 1's
    assert seen == [((3, 0, 0, 3), 0, 0)]
    lab.check()


def test_N_D5_direct_ignores_limit_and_placement(lab):
    lab.register("ip", 1, "flow", m2flow="m:f", qlimit=1)
    lab.netisr.setqlimit("ip", 0)

    def never(proto, descs):
        raise AssertionError

    lab.ends[0].m2flow = never
    assert lab.dispatch(0, 1, numbered(64)) == 0 and len(lab.seen) == 64


def test_N_D6_direct_overtakes_what_is_queued(lab):
    lab.register("ip", 1)
    lab.queue(0, 1, [b"first"])
    lab.dispatch(0, 1, [b"second"])
    lab.serve()
    assert lab.frames() == [b"second", b"first"]


def test_N_D7_direct_without_a_workstream_counts_where_no_table_looks(lab):
    lab.register("ip", 1)
    assert lab.dispatch(2, 1, numbered(2)) == 0
    assert lab.frames(1, 2) == numbered(2)
    assert lab.netisr.done_by(1, 2)["dispatched"] == 2
    assert not any(row["dispatched"] or row["handled"] for row in lab.netisr.tables()["work"])


def test_hybrid_without_a_workstream_queues(lab):
    lab.register("ip", 1, dispatch="hybrid")
    assert lab.dispatch(2, 1, numbered(2), source=1) == 0
    assert not lab.seen and lab.work(1, 1)["len"] == 2


def test_N_D8_hybrid_for_another_cpu_is_queued_there(lab):
    lab.register("ip", 1, dispatch="hybrid")
    assert lab.dispatch(0, 1, numbered(2), source=1) == 0
    assert not lab.seen and counts(lab, ws=1) == (0, 0, 2, 0) and counts(lab) == (0, 0, 0, 0)
    assert lab.flags(0) == 0 and lab.flags(1) == SCHEDULED


def test_N_D8_a_burst_is_parted(lab):
    lab.register("ip", 1, "flow", dispatch="hybrid")
    descs = [d for i, frame in enumerate(numbered(10)) for d in lab.ends[0].make(frame, 0, i)]
    assert lab.ends[0].dispatch_src(1, 0, descs) == 0
    assert lab.frames(1, 0) == numbered(10)[::2] and counts(lab) == (0, 5, 0, 5) and counts(lab, ws=1) == (0, 0, 5, 0)
    lab.serve()
    assert lab.frames(1, 1) == numbered(10)[1::2]
    lab.check()


def test_N_D9_own_cpu_scheduled_is_queued(lab):
    lab.register("ip", 1, dispatch="hybrid")
    lab.queue(0, 1, [b"first"])
    assert lab.flags() == SCHEDULED
    lab.dispatch(0, 1, [b"second"])
    assert not lab.seen and lab.work()["len"] == 2
    lab.serve()
    assert lab.frames() == [b"first", b"second"]


def test_N_D9_own_cpu_running_is_queued(lab):
    lab.register("ip", 1, dispatch="hybrid")
    flags = []

    def inside(end, proto, frames):
        flags.append(lab.flags())
        lab.dispatch(0, 1, [b"inner"])

    lab.hooks.append(inside)
    lab.queue(0, 1, [b"outer"])
    lab.serve()
    assert flags == [RUNNING] and lab.frames() == [b"outer", b"inner"] and counts(lab) == (0, 0, 2, 2)


def test_N_D9_running_between_two_parts_of_a_long_queue(lab):
    lab.register("ip", 1, dispatch="hybrid")
    lab.ends[0].budget = 64
    for i in range(2):
        lab.queue(0, 1, numbered(64, 64 * i))
    assert lab.ends[0].serve() == 64 and lab.flags() & RUNNING
    lab.dispatch(0, 1, [b"last"])
    lab.serve()
    assert lab.frames() == [*numbered(128), b"last"]


def test_N_D10_hybrid_runs_here_and_counts_afterwards(lab):
    lab.register("ip", 1, dispatch="hybrid")
    seen = []
    lab.hooks.append(lambda end, proto, frames: seen.append((counts(lab), lab.flags())))
    assert lab.dispatch(0, 1, numbered(3)) == 0
    assert seen == [((0, 0, 0, 0), DISPATCHING)] and counts(lab) == (0, 3, 0, 3) and lab.flags() == 0
    assert lab.wakes() == 0


def test_N_D11_what_came_meanwhile_is_the_workers(lab):
    lab.register("ip", 1, dispatch="hybrid")
    lab.hooks.append(lambda end, proto, frames: lab.queue(1, 1, [b"meanwhile"]))
    lab.dispatch(0, 1, [b"x"])
    assert lab.frames() == [b"x"] and lab.flags() == SCHEDULED
    assert lab.wakes(0) == 1 and lab.wakes(1) == 0  # the dispatcher wakes, once; the producer saw DISPATCHING
    lab.serve()
    assert lab.frames() == [b"x", b"meanwhile"]
    lab.check()


def test_N_D12_a_handler_that_dispatches_to_itself_is_not_entered_again(lab):
    lab.register("ip", 1, dispatch="hybrid")
    depth = []

    def inside(end, proto, frames):
        depth.append(len(depth))
        if len(depth) < 3:
            lab.hooks.append(inside)
            before = len(lab.seen)
            assert lab.dispatch(0, 1, [b"again%d" % len(depth)]) == 0
            assert len(lab.seen) == before

    lab.hooks.append(inside)
    lab.dispatch(0, 1, [b"x"])
    lab.serve()
    assert lab.frames() == [b"x", b"again1", b"again2"] and counts(lab) == (0, 1, 2, 3)


def test_N_D12_a_direct_protocol_may_be_entered_from_a_handler(lab):
    lab.register("ip", 1, dispatch="hybrid")
    lab.register("arp", 4, dispatch="direct")
    lab.hooks.append(lambda end, proto, frames: lab.dispatch(0, 4, [b"inner"]))
    lab.dispatch(0, 1, [b"outer"])
    assert lab.seen == [(0, 1, b"outer"), (0, 4, b"inner")] and counts(lab, 4) == (1, 0, 0, 1)
    lab.check()


@pytest.mark.parametrize("seed", range(5))
def test_N_D13_a_policy_that_changes_under_traffic_loses_and_doubles_nothing(lab, seed):
    r = random.Random(seed)
    lab.register("ip", 1, "flow", qlimit=256)
    sent = 0
    for _ in range(300):
        lab.netisr.set_dispatch(r.choice(["deferred", "hybrid", "direct"]))
        n = r.randint(1, 8)
        lab.dispatch(r.randrange(3), 1, numbered(n, sent), hash=r.randrange(50))
        sent += n
        if r.random() < 0.3:
            lab.ends[r.randrange(2)].serve()
    lab.serve()
    assert sorted(lab.frames()) == numbered(sent)
    lab.check()


@pytest.mark.parametrize("policy", ["deferred", "hybrid"])
@pytest.mark.parametrize("seed", range(5))
def test_N_D14_each_source_keeps_its_order(lab, policy, seed):
    """Per source and producer: a source's frames come in by one producer."""
    r = random.Random(seed)
    lab.netisr.set_dispatch(policy)
    lab.register("ip", 1, qlimit=256)
    at = dict.fromkeys(range(6), 0)
    for _ in range(300):
        source = r.randrange(6)
        frames = [bytes([source]) + (at[source] + i).to_bytes(4) for i in range(r.randint(1, 6))]
        at[source] += len(frames)
        if r.random() < 0.2:
            lab.hooks.append(lambda end, proto, frames: lab.ends[end.producer].ready())
        assert lab.dispatch(source % 3, 1, frames, source=source) == 0
        if r.random() < 0.3:
            lab.ends[r.randrange(2)].serve()
    lab.serve()
    for source, n in at.items():
        assert [f[1:] for f in lab.frames() if f[0] == source] == [i.to_bytes(4) for i in range(n)]
    lab.check()


def test_what_a_handler_raises_comes_out_after_the_burst(lab):
    lab.register("ip", 1, dispatch="direct")

    def broken(end, proto, frames):
        raise LookupError("in the handler")

    for call in (lab.dispatch, lab.queue):
        lab.hooks.append(broken)
        with pytest.raises(LookupError, match="in the handler"):
            call(0, 1, numbered(3))
            lab.serve()
    assert counts(lab) == (3, 0, 3, 6)
    lab.check()
