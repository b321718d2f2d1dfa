"""The number of active workstreams changes under traffic: flows go elsewhere and none is reordered. Ours, not the BSD's."""

import random

import pytest
from netisr_lab import Lab, numbered

from pktring.engine.netisr import NO_PORT

W = 4


@pytest.fixture
def lab():
    with Lab(W, maxqlimit=4096, defaultqlimit=4096) as lab:
        lab.netisr.set_dispatch("deferred")
        lab.register("ip", 1, "flow")
        yield lab


def send(lab, who, flow, at, n=1, proto=1):
    """`n` frames of a flow, numbered from at[who, flow] on."""
    first = at.get((who, flow), 0)
    at[who, flow] = first + n
    frames = [bytes([who]) + flow.to_bytes(4) + (first + i).to_bytes(4) for i in range(n)]
    return lab.dispatch(who, proto, frames, hash=flow)


def in_order(lab, at):
    seen = {}
    for frame in lab.frames():
        key = frame[0], int.from_bytes(frame[1:5])
        number = int.from_bytes(frame[5:])
        assert number == seen.get(key, 0), (key, number, seen.get(key, 0))
        seen[key] = number + 1
    assert seen == at


def lens(lab):
    return [lab.work(1, ws)["len"] for ws in range(lab.workers)]


def test_at_rest_a_new_count_holds_at_once(lab):
    for active in (3, 1, 4, 2):
        lab.netisr.set_active(active)
        for flow in range(12):
            lab.dispatch(0, 1, [b"x"], hash=flow)
            lab.serve()
            assert lab.seen[-1][0] == flow % active
        assert not lab.ends[0].moving


def test_a_flow_goes_to_its_new_place_when_its_frames_are_handled(lab):
    send(lab, 0, 3, at := {})
    lab.netisr.set_active(2)  # flow 3: from workstream 3 to 1
    send(lab, 0, 3, at, 2)
    assert lens(lab) == [0, 0, 0, 3] and lab.ends[0].moving
    send(lab, 0, 2, at)  # nothing of flow 2 waits: it may go from 2 to 0 at once
    assert lens(lab) == [1, 0, 0, 3]
    lab.serve(3)
    send(lab, 0, 3, at)
    assert lens(lab) == [1, 1, 0, 0]
    lab.serve()
    send(lab, 0, 3, at)
    assert not lab.ends[0].moving
    lab.serve()
    in_order(lab, at)


def test_a_flow_that_stays_is_not_held(lab):
    send(lab, 0, 1, at := {}, 3)
    lab.netisr.set_active(2)
    send(lab, 0, 1, at, 3)
    assert lens(lab) == [0, 6, 0, 0]
    lab.serve()
    in_order(lab, at)


def test_handled_is_not_taken(lab):
    """A frame in the handler's hands is not yet handled: the next of its flow may not go elsewhere."""
    send(lab, 0, 3, at := {})
    found = []

    def inside(end, proto, frames):
        send(lab, 0, 3, at)
        found.append(lens(lab))

    lab.hooks.append(inside)
    lab.netisr.set_active(2)
    lab.serve(3)
    assert found == [[0, 0, 0, 1]]
    lab.serve()
    in_order(lab, at)


def test_the_last_frame_counts_not_the_one_before(lab):
    send(lab, 0, 3, at := {}, 64)
    lab.netisr.set_active(2)
    send(lab, 0, 3, at)
    lab.ends[3].budget = 64
    assert lab.ends[3].serve() == 64  # all but the last
    send(lab, 0, 3, at)
    assert lens(lab)[1] == 0
    lab.serve(1)
    lab.serve()
    in_order(lab, at)


def test_an_empty_lane_is_through_while_others_are_not(lab):
    send(lab, 0, 2, at := {})
    send(lab, 0, 3, at)
    lab.netisr.set_active(2)
    for flow in (2, 3):
        send(lab, 0, flow, at)
    lab.serve(3)
    send(lab, 0, 3, at)
    assert lens(lab) == [0, 1, 2, 0] and lab.ends[0].moving
    lab.serve()
    in_order(lab, at)


