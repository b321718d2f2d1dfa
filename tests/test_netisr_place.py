"""netisr(9), placement: rows N-P of the specification. Array[i] is the CPU of workstream i."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netisr_lab import Lab, numbered

from pktring.engine.flow import flow_hash
from pktring.engine.netisr import NO_CPU, NO_PORT

W = 3


@pytest.fixture
def lab():
    with Lab(W, maxqlimit=256, cpus=(1, 3, 6)) as lab:
        yield lab


def never(*args):
    raise AssertionError("no callback may be called")


def where(lab, proto=1):
    """The workstream that has the only queued frame, which is then handled."""
    (ws,) = [ws for ws in range(lab.workers) if lab.work(proto, ws)["len"]]
    lab.serve()
    return ws


def test_N_P1_one_workstream_is_chosen_and_nobody_asked():
    with Lab(1) as lab:
        lab.register("flow", 1, "flow", m2flow="m:f")
        lab.register("cpu", 2, "cpu")
        lab.ends[0].m2flow = lab.ends[0].m2cpuid = never
        for proto in (1, 2):
            for source in (0, 1, 77):
                assert lab.queue(0, proto, [b"x"], source=source) == 0
        assert lab.work(1)["len"] == lab.work(2)["len"] == 3
        lab.netisr.set_dispatch("hybrid")
        lab.serve()
        assert lab.dispatch(0, 1, [b"x"]) == lab.dispatch(0, 2, [b"x"]) == 0


@pytest.mark.parametrize(("ifindex", "source"), [(0, 0), (1, 0), (4, 5), (2**32 - 1, 1), (2**32 - 1, 2**32 - 1), (7, 2**32 - 1)])
def test_N_P2_source_is_the_interface_and_the_source_in_64_bits(lab, ifindex, source):
    lab.netisr.set_port(9, ifindex)
    lab.register("ip", 1, "source")
    lab.queue(0, 1, [b"x"], source=source, port=9, hash=1)
    assert where(lab) == (ifindex + source) % W
    lab.queue(0, 1, [b"x"], source=source, port=9)
    assert where(lab) == (ifindex + source) % W  # a flow id changes nothing


@pytest.mark.parametrize("port", [NO_PORT, 8, 256, 40000])
def test_N_P2_without_interface_it_is_the_source(lab, port):
    lab.netisr.set_port(9, 1)
    lab.register("ip", 1, "source")
    for source in (0, 1, 2, 5, 2**32 - 1):
        lab.queue(0, 1, [b"x"], source=source, port=port)
        assert where(lab) == source % W
    lab.netisr.drop_port(9)
    lab.queue(0, 1, [b"x"], source=4, port=9)
    assert where(lab) == 4 % W


@pytest.mark.parametrize("hash", [0, 1, 2, 3, 2**31, 2**32 - 1])
def test_N_P3_flow_with_a_hash_asks_nobody(lab, hash):
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.ends[0].m2flow = never
    lab.queue(0, 1, [b"x"], source=1, hash=hash)
    assert where(lab) == hash % W


def test_N_P4_flow_without_hash_asks_m2flow(lab):
    asked = []
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.ends[0].m2flow = lambda proto, descs: asked.append((proto, lab.ends[0].read(descs)[0][0])) or 7
    lab.queue(0, 1, [b"frame"], source=2)
    assert asked == [(1, b"frame")] and where(lab) == 7 % W


def test_N_P4_what_m2flow_found_stays_with_the_frame(lab):
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.ends[0].m2flow = lambda proto, descs: 0xABCD
    found = []
    lab.queue(0, 1, [b"frame"])
    ws = 0xABCD % W
    lab.ends[ws].handle = lambda proto, descs: found.extend(lab.ends[ws].read(descs))
    lab.serve()
    assert found == [(b"frame", NO_PORT, 0xABCD, 0)]


def test_N_P4_m2flow_that_finds_none_falls_back_to_the_source(lab):
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.ends[0].m2flow = lambda proto, descs: None
    for source in range(5):
        lab.queue(0, 1, [b"x"], source=source)
        assert where(lab) == source % W


def test_N_P5_flow_without_hash_and_m2flow_is_by_source(lab):
    lab.netisr.set_port(0, 10)
    lab.register("ip", 1, "flow")
    lab.ends[0].m2flow = never  # this process has one, the registration does not
    for source in range(5):
        lab.queue(0, 1, [b"x"], source=source, port=0)
        assert where(lab) == (10 + source) % W


def test_N_P3_headers_make_the_hash_where_none_came(tmp_path):
    frame = bytes(12) + b"\x08\x00" + bytes.fromhex("4500003000000000400600000a0000010a000002") + bytes.fromhex("04d20050") + bytes(16)
    with Lab(W, flows="microsoft") as lab:
        lab.register("ip", 1, "flow", m2flow="m:f")
        lab.ends[0].m2flow = lambda proto, descs: 1
        lab.queue(0, 1, [frame], source=2)
        hashed, kind = flow_hash(frame)
        assert kind == "tcp4" and where(lab) == hashed % W
        lab.queue(0, 1, [b"no header"], source=2)
        assert where(lab) == 1  # what has none is m2flow's


@pytest.mark.parametrize("v", [0, 1, 2, 3, 4, 2**31, NO_CPU - 1])
def test_N_P6_what_m2cpuid_says_is_an_index(lab, v):
    """And not mapped a second time: with workers on CPUs 1, 3 and 6 the BSD's double mapping would send all to two of them."""
    lab.register("epair", 8, "cpu")
    lab.ends[0].m2cpuid = lambda proto, descs, source: v
    lab.queue(0, 8, [b"x"], source=1)
    ws = where(lab, 8)
    assert ws == v % W and lab.netisr.cpuid(v) == (1, 3, 6)[v % W]


