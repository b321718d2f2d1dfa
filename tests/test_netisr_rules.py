"""netisr(9), registration, limits and drops: rows N-K, N-R, N-U, N-Q of the specification."""

import errno
import mmap

import pytest
from netisr_lab import Lab, numbered

from pktring.engine import _engine, netisr_rules
from pktring.engine.netisr import INTERNAL, Handler, Netisr, Refused
from pktring.engine.netisr_rules import check, short

GOOD = {"name": "ip", "proto": 1, "handler": "m:h"}


def registered(**given):
    return check(Handler(**GOOD | given), {}, 256, 10240)


def refuses(**given):
    """The errno of what is refused."""
    with pytest.raises(Refused) as refused:
        registered(**given)
    assert refused.value.code == "E_NETISR" and errno.errorcode[refused.value.errno] in str(refused.value)
    return refused.value.errno


@pytest.fixture
def lab():
    with Lab(2, maxqlimit=64, defaultqlimit=16) as lab:
        yield lab


# ---- N-K: constants ----


def test_N_K1_protocol_numbers():
    assert netisr_rules.PROTOCOLS == {
        "ip": 1, "igmp": 2, "route": 3, "arp": 4, "ether": 5, "ipv6": 6, "epair": 8, "ip-direct": 9, "ipv6-direct": 10,
    }  # fmt: skip
    assert netisr_rules.MAXPROT == 16 == INTERNAL


def test_N_K2_policies_and_dispatches():
    assert netisr_rules.POLICIES == {"source": 1, "flow": 2, "cpu": 3}
    assert netisr_rules.DISPATCHES == {"default": 0, "deferred": 1, "hybrid": 2, "direct": 3}
    assert netisr_rules.NO_CPU == 2**32 - 1


def test_N_K3_worker_flags():
    assert (_engine.PR_NWS_RUNNING, _engine.PR_NWS_DISPATCHING, _engine.PR_NWS_SCHEDULED) == (1, 2, 4)


def test_N_K4_names_are_cut_at_31_bytes():
    assert registered(name="n" * 31).name == "n" * 31
    assert registered(name="n" * 40).name == "n" * 31
    assert short("ü" * 20) == "ü" * 15  # not half of one


@pytest.mark.parametrize("name", ["a b", "a\tb", " a", "a\n", "\u3000x", "a\0b"])
def test_N_K4_names_have_no_white_space(name):
    assert refuses(name=name) == errno.EINVAL


# ---- N-R: registration ----


def test_N_R1_a_name_is_needed():
    assert refuses(name="") == refuses(name=None) == errno.EINVAL


def test_N_R2_a_handler_is_needed():
    assert refuses(handler=None) == refuses(handler="") == errno.EINVAL


@pytest.mark.parametrize("policy", [0, 4, -1, "random", None, True, "SOURCE"])
def test_N_R3_the_policy_is_one_of_three(policy):
    assert refuses(policy=policy) == errno.EINVAL


@pytest.mark.parametrize("policy", ["source", "flow", 1, 2])
def test_N_R3_by_name_or_number(policy):
    assert registered(policy=policy).policy in (1, 2)


def test_N_R4_m2flow_is_for_policy_flow():
    assert refuses(policy="source", m2flow="m:f") == refuses(policy="cpu", m2flow="m:f", m2cpuid="m:c") == errno.EINVAL
    assert registered(policy="flow", m2flow="m:f").flags == netisr_rules.M2FLOW
    assert registered(policy="flow").flags == 0


def test_N_R5_m2cpuid_and_policy_cpu_go_together():
    assert refuses(policy="flow", m2cpuid="m:c") == refuses(policy="source", m2cpuid="m:c") == refuses(policy="cpu") == errno.EINVAL
    assert registered(policy="cpu", m2cpuid="m:c").flags == netisr_rules.M2CPUID


@pytest.mark.parametrize("dispatch", [4, -1, "none", "", None, "Direct"])
def test_N_R6_the_dispatch_is_one_of_four(dispatch):
    assert refuses(dispatch=dispatch) == errno.EINVAL


@pytest.mark.parametrize("proto", [16, -1, 2**32 + 1, "tcp", None, 1.0, True, ["ip"]])
def test_N_R6_the_protocol_is_one_of_sixteen(proto):
    assert refuses(proto=proto) == errno.EINVAL


def test_N_R6_by_name_or_number():
    assert [registered(proto=p).proto for p in ("ip", "epair", 0, 7, 15)] == [1, 8, 0, 7, 15]