def test_a_flow_that_has_gone_does_not_come_back(lab):
    """When others, which stay, fill the lane again that it left when it was empty."""
    send(lab, 0, 5, at := {})  # workstream 1's, of three it is 2's
    send(lab, 0, 3, at)
    lab.netisr.set_active(3)
    send(lab, 0, 5, at)
    lab.serve(1)
    send(lab, 0, 5, at)
    send(lab, 0, 1, at)  # stays where it is
    send(lab, 0, 5, at)
    assert lens(lab) == [0, 1, 2, 1] and lab.ends[0].moving
    lab.serve(2)
    lab.serve()
    in_order(lab, at)


def test_a_worker_that_catches_up_in_the_middle_of_a_burst_parts_no_flow(lab):
    """It empties the lane between two frames of the flow being placed."""
    lab.netisr.unregister("ip")
    lab.register("ip", 1, "flow", dispatch="deferred", m2flow="m:f")
    asked = []

    def meanwhile(proto, descs):
        asked.append(1)
        if len(asked) == 3:
            lab.serve(3)
        return 3

    lab.ends[0].m2flow = meanwhile
    lab.queue(0, 1, numbered(1))
    lab.netisr.set_active(2)
    lab.queue(0, 1, numbered(2, 1))
    lab.serve(1)
    lab.serve()
    assert lab.frames() == numbered(3)


def test_flows_that_find_no_entry_wait_for_the_lane():
    """More flows, all of one lane, than the table finds places for: the lane's barrier is raised for the others."""
    flows = range(3, 3 + 4 * 4000, 4)  # all of them are workstream 3's, and most go elsewhere
    with Lab(W, maxqlimit=10240, defaultqlimit=10240, buffers=12000) as lab:
        lab.register("ip", 1, "flow", dispatch="deferred")
        send(lab, 0, 3, at := {})
        lab.netisr.set_active(3)
        for flow in flows:
            send(lab, 0, flow, at)
        assert lens(lab) == [0, 0, 0, 4001]
        lab.ends[3].budget = 64
        for i, flow in enumerate(reversed(flows)):  # first those of which frames wait longest
            send(lab, 0, flow, at)
            if i % 32 == 0:
                lab.ends[3].serve()
                for ws in range(3):
                    lab.ends[ws].serve()
        assert len({by for by, _, _ in lab.seen}) == W
        lab.serve()
        in_order(lab, at)


@pytest.mark.parametrize("seed", range(12))
def test_no_flow_is_reordered_over_many_changes(seed):
    r = random.Random(seed)
    with Lab(W, maxqlimit=1024, defaultqlimit=1024) as lab:
        lab.register("ip", 1, "flow", dispatch=r.choice(("deferred", "hybrid")))
        at = {}
        for worker in range(W):
            lab.ends[worker].budget = 64
        for _ in range(1500):
            if r.random() < 0.02:
                lab.netisr.set_active(r.randint(1, W))
            who = r.randrange(W + 1)
            if sum(lens(lab)) < 300:
                send(lab, who, r.randrange(40), at, r.randint(1, 4))
            if r.random() < 0.25:
                lab.ends[r.randrange(W)].serve()
        lab.serve()
        in_order(lab, at)
        lab.check()
        assert len({by for by, _, _ in lab.seen}) == W


def test_bursts_of_many_flows(lab):
    """Two frames of a flow in one burst go the same way, also when its queue runs empty in between."""
    r = random.Random(3)
    at = {}
    for turn in range(400):
        if turn % 20 == 0:
            lab.netisr.set_active(r.randint(1, W))
        flows = [r.randrange(12) for _ in range(r.randint(1, 60))]
        descs = []
        for flow in flows:
            n = at.get((0, flow), 0)
            at[0, flow] = n + 1
            descs += lab.ends[0].make(bytes([0]) + flow.to_bytes(4) + n.to_bytes(4), NO_PORT, flow)
        assert lab.ends[0].queue_src(1, 0, descs) == 0
        for ws in range(W):
            if r.random() < 0.4 or sum(lens(lab)) > 300:
                lab.ends[ws].serve()
    lab.serve()
    in_order(lab, at)