def test_N_P6_every_workstream_is_reached(lab):
    lab.register("epair", 8, "cpu")
    turn = iter(range(30))
    lab.ends[0].m2cpuid = lambda proto, descs, source: next(turn)
    lab.queue(0, 8, numbered(30))
    assert [lab.work(8, ws)["len"] for ws in range(W)] == [10, 10, 10]


def test_N_P6_m2cpuid_is_told_the_source(lab):
    lab.register("epair", 8, "cpu")
    asked = []
    lab.ends[0].m2cpuid = lambda *args: asked.append(args[::2]) or 0
    lab.queue(0, 8, [b"x"], source=2**32 - 1)
    assert asked == [(8, 2**32 - 1)]


@pytest.mark.parametrize("answer", [None, NO_CPU])
def test_N_P7_no_cpu_queued_is_by_source(lab, answer):
    lab.register("epair", 8, "cpu")
    lab.netisr.set_port(3, 100)
    lab.ends[1].m2cpuid = lambda proto, descs, source: answer
    for source in range(4):
        lab.queue(1, 8, [b"x"], source=source, port=3)
        assert where(lab, 8) == (100 + source) % W


@pytest.mark.parametrize("who", range(W))
def test_N_P7_no_cpu_in_hybrid_is_the_callers_cpu_as_an_index(lab, who):
    """Worker 0 is on CPU 1, which is workstream 1's index: another one. Worker 2 on CPU 6: workstream 0. As in the BSD."""
    lab.register("epair", 8, "cpu", dispatch="hybrid")
    lab.ends[who].m2cpuid = lambda proto, descs, source: None
    assert lab.dispatch(who, 8, [b"x"], source=1) == 0
    index = (1, 3, 6)[who] % W
    if index == who:
        assert lab.frames(8, who) == [b"x"] and lab.work(8, who)["hybrid_dispatched"] == 1
    else:
        assert lab.frames(8) == [] and where(lab, 8) == index


@pytest.mark.parametrize("who", range(W))
def test_N_P7_it_is_direct_where_cpu_and_index_agree(who):
    with Lab(W) as lab:
        lab.register("epair", 8, "cpu", dispatch="hybrid")
        lab.ends[who].m2cpuid = lambda proto, descs, source: None
        lab.dispatch(who, 8, numbered(3))
        assert lab.frames(8, who) == numbered(3)