def test_N_R7_a_slot_in_use_is_refused_a_name_in_use_is_not(lab):
    lab.register("ip", 1)
    with pytest.raises(Refused) as refused:
        lab.register("other", 1)
    assert refused.value.errno == errno.EEXIST and "ip" in str(refused.value)
    lab.register("ip", 2)
    assert lab.netisr.registered() == {1: "ip", 2: "ip"}


@pytest.mark.parametrize("given", [{}, {"policy": "flow"}, {"policy": "cpu", "m2cpuid": "m:c"}])
def test_N_R8_drainedcpu_goes_with_any_policy(given):
    assert registered(drainedcpu="m:d", **given).flags & netisr_rules.DRAINEDCPU


@pytest.mark.parametrize(("asked", "got"), [(0, 16), (1, 1), (64, 64), (65, 64), (10**12, 64)])
def test_N_R9_the_limit_is_defaulted_or_capped_with_one_line(lab, asked, got):
    lab.register("ip", 1, qlimit=asked)
    assert lab.netisr.getqlimit("ip") == got
    assert len(lab.said) == (asked > 64)
    assert not lab.said or ("ip" in lab.said[0] and str(asked) in lab.said[0] and "64" in lab.said[0])


@pytest.mark.parametrize("qlimit", [-1, "10", None, 1.5])
def test_N_R9_a_limit_that_is_none_is_refused(qlimit):
    assert refuses(qlimit=qlimit) == errno.EINVAL


def test_N_R10_a_registration_begins_at_zero_everywhere(lab):
    lab.register("ip", 1, qlimit=2)
    for ws in range(2):
        lab.queue(0, 1, numbered(4), source=ws)
        lab.netisr.set_dispatch("direct")
        lab.dispatch(ws, 1, [b"x"])
    lab.serve()
    lab.dispatch(lab.workers, 1, [b"by the controller"])
    assert all(lab.work(1, ws)[key] for ws in range(2) for key in ("watermark", "dispatched", "qdrops", "queued", "handled"))
    assert lab.netisr.done_by(1, 2)["dispatched"] == 1
    lab.netisr.unregister("ip")
    lab.register("ip", 1, qlimit=5)
    assert not any(any(lab.work(1, ws).values()) for ws in range(2)) and not any(lab.netisr.done_by(1, 2).values())
    assert lab.netisr.getqlimit("ip") == 5


def test_N_R11_vnets_that_exist_let_it_in_later_ones_do_not(lab):
    before = lab.netisr.make_vnet()
    lab.register("ip", 1)
    after = lab.netisr.make_vnet()
    assert [lab.netisr.allowed(1, vnet) for vnet in (0, before, after)] == [True, True, False]
    lab.netisr.register_vnet("ip", after)
    assert lab.netisr.allowed(1, after)


@pytest.mark.parametrize("given", [{"name": ""}, {"handler": ""}, {"policy": 9}, {"dispatch": 9}, {"policy": "cpu"}, {"name": "again"}])
def test_N_R12_what_is_refused_changes_nothing(lab, given):
    lab.register("ip", 1, qlimit=3)
    lab.queue(0, 1, numbered(2))
    before = bytes(lab.netisr.memory)
    with pytest.raises(Refused):
        lab.netisr.register(Handler(**GOOD | {"proto": 1 if "name" in given and given["name"] else 2} | given))
    assert bytes(lab.netisr.memory) == before


def test_a_registration_without_memory_for_its_lanes_changes_nothing():
    def full(offset, size):
        raise MemoryError

    netisr = Netisr.make(2, maxqlimit=64, defaultqlimit=16, reserve=full)
    before = bytes(netisr.memory)
    with pytest.raises(MemoryError):
        netisr.register(Handler(**GOOD))
    assert bytes(netisr.memory) == before


def test_lanes_are_reserved_once_before_they_are_touched():
    asked = []
    netisr = Netisr.make(2, maxqlimit=64, defaultqlimit=16, reserve=lambda offset, size: asked.append((offset, size)))
    netisr.register(Handler(**GOOD))
    netisr.unregister("ip")
    netisr.register(Handler(**GOOD))
    offset, size = asked[0]
    assert asked == [netisr.lanes_range(1)] == [Netisr.lanes_range_of((2, 64, 16, 1, 0), 1)] and size % mmap.PAGESIZE == 0
    bare = Netisr.make(2, maxqlimit=64, defaultqlimit=16)
    first, size = bare.lanes_range(0)
    assert not any(bytes(bare.memory)[first:])  # an unregistered protocol costs nothing
    bare.register(Handler(**GOOD))
    touched = bytes(bare.memory)
    assert any(touched[offset : offset + size]) and not any(touched[first:offset]) and not any(touched[offset + size :])