def test_a_producer_that_is_replaced_goes_on_with_the_change(lab):
    send(lab, 0, 3, at := {}, 2)
    lab.netisr.set_active(2)
    send(lab, 0, 3, at)
    send(lab, 0, 2, at)
    lab.ends[0].leave()
    lab.ends[0] = lab.end(0, 0, lab.pools[0])
    assert lab.ends[0].moving
    send(lab, 0, 3, at)
    assert lens(lab)[3] == 4
    lab.serve()
    send(lab, 0, 3, at)
    send(lab, 0, 2, at)
    lab.serve()
    in_order(lab, at)
    assert not lab.ends[0].moving or lab.queue(0, 1, [b"x" * 9], hash=0) == 0 and not lab.ends[0].moving


def test_a_second_change_waits_for_the_end_of_the_first(lab):
    send(lab, 0, 3, at := {})
    lab.netisr.set_active(3)
    send(lab, 0, 3, at)
    lab.netisr.set_active(2)
    send(lab, 0, 4, at)  # not held: where the first change puts it, 4 % 3
    assert lens(lab) == [0, 1, 0, 2]
    lab.serve()
    send(lab, 0, 3, at)
    assert lens(lab) == [0, 1, 0, 0]  # 3 % 2
    lab.serve()
    in_order(lab, at)


def test_drops_do_not_hold_a_flow_for_ever(lab):
    lab.netisr.setqlimit(1, 2)
    send(lab, 0, 3, at := {}, 2)
    lab.netisr.set_active(2)
    for _ in range(5):
        lab.dispatch(0, 1, [b"dropped"], hash=3)
    lab.serve()
    assert len(lab.seen) == 2
    send(lab, 0, 3, at)
    assert lens(lab) == [0, 1, 0, 0] and not lab.ends[0].moving
    lab.serve()
    in_order(lab, at)


def test_each_producer_for_itself(lab):
    send(lab, 0, 3, at := {})
    lab.netisr.set_active(2)
    send(lab, 1, 3, at)
    assert lens(lab) == [0, 1, 0, 1]
    lab.serve()
    in_order(lab, at)


@pytest.mark.parametrize("policy", ["source", "cpu"])
def test_other_policies_move_by_their_keys(policy):
    with Lab(W, maxqlimit=64, defaultqlimit=64) as lab:
        lab.register("p", 1, policy)
        lab.ends[0].m2cpuid = lambda proto, descs, source: source
        lab.queue(0, 1, [b"a"], source=3)
        lab.netisr.set_active(2)
        lab.queue(0, 1, [b"b"], source=3)
        lab.queue(0, 1, [b"c"], source=2)
        assert lens(lab) == [1, 0, 0, 2]
        lab.serve(3)
        lab.queue(0, 1, [b"d"], source=3)
        lab.serve()
        assert [f for f in lab.frames() if f != b"c"] == [b"a", b"b", b"d"]


def test_back_to_one_workstream_callbacks_are_asked_until_all_has_moved():
    with Lab(2, maxqlimit=64, defaultqlimit=64) as lab:
        asked = []
        lab.register("p", 1, "flow", m2flow="m:f")
        lab.ends[0].m2flow = lambda proto, descs: asked.append(1) or 1
        lab.queue(0, 1, numbered(1))
        lab.netisr.set_active(1)
        lab.queue(0, 1, numbered(2, 1))
        assert len(asked) == 3 and lens(lab) == [0, 3]
        lab.serve()
        lab.queue(0, 1, numbered(2, 3))
        assert len(asked) == 3 and lens(lab) == [2, 0]
        lab.serve()
        assert lab.frames() == numbered(5)
