"""netisr(9)'s workers on an engine with real interfaces: turns, purges, vnets, changes under load, and books that balance."""

import errno
import os
import random
import signal
import threading
import time

import pytest
from captures import pcap
from command import eventually
from engine_handlers import KEPT, NONE, frame, gate, told
from live import middle
from netisr_engine import PROTOCOLS, Stream, drops, fresh, held, in_order, one, protocol, refused, rested, rising, started, ways

import pktring

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def shared():
    with middle() as net, started(net, PROTOCOLS, dispatch="deferred") as run:
        yield run


@pytest.fixture
def e(shared):
    """The engine at rest, and deferred."""
    yield from rested(shared)


@pytest.fixture(scope="module")
def flows(shared):
    return ways(shared)


def opened_soon():
    """Somebody is waited for who stands at the gate."""
    timer = threading.Timer(0.1, gate.open)
    timer.start()
    return timer


def classified(e):
    return e.counters("left")["classified"] + e.counters("right")["classified"]


# ---- the worker ----


def test_N_W3_an_idle_worker_is_woken_once_a_busy_one_is_not(e, flows):
    flow = one(flows, 0, 1)
    before = e.work(1, "wakes")
    e.send([frame(0, flow)])
    e.heard(1)
    e.at_rest()
    assert e.work(1, "wakes") == [before[0] + 1, before[1]]
    with held(e, 1):
        e.send([frame(i, flow) for i in range(10)])
        eventually(lambda: e.now("ip")[1]["length"] == 10)
    e.heard(10)
    e.at_rest()
    assert e.work(1, "wakes") == [before[0] + 1, before[1]]


def test_N_W5_N_W7_protocols_take_turns_in_ascending_order(e):
    """What comes for a protocol during its own batch waits for the others of the snapshot."""
    with fresh(e, handler="engine_handlers:gated", qlimit=4), held(e, 0):
        for proto, number in ((6, 60), (5, 50), (3, 30), (1, 10)):
            assert e.netisr.queue_src(proto, 0, frame(number, kind="ether")) == 0
        gate.let_pass()
        gate.waiting(2)  # it has done 1, and is at 30
        assert e.netisr.queue_src(3, 0, frame(31, kind="ether")) == 0
        gate.open()
        assert [number for number, *_ in e.heard(5)] == [10, 30, 50, 60, 31]


def test_N_W6_effective_depth_is_twice_the_limit(e):
    with fresh(e, handler="engine_handlers:gated", qlimit=4), held(e, 0):
        assert [e.netisr.queue_src(3, 0, frame(i)) for i in range(5)] == [0] * 4 + [-errno.ENOBUFS]
        gate.let_pass()
        gate.waiting(2)
        assert e.now("fresh")[0]["length"] == 0
        assert [e.netisr.queue_src(3, 0, frame(i)) for i in range(4, 9)] == [0] * 4 + [-errno.ENOBUFS]
        gate.open()
        assert [number for number, *_ in e.heard(8)] == list(range(8))
        e.at_rest()
        assert (e.rows("fresh")[0]["watermark"], e.rows("fresh")[0]["queued"]) == (4, 8)


def test_N_W8_drained_is_called_after_each_batch_with_its_cpu_and_for_nothing_else(e, flows):
    calls, cpus = told("drained"), told("drained_on")
    e.send([frame(0, one(flows, 0, 1))])
    e.heard(1)
    e.at_rest()
    eventually(lambda: told("drained") == calls + 1)
    assert told("drained_on") - cpus == e.engine.status()["workers"][1]["cpu"]
    with held(e, 1):
        e.send([frame(i, one(flows, 0, 1)) for i in range(100)])
        eventually(lambda: e.now("ip")[1]["length"] == 100)
    e.heard(100)
    e.at_rest()
    eventually(lambda: told("drained") == calls + 2)  # two bursts of one batch
    for how in ("direct", "hybrid"):
        e.sysctl("net.isr.dispatch", how)
        e.send([frame(i, one(flows, 0, 0)) for i in range(1)])
        e.heard(1)
    e.at_rest()
    assert told("drained") == calls + 2


def test_N_U2_N_W9_unregister_purges_what_is_queued_and_the_worker_rests(e):
    with fresh(e):
        before = told("handled")
        with held(e, 0):
            assert not any(e.netisr.queue_src(3, 0, frame(i)) for i in range(5))
            timer = opened_soon()
            e.netisr.unregister(3)
            timer.join()
        assert told("handled") - before == 1, "arp's only"
        e.netisr.register(pktring.Handler("fresh", 3, "engine_handlers:stamped", "source"))
        assert e.rows("fresh")[0]["purged"] == 0 == e.rows("fresh")[0]["queued"]
        assert e.netisr.queue_src(3, 0, frame(99)) == 0
        assert [number for number, *_ in e.heard(1)] == [99]
    worker = e.engine.status()["workers"][0]
    eventually(lambda: e.engine.status()["workers"][0]["sleeps"] > worker["sleeps"] + 1)
    assert e.engine.status()["workers"][0]["cpu_s"] - worker["cpu_s"] < 0.1, "it spins over an empty queue"