# ---- N-U: the end ----


def test_N_U1_an_unregistered_slot_cannot_be_unregistered(lab):
    for proto in (3, "route", "nothing", 99):
        with pytest.raises(Refused) as refused:
            lab.netisr.unregister(proto)
        assert refused.value.errno == errno.EINVAL


def test_N_U2_everything_queued_is_freed_and_the_slot_is_free_at_once(lab):
    lab.register("ip", 1)
    lab.register("arp", 4)
    lab.queue(0, 1, numbered(5), source=0)
    lab.queue(1, 1, numbered(5), source=1)
    lab.queue(1, 4, [b"stays"])
    assert lab.netisr.unregister("ip") == []
    assert lab.netisr.registered() == {4: "arp"} and not any(lab.netisr.allowed(1, vnet) for vnet in range(64))
    assert lab.pools[0].count()["inflight"] == 1
    lab.register("new", 1)
    lab.queue(0, 1, [b"new"])
    lab.serve()
    assert lab.seen == [(0, 1, b"new"), (0, 4, b"stays")]
    assert lab.work(1, 0)["handled"] == lab.work(1, 0)["queued"] == 1
    lab.check()


def test_N_U3_nothing_of_the_old_owner_is_left(lab):
    lab.register("ip", 1, dispatch="deferred", drainedcpu="m:d", qlimit=7)
    lab.queue(0, 1, numbered(2))
    lab.netisr.unregister("ip")
    lab.register("new", 1)
    assert lab.netisr.proto(1)[1:6] == ("new", 1, 0, 16, 0)
    lab.queue(0, 1, [b"x"])
    lab.serve()
    assert not lab.drained and lab.frames() == [b"x"]


def test_a_late_producer_cannot_reach_the_next_owner(lab):
    """It looked, then the protocol was unregistered and registered anew, then it put."""
    lab.register("ip", 1, m2flow="m:f", policy="flow")

    def meanwhile(proto, descs):
        lab.netisr.unregister("ip")
        lab.register("new", 1)
        return 0

    lab.ends[0].m2flow = meanwhile
    lab.queue(0, 1, [b"late"])
    lab.serve()
    assert lab.frames() == []
    work = lab.work(1, 0)
    assert work["purged"] == 1 and work["handled"] == 0
    lab.check()


def test_frames_in_hand_when_the_protocol_changes_its_owner_are_in_the_new_books(lab):
    """They are handled by the old one's handler, and counted where handled is."""
    lab.register("ip", 1)
    lab.queue(0, 1, numbered(3))
    lab.hooks.append(lambda end, proto, frames: lab.netisr.unregister("ip") or lab.register("new", 1))
    lab.serve()
    assert lab.work() == lab.work() | {"queued": 3, "handled": 3, "watermark": 0}
    lab.check()


# ---- N-Q: limits, drops ----


def test_N_Q1_getqlimit_tells_the_limit_in_force(lab):
    for proto, asked, effective in ((1, 0, 16), (2, 5, 5), (3, 1000, 64)):
        lab.register(f"p{proto}", proto, qlimit=asked)
        assert lab.netisr.getqlimit(proto) == effective


def test_N_Q2_setqlimit_above_the_maximum_is_refused(lab):
    lab.register("ip", 1, qlimit=5)
    for qlimit in (65, -1):
        with pytest.raises(Refused) as refused:
            lab.netisr.setqlimit("ip", qlimit)
        assert refused.value.errno == errno.EINVAL and lab.netisr.getqlimit("ip") == 5
    lab.netisr.setqlimit("ip", 64)
    assert lab.netisr.getqlimit("ip") == 64


def test_N_Q3_below_the_depth_what_is_queued_stays(lab):
    lab.register("ip", 1)
    lab.queue(0, 1, numbered(10))
    lab.netisr.setqlimit("ip", 4)
    assert lab.queue(0, 1, [b"no"]) == -errno.ENOBUFS and lab.work()["len"] == 10
    lab.serve()
    assert lab.frames() == numbered(10)
    assert lab.queue(0, 1, numbered(5)) == -errno.ENOBUFS
    assert lab.work()["len"] == 4 and lab.work()["qdrops"] == 2
    lab.serve()
    lab.check()