@pytest.mark.parametrize(("policy", "callback"), [("flow", "m2flow"), ("cpu", "m2cpuid")])
def test_N_P8_a_frame_that_a_callback_kept(lab, policy, callback):
    kept = []
    lab.register("p", 1, policy, **{callback: "m:f"})

    def keep(proto, descs, source=0):
        if lab.ends[0].read(descs)[0][0] in (b"k1", b"k2"):
            kept.extend(descs)
            return False
        return 1

    setattr(lab.ends[0], callback, keep)
    assert lab.queue(0, 1, [b"a", b"k1", b"b", b"k2"]) == -errno.ENOBUFS
    before = {"queued": 2, "len": 2, "qdrops": 0}
    assert {key: lab.work(1, 1)[key] for key in before} == before
    assert lab.netisr.done_by(1, 0) == {"dispatched": 0, "hybrid_dispatched": 0, "noproto": 0, "nobufs": 2, "wakes": 1}
    assert sum(sum(lab.work(1, ws)[key] for key in ("queued", "qdrops", "handled")) for ws in (0, 2)) == 0
    assert [frame for frame, *_ in lab.ends[0].read(kept)] == [b"k1", b"k2"]  # they are the callback's
    lab.ends[0].free(kept)
    lab.serve()
    assert lab.frames() == [b"a", b"b"]
    lab.check()


def test_N_P8_in_hybrid(lab):
    lab.register("p", 1, "flow", dispatch="hybrid", m2flow="m:f")
    lab.ends[0].m2flow = lambda proto, descs: lab.ends[0].free(descs) or False
    assert lab.dispatch(0, 1, numbered(3)) == -errno.ENOBUFS
    assert lab.netisr.done_by(1, 0)["nobufs"] == 3 and not lab.seen and lab.pools[0].refused == 0
    lab.check()


@given(st.integers(0, 2**32 - 1), st.integers(1, W))
def test_N_P9_the_maps_are_total_and_equal_for_equal_arguments(n, active):
    netisr = shared_lab().netisr
    netisr.set_active(active)
    assert netisr.cpuid(n) == netisr.flow2cpu(n) == netisr.cpuid(n) == (1, 3, 6)[n % active]
    assert netisr.settings()["maxthreads"] == W and netisr.active == active


_shared = []


def shared_lab():
    if not _shared:
        _shared.append(Lab(W, maxqlimit=64, cpus=(1, 3, 6), defaultqlimit=64))
    return _shared[0]


@pytest.fixture(scope="module", autouse=True)
def _close():
    yield
    while _shared:
        _shared.pop().close()


def test_N_P10_the_frame_that_a_callback_returns_is_used(lab):
    lab.register("p", 1, "flow", m2flow="m:f")

    def other(proto, descs):
        lab.ends[0].free(descs)
        return 1, lab.ends[0].make(b"other", 2, None)

    lab.ends[0].m2flow = other
    got = []
    lab.ends[1].handle = lambda proto, descs: got.extend(lab.ends[1].read(descs))
    assert lab.queue(0, 1, [b"one"], port=5) == 0
    lab.serve()
    assert got == [(b"other", 2, 1, 0)] and lab.pools[0].refused == 0
    lab.check()


def test_N_P10_for_policy_cpu_too(lab):
    lab.register("p", 1, "cpu")
    lab.ends[0].m2cpuid = lambda proto, descs, source: lab.ends[0].free(descs) or (2, lab.ends[0].make(b"other", NO_PORT, None))
    lab.queue(0, 1, [b"one"])
    lab.serve()
    assert lab.frames(1, 2) == [b"other"]
    lab.check()


def test_a_burst_is_spread_and_keeps_its_order(lab):
    lab.register("ip", 1, "flow")
    descs = [d for i in range(60) for d in lab.ends[0].make(i.to_bytes(4), NO_PORT, i * 7 % 11)]
    assert lab.ends[0].queue_src(1, 0, descs) == 0
    lab.serve()
    for ws in range(W):
        assert lab.frames(1, ws) == [i.to_bytes(4) for i in range(60) if i * 7 % 11 % W == ws]


def test_what_a_callback_raises_comes_out_and_the_frame_goes_by_source(lab):
    lab.register("ip", 1, "flow", m2flow="m:f")

    def broken(proto, descs):
        raise LookupError("in m2flow")

    lab.ends[0].m2flow = broken
    with pytest.raises(LookupError, match="in m2flow"):
        lab.queue(0, 1, [b"x"], source=1)
    assert lab.work(1, 1)["len"] == 1
    lab.check()