# ---- vnets ----


def test_N_D3_N_V1_N_V2_a_vnet_loses_a_protocol_and_gets_it_back(e):
    with fresh(e), rising(e):
        refused(errno.EINVAL, e.netisr.register_vnet, 3, 1)  # there is one vnet: no port is in another namespace
        with held(e, 0):
            assert not any(e.netisr.queue_src(3, 0, frame(i)) for i in range(5))
            timer = opened_soon()
            e.netisr.unregister_vnet(3, 0)
            timer.join()
        assert e.rows("fresh")[0]["purged"] == 5 == e.rows("fresh")[0]["queued"]
        assert e.netisr.queue_src(3, 0, frame(0)) == -errno.ENOPROTOOPT
        e.silent()
        e.netisr.register_vnet(3, 0)
        assert e.netisr.queue_src(3, 0, frame(1)) == 0
        assert [number for number, *_ in e.heard(1)] == [1]


def test_N_V2_a_ports_namespace_is_its_vnet_and_only_its_frames_are_kept_out():
    with middle() as net:
        blue = net.lab.namespace("blue")
        net.lab.change(net.fa.netns, "fa", net_ns_fd=blue)
        net.lab.change(blue, "fa", state="up")
        net.lab.running(net.fa.__class__(blue, "fa"))
        left = {"interface": "fa", "options": {"netns": blue}, "rings": 2, "take": True}
        back = protocol("ip", "engine_handlers:stamped", "flow")
        with started(net, [back, protocol("arp")], port={"left": left, "right": {"interface": "fb", "rings": 2, "take": True}}) as e:
            assert {name: port["vnet"] for name, port in e.engine.status()["ports"].items()} == {"left": 1, "right": 0}
            e.send([frame(1), frame(2, 0, "arp")])
            e.heard(2)
            e.netisr.unregister_vnet("ip", 1)
            e.send([frame(3), frame(4, 0, "arp")])
            assert [number for number, *_ in e.heard(1)] == [4]
            eventually(lambda: sum(e.work(1, "noproto")) == 1)
            assert e.netisr.queue("ip", frame(5)) == 0  # by no interface: the default vnet's
            e.heard(1)
            e.netisr.register_vnet("ip", 1)
            e.send([frame(6)])
            assert [number for number, *_ in e.heard(1)] == [6]


def test_N_W10_frames_of_an_interface_that_is_gone_are_handled_unseen_of_one_that_flapped_are_not():
    with middle() as net, started(net, [protocol("ip"), protocol("arp", "engine_handlers:gated")], dispatch="deferred") as e:
        ws = e.engine.status()["ports"]["left"]["facts"]["ifindex"] % 2
        e.sysctl("net.isr.dispatch", "direct")
        e.send([frame(i, i) for i in range(32)])
        flow = next(flow for _, flow, pid, _ in e.heard(32) if pid == e.pids()[1 - ws])
        e.sysctl("net.isr.dispatch", "deferred")
        with held(e, ws):
            e.send([frame(i, flow) for i in range(5)])
            eventually(lambda: e.now("ip")[ws]["length"] == 5)
            net.lab.change(net.fa.netns, "fa", state="down")
            net.lab.change(net.fa.netns, "fa", state="up")
            eventually(lambda: [line for line in e.engine.status()["events"] if "fa" in line and "I_PORT_UP" in line])
        assert len(e.heard(5)) == 5
        net.lab.running(net.fa)
        with held(e, ws):
            e.send([frame(i, flow) for i in range(5)])
            eventually(lambda: e.now("ip")[ws]["length"] == 5)
            net.lab.delete(net.fa.netns, "fa")
            eventually(lambda: [line for line in e.engine.status()["events"] if "E_PORT_GONE" in line])
        e.silent()
        e.at_rest()
        sums = [row["dispatched"] for row in e.rows("ip")]
        assert (e.rows("ip")[ws]["queued"], e.rows("ip")[ws]["handled"]) == (10, 10 + sums[ws]) and told("handled") == 32 + 5 + 2