def test_N_Q4_a_limit_of_zero_drops_everything_but_registering_with_zero_is_the_default(lab):
    lab.register("ip", 1, qlimit=0)
    assert lab.netisr.getqlimit("ip") == 16
    lab.netisr.setqlimit("ip", 0)
    assert lab.queue(0, 1, numbered(3)) == -errno.ENOBUFS and lab.work()["qdrops"] == 3
    lab.netisr.set_dispatch("direct")
    assert lab.dispatch(0, 1, [b"not queued"]) == 0
    assert lab.serve() == 0 and lab.frames() == [b"not queued"]
    lab.check()


def test_N_Q5_the_limit_is_of_each_protocol_on_each_workstream(lab):
    lab.register("ip", 1, qlimit=3)
    lab.register("arp", 4, qlimit=5)
    for ws in range(2):
        assert lab.queue(0, 1, numbered(3), source=ws) == 0 == lab.queue(0, 4, numbered(5), source=ws)
        assert lab.queue(1, 1, [b"x"], source=ws) == lab.queue(1, 4, [b"x"], source=ws) == -errno.ENOBUFS
    lab.netisr.setqlimit("ip", 4)
    assert [lab.queue(0, 1, numbered(2), source=ws) for ws in range(2)] == [-errno.ENOBUFS] * 2
    assert [(lab.work(p, ws)["len"]) for p in (1, 4) for ws in range(2)] == [4, 4, 5, 5]


def test_N_Q6_drops_are_summed_and_cleared_alone(lab):
    lab.register("ip", 1, qlimit=2)
    for who, ws, n in ((0, 0, 5), (1, 1, 4), (2, 0, 1)):
        lab.queue(who, 1, numbered(n), source=ws)
    assert lab.netisr.getqdrops("ip") == 3 + 2 + 1
    lab.serve()
    before = [lab.work(1, ws) for ws in range(2)]
    lab.netisr.clearqdrops("ip")
    assert lab.netisr.getqdrops("ip") == 0
    assert [lab.work(1, ws) for ws in range(2)] == [row | {"qdrops": 0} for row in before] and before[0]["watermark"] == 2
    lab.queue(0, 1, numbered(4))
    assert lab.netisr.getqdrops("ip") == 2


@pytest.mark.parametrize("verb", ["getqlimit", "getqdrops", "clearqdrops"])
def test_limits_and_drops_are_of_registered_protocols(lab, verb):
    with pytest.raises(Refused):
        getattr(lab.netisr, verb)("ip")
    with pytest.raises(Refused):
        lab.netisr.setqlimit("ip", 3)


# ---- the block ----


@pytest.mark.parametrize(
    "geometry", [(0, 10, 5, 1, 0), (61, 10, 5, 1, 0), (1, 0, 0, 1, 0), (1, 10, 11, 1, 0), (1, 70000, 5, 1, 0), (1, 9, 9, 0, 0)]
)
def test_a_geometry_that_cannot_be_is_refused(geometry):
    with pytest.raises(ValueError):
        _engine.netisr_size(*geometry)


def test_memory_that_holds_no_tables_is_refused():
    with pytest.raises(ValueError):
        Netisr(mmap.mmap(-1, 1 << 20))
    netisr = Netisr.make(1, maxqlimit=64, defaultqlimit=16)
    with pytest.raises(ValueError):
        Netisr(memoryview(netisr.memory)[: len(netisr.memory) - 1])
    for at in (0, 8, 16, 21, 32):  # magic, size, workstreams, limit, capacity
        copy = mmap.mmap(-1, len(netisr.memory))
        copy[:] = netisr.memory[:]
        copy[at] ^= 0x55
        with pytest.raises(ValueError):
            Netisr(copy)


def test_names_of_protocols_are_found(lab):
    lab.register("mine", 7)
    assert [lab.netisr.number_of(p) for p in ("mine", 7, "arp", 4)] == [7, 7, 4, 4]
    lab.register("zero", 0)
    assert lab.netisr.number_of("zero") == 0
    with pytest.raises(Refused):
        lab.netisr.number_of("nobody's")


def test_a_handler_can_be_told_to_another_process():
    given = Handler("ip", "ip", test_N_K1_protocol_numbers, policy="flow", m2flow="m:f", qlimit=5)
    told = given.describe()
    assert Handler(**told) == Handler("ip", 1, f"{__name__}:test_N_K1_protocol_numbers", "flow", m2flow="m:f", qlimit=5)