def test_workers_on_cpus_in_another_order_are_indexes_all_the_same():
    """N-P6: an index is not a CPU."""
    with middle() as net:
        try:
            context = started(net, [PROTOCOLS[3]], dispatch="deferred", workers=[1, 0])
            e = context.__enter__()
        except pktring.Error as why:
            pytest.skip(f"CPUs 0 and 1 are not both ours: {why}")
        try:
            e.send([frame(i, i % 2, "ipv6") for i in range(10)])
            e.heard(10)
            e.at_rest()
            assert [(row["cpu"], row["queued"]) for row in e.rows("ipv6")] == [(1, 5), (0, 5)]
        finally:
            context.__exit__(None, None, None)


# ---- changes under load ----


def arrived(e, stream, before):
    """All that was sent, or was dropped and counted; nothing twice."""
    got = e.heard_all(stream.sent - (drops(e) - before), 10)
    numbers = [number for number, *_ in got]
    assert len(numbers) == len(set(numbers)), "duplicates"
    e.at_rest()
    assert stream.sent - len(numbers) == drops(e) - before
    return got


def test_N_D13_the_policy_changes_under_traffic_and_loses_and_doubles_nothing(e):
    e.netisr.setqlimit("ip", 4096)
    before = drops(e)
    with Stream(e) as stream:
        for how in random.Random(1).choices(("direct", "hybrid", "deferred"), k=40):
            e.sysctl("net.isr.dispatch", how)
            time.sleep(0.02)
    arrived(e, stream, before)
    rows = e.rows("ip")
    assert all(sum(row[key] for row in rows) > 100 for key in ("dispatched", "hybrid-dispatched", "queued"))
    e.netisr.setqlimit("ip", 256)


def test_workers_come_and_go_under_traffic_and_no_flow_is_reordered(e):
    e.netisr.setqlimit("ip", 4096)
    before = drops(e)
    with Stream(e) as stream, rising(e) as rise:
        for i in range(24):
            e.sysctl("dev.pktring.workers", 1 + i % 2)
            time.sleep(0.03)
    in_order(arrived(e, stream, before))
    assert rise["ip"][0]["queued"] > 1.2 * rise["ip"][1]["queued"] > 100, "half of the time one worker did it all"
    e.netisr.setqlimit("ip", 256)


def test_protocols_come_and_go_under_traffic_of_others(e):
    """Each registration replaces the workers: nothing of it is seen by frames that are on their way."""
    e.netisr.setqlimit("ip", 4096)
    before, pids = drops(e), e.pids()
    with Stream(e) as stream:
        for _ in range(2):
            with fresh(e):
                assert e.netisr.queue_src(3, 1, frame(0, NONE)) == 0
                eventually(lambda: e.now("fresh")[1]["handled"] == 1)
    assert not set(pids) & set(e.pids())
    got = e.heard_all(stream.sent + 2 - (drops(e) - before), 10)
    assert len([1 for _, flow, *_ in got if flow == NONE]) == 2
    in_order([stamp for stamp in got if stamp[1] != NONE])
    assert len(got) == stream.sent + 2 - (drops(e) - before)
    assert [w["restarts"] for w in e.engine.status()["workers"]] == [0, 0]
    e.netisr.setqlimit("ip", 256)


def test_an_elephant_does_not_starve_the_queues_of_others(e, flows):
    """Its queue is full all the time, and loses; the other protocols of the same worker lose nothing."""
    elephant, ws = one(flows, 0, 1), 1
    e.netisr.setqlimit("ip", 16)
    with rising(e) as rise:
        with held(e, ws):
            e.send([frame(i, elephant) for i in range(500)])
            assert not any(e.netisr.queue_src(name, ws, frame(0)) for name in ("ether", "ipv6") for _ in range(10))
            eventually(lambda: (e.now("ether")[ws]["length"], e.now("ipv6")[ws]["length"]) == (10, 10))
        eventually(lambda: sum(row["queued"] + row["queue-drops"] for row in e.now("ip")) >= 500)
    assert rise["ip"][ws]["queue-drops"] >= 400 and sum(row["queued"] + row["queue-drops"] for row in rise["ip"]) == 500
    for name in ("ether", "ipv6"):
        assert rise[name][ws]["queued"] == 10 == rise[name][ws]["handled"] and not rise[name][ws]["queue-drops"]
    e.heard_all()
    e.netisr.setqlimit("ip", 256)


# ---- the books ----


def test_N_A1_N_A2_N_A3_at_rest_and_every_frame_is_in_one_column(e):
    """Under a load that overflows queues, asks callbacks that keep frames, and is dispatched in every way."""
    before, fed = e.rows(), classified(e)
    kept, out = e.work(5, "nobufs"), sum(sum(e.work(n, "noproto")) for n in (1, 4, 5, 6))
    for name in ("ip", "arp", "ether", "ipv6"):
        e.netisr.setqlimit(name, 12)
    rng = random.Random(7)
    with Stream(e, ("ip", "ether", "ipv6", "arp")):
        for how in ("direct", "hybrid", "deferred") * 3:
            e.sysctl("net.isr.dispatch", how)
            e.send([frame(i, KEPT if rng.random() < 0.1 else i % 32, rng.choice(("ip", "ether"))) for i in range(100)])
            time.sleep(0.03)
    e.at_rest()
    after, columns = e.rows(), 0
    for name, rows in after.items():
        for row, was in zip(rows, before[name], strict=True):
            by_worker = row["handled"] - row["dispatched"] - row["hybrid-dispatched"]
            assert row["queued"] == row["length"] + by_worker + row["purged"] + row["crashed"]  # N-A1
            assert 0 == row["length"] <= row["watermark"] <= 4096  # N-A2: the highest limit there ever was
            assert all(row[key] >= was[key] for key in ("dispatched", "hybrid-dispatched", "queued", "handled"))  # N-A4
            columns += sum(row[key] - was[key] for key in ("dispatched", "hybrid-dispatched", "queue-drops", "queued"))  # N-A3
    columns += sum(e.work(5, "nobufs")) - sum(kept) + sum(sum(e.work(n, "noproto")) for n in (1, 4, 5, 6)) - out  # N-A6
    assert columns == classified(e) - fed > 1000
    assert sum(e.work(5, "nobufs")) > sum(kept)
    for name in after:
        e.netisr.setqlimit(name, 256)
    frames = sum(row["frames"] for row in e.engine.status()["handlers"])
    assert frames == sum(row["handled"] for rows in after.values() for row in rows), "what netisr says was handled, handlers saw"


def test_N_S_what_a_running_engine_refuses_and_tells(e):
    for name, value in [
        ("net.isr.dispatch", "default"),
        ("net.isr.dispatch", "DIRECT"),
        ("net.isr.dispatch", "x" * 30),
        ("net.isr.maxthreads", 4),
        ("net.isr.bindthreads", 0),
        ("net.isr.maxqlimit", 5),
        ("net.isr.numthreads", 1),
        ("net.isr.proto", 1),
        ("net.isr.defaultqlimit", 100),
        ("dev.pktring.workers", 3),
        ("dev.pktring.workers", 0),
    ]:
        with pytest.raises(pktring.Error) as why:
            e.sysctl(name, value)
        assert why.value.code in ("E_SYSCTL", "E_NETISR"), (name, why.value)
    assert (e.sysctl("net.isr.dispatch"), e.sysctl("net.isr.numthreads"), e.sysctl("dev.pktring.workers")) == ("deferred", 2, 2)
    assert [(r["wsid"], r["version"], r["flags"]) for r in e.sysctl("net.isr.workstream")] == [(0, 64, 1), (1, 64, 1)]
    with open(f"/proc/{e.pids()[0]}/cmdline", "rb") as file:  # N-S3
        assert file.read().startswith(b"pktring: worker 1 cpu")


def test_a_worker_that_took_the_place_of_another_is_missed_when_it_dies(e):
    """Whose descriptors have the numbers of the old one's, by then."""
    with fresh(e):
        pids = e.pids()
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: e.pids()[0] not in (0, pids[0]))
        e.send([frame(i, i % 32) for i in range(64)])
        e.heard(64)
    assert e.engine.status()["workers"][0]["restarts"] == 1


# ---- a source of one queue ----


def test_a_file_of_many_flows_is_read_by_one_worker_and_handled_by_both(tmp_path):
    """The lanes carry it over; the reader does not read on while it has no time to handle: hardly anything finds a queue full."""
    flows, n = 64, 4096
    file = tmp_path / "flows.pcap"
    file.write_bytes(pcap((i * 1000, frame(i, i % flows)) for i in range(n)))
    with middle() as net:
        slow = protocol("ip", "engine_handlers:spun", "flow")
        with started(net, [slow], dispatch="deferred", port={"file": {"port": f"pcap:{file}"}}) as e:
            eventually(lambda: e.counters("file")["rx_frames"] == n, 20)
            e.at_rest()
            rows = e.rows("ip")
            mine = [sum(pktring.flow_hash(frame(0, flow))[0] % 2 == ws for flow in range(flows)) * n // flows for ws in (0, 1)]
            for row, due in zip(rows, mine, strict=True):
                assert abs(row["queued"] + row["queue-drops"] - due) <= flows and row["handled"] == row["queued"]
            assert sum(row["queued"] + row["queue-drops"] for row in rows) == n == e.counters("file")["classified"]
            assert rows[0]["handled"] > mine[0] // 2, "the reader starves its own queue"
            pids = {row["worker"] for row in e.engine.status()["handlers"] if row["frames"]}
            assert pids == {1, 2}
