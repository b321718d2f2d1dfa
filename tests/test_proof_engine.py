"""What would give a toy away, on a running engine of two workers: see test_proof.py for one bridge."""

import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import eventually
from conservation import balanced
from engine_handlers import STAMP, frame, stamp
from frames import numbered
from live import middle
from netisr_engine import ports, protocol, started, ways
from pyroute2 import IPRoute

import pktring
from pktring.engine import _engine
from pktring.shm.region import Region

pytestmark = pytest.mark.needs("root")

LOAD = [sys.executable, "-m", "pktring.tools.bench_load"]
FORWARD = [{"from": "left", "to": "right", "both": True, "filter": "not arp"}]


@pytest.fixture
def net():
    with middle() as net:
        yield net


def flood(net, seconds):
    """As many frames as this machine makes, of one flow, from another process."""
    return net.lab.start(net.a.netns, [*LOAD, "va", "64", str(seconds), "0"], stdout=-1)


def received(net, end):
    with net.lab.inside(end.netns), IPRoute() as ipr:
        return dict(ipr.get_links(net.lab.index(end))[0].get_attr("IFLA_STATS64"))["rx_packets"]


def region_of(e):
    """The engine's region, mapped here too."""
    (name,) = {path.name.removeprefix("pktring.").rpartition(".")[0] for path in Path("/dev/shm").glob("pktring.*.engine") if mine(path, e)}
    return Region.attach(name)


def mine(path, e):
    return any(str(path) in Path(f"/proc/{pid}/maps").read_text() for pid in e.pids() if pid)


# ---- 1. the path is in C ----


@pytest.mark.needs("strace")
def test_1_at_full_load_a_workers_call_into_the_kernel_carries_16_frames(net, tmp_path):
    said = tmp_path / "calls"
    with started(net, [], forward=FORWARD) as e:
        load = flood(net, 2.5)
        before = received(net, net.b)
        eventually(lambda: received(net, net.b) - before > 20_000, 10)
        busy = max(e.engine.status()["workers"], key=lambda worker: worker["bursts"])
        tracer = subprocess.Popen(["strace", "-c", "-f", "-o", said, "-p", str(busy["pid"])], stderr=subprocess.PIPE, text=True)
        assert "attached" in tracer.stderr.readline()
        frames = received(net, net.b)
        time.sleep(1.2)
        frames = received(net, net.b) - frames
        tracer.terminate()
        tracer.wait(10)
        load.wait(20)
    (total,) = re.findall(r"^100\.00 .* total$", said.read_text(), re.M)
    calls = int(total.split()[3])
    print(f"{frames} frames, {calls} calls, {frames / calls:.1f} frames a call")
    assert frames > 5000, "a load, not a trickle"
    assert calls < frames / 16, said.read_text()


def test_1_at_full_load_a_worker_spends_less_than_a_hundredth_outside_of_the_loop_in_c(net, monkeypatch):
    """CPU time of a worker inside the call that runs the loop, and of its process, both from the first call on."""
    page = mmap.mmap(-1, 4096)  # each worker's: inside, total, calls

    class Clocked:
        def __init__(self, record, end, handlers, bell):
            self._loop = loop(record, end, handlers, bell)
            self._at, self._begun, self._said = 24 * (os.getpid() % 160), 0.0, [0.0, 0.0, 0.0]

        def __getattr__(self, name):
            return getattr(self._loop, name)

        def run(self, ns):
            begun, self._begun = time.thread_time(), self._begun or time.process_time()
            try:
                return self._loop.run(ns)
            finally:
                self._said[0] += time.thread_time() - begun
                self._said[1], self._said[2] = time.process_time() - self._begun, self._said[2] + 1
                struct.pack_into("3d", page, self._at, *self._said)

    loop = _engine.Worker
    monkeypatch.setattr(_engine, "Worker", Clocked)
    with started(net, [], forward=FORWARD):
        flood(net, 1.5).wait(20)
        time.sleep(1.1)  # a call of the loop is a second
    inside, total, calls = max((struct.unpack_from("3d", page, 24 * i) for i in range(160)), key=lambda said: said[1])
    print(f"outside {1 - inside / total:.3%} of {total:.2f} s CPU, {calls:.0f} calls")
    assert total > 0.2, "it was idle"
    assert 1 - inside / total < 0.01


# ---- 2. several processes ----


def test_2_a_controller_and_a_worker_that_stand_still_hold_nobody_of_the_other_worker_up(net):
    with started(net, [protocol("ip", policy="flow")], dispatch="direct") as e:
        receivers = {flow: way[0] for flow, way in ways(e).items()}
        e.sysctl("net.isr.dispatch", "direct")
        for stopped in (0, 1):
            others = [flow for flow, received in receivers.items() if received != stopped]
            held = [flow for flow, received in receivers.items() if received == stopped]
            pids = [e.engine.status()["pid"], e.pids()[stopped]]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                e.send([frame(9000, held[0])])
                until, n, slowest = time.monotonic() + 0.5, 0, 0.0
                while time.monotonic() < until:
                    begun = time.monotonic()
                    e.send([frame(n + i, others[i % len(others)]) for i in range(20)])
                    got = [stamp(f) for f in e.ear.take(20, 1.0)]
                    slowest = max(slowest, time.monotonic() - begun)
                    assert sorted(number for number, *_ in got) == list(range(n, n + 20)), "a flow of the other worker was held up"
                    n += 20
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            assert [number for number, *_ in e.heard(1)] == [9000], "its own waited for it"
            print(f"{n} frames by the other worker meanwhile, 20 there and back in {slowest * 1000:.1f} ms at most")
            assert n >= 100
        assert [worker["restarts"] for worker in e.engine.status()["workers"]] == [0, 0]


# ---- 3. zero copies ----


def buffers(batch):
    """Write into each frame which buffer it lies in, and send it on."""
    for i in range(len(batch)):
        STAMP.pack_into(batch[i], 42, *stamp(batch[i])[:2], int(batch.buffers[i]), os.getpid())
    batch.forward("right")


def rings(region, e, port):
    """{"rx0": ring, ...} of a port."""
    found = {}
    for row in region.counters():
        if row["row"].startswith(port + " "):
            found[row["row"].split()[1]] = region.view.ring(row["ring"])
    return found


def slots(ring, n, back=0):
    return [ring.slot((ring.head + i - back) % ring.num_slots)[0] for i in range(n)]


def test_3_a_frame_is_received_handled_by_another_worker_and_sent_in_one_buffer(net):
    """Receive ring of worker 1 ▸ lane ▸ a Python handler of worker 2 ▸ its transmit ring, and the other way round."""
    with started(net, [protocol("ip", "test_proof_engine:buffers", "flow")], dispatch="deferred") as e, region_of(e) as region:
        e.sysctl("net.isr.dispatch", "deferred")
        left, right, pids = rings(region, e, "left"), rings(region, e, "right"), e.pids()
        for received_, placed in ((0, 1), (1, 0), (0, 0)):
            flow = flow_from(e, left, pids, received_, placed)
            rx, tx = left[f"rx{received_}"], right[f"tx{placed}"]
            waiting, first = slots(rx, 20), tx.head
            e.send([frame(i, flow) for i in range(20)])
            got = [stamp(f) for f in e.ear.take(20)]
            assert [number for number, *_ in got] == list(range(20))
            assert {pid for *_, pid in got} == {pids[placed]}
            assert [buffer for _, _, buffer, _ in got] == waiting
            assert [tx.slot((first + i) % tx.num_slots)[0] for i in range(20)] == waiting
        e.at_rest()
        assert e.counters("left")["copies"] == 0 == e.counters("right")["copies"] and balanced(region)


def flow_from(e, left, pids, received_, placed):
    """A flow that comes in by that worker and belongs to that one."""
    for flow in range(500):
        before = left[f"rx{received_}"].head
        if pktring.flow_hash(frame(0, flow))[0] % 2 != placed:
            continue
        e.send([frame(0, flow)])
        assert len(e.ear.take(1)) == 1
        if left[f"rx{received_}"].head != before:
            return flow
    raise AssertionError("no such flow")


def test_3_a_rule_sends_the_buffer_that_it_received(net):
    with started(net, [], forward=FORWARD) as e, region_of(e) as region:
        left, right = rings(region, e, "left"), rings(region, e, "right")
        for _ in range(4):  # 800 frames around rings of 256 slots
            before = {name: (ring.head, slots(ring, 200)) for name, ring in left.items() if name.startswith("rx")}
            e.send([numbered(i, 64 + i) for i in range(200)])
            assert len(e.ear.take(200)) == 200
            (name,) = [name for name, (head, _) in before.items() if left[name].head != head]
            tx = right["tx" + name[2:]]
            assert slots(tx, 200, back=200) == before[name][1]
        assert e.counters("left")["copies"] == 0 == e.counters("right")["copies"]
        assert e.counters("left")["forwarded"] == 800 and balanced(region)


# ---- 10. counters are counted ----


def test_10_what_comes_in_by_every_way_is_what_goes_out_by_every_way(net, tmp_path):
    """Rules, mirrors, protocols, an app that consumes, frames that nobody wants: each ring's books balance, and so does the whole."""
    table = ports()
    mirrors = [{"from": "left", "to": "right", "direction": "in", "filter": "udp and ether[21] & 3 = 0"}]
    forwards = [{"from": "left", "to": "right", "filter": "ether proto 0x88b5"}, {"from": "right", "to": "left"}]
    protocols = [protocol("ip", policy="flow"), protocol("arp", "drop")]
    with started(net, protocols, port=table, forward=forwards, mirror=mirrors, dispatch="hybrid") as e, region_of(e) as region:
        with net.lab.inside(net.fa.netns):
            port = pktring.open("fa?take=1", filter="ether proto 0x88b9")
        with port:
            taken = []
            taker = threading.Thread(target=lambda: taken.extend(eaten(port, 100)))
            taker.start()
            kinds = [(0x88B5, "fwd"), (0x88B9, "app"), (0x88BB, "none")]
            e.send([numbered(i, 64, kinds[i % 3][0]) for i in range(300)])
            e.send([frame(i, i % 32, kind) for i in range(100) for kind in ("ip", "arp")])
            net.lab.send(net.b, [numbered(i) for i in range(50)])
            taker.join(10)
            e.at_rest()
            assert len(taken) == 100
            left, right = e.counters("left"), e.counters("right")
            assert (left["rx_frames"], left["forwarded"], left["delivered"], left["classified"]) == (500, 100, 100, 200)
            assert (left["drop_no_rule"], right["forwarded"], left["tx_queued"], left["tx_frames"]) == (100, 50, 50, 50)
            rows = {name: sum(row["handled"] for row in rows) for name, rows in e.rows().items()}
            assert rows == {"ip": 100, "arp": 100}
            assert right["tx_queued"] == right["tx_frames"] == left["forwarded"] + left["mirrored"] + rows["ip"]
            assert balanced(region)


def test_10_what_the_host_itself_sends_is_counted_and_nobodys(net):
    """Of a port that is watched both directions are seen: mirrors may have them, rules and protocols do not."""
    table = {"left": {"interface": "fa", "take": False}, "right": {"interface": "fb", "take": True}}
    mirrors = [{"from": "left", "to": "right", "direction": "out"}]
    with started(net, [protocol("arp", "drop")], port=table, mirror=mirrors) as e, region_of(e) as region:
        net.lab.send(net.fa, [numbered(i) for i in range(60)])
        e.send([numbered(i) for i in range(40)])
        assert len(e.ear.take(60)) == 60
        eventually(lambda: e.counters("left")["rx_frames"] == 100)
        left, right = e.counters("left"), e.counters("right")
        assert (left["drop_direction"], left["delivered"], left["mirrored"]) == (60, 40, 60)
        assert right["tx_queued"] == right["tx_frames"] == 60 and balanced(region)


def test_10_netisrs_books_are_those_of_the_ports_and_of_the_handlers(net):
    with started(net, [protocol("ip", policy="flow", qlimit=4)]) as e:
        for how in ("direct", "hybrid", "deferred"):
            e.sysctl("net.isr.dispatch", how)
            for _ in range(5):
                e.send([frame(i, i % 32) for i in range(100)])
                time.sleep(0.01)
        eventually(lambda: e.counters("left")["rx_frames"] == 1500)
        e.at_rest()
        rows = e.rows("ip")
        ways_in = ("dispatched", "hybrid-dispatched", "queued", "queue-drops")
        counts = {key: sum(row[key] for row in rows) for key in (*ways_in, "handled")}
        assert sum(counts[key] for key in ways_in) == e.counters("left")["classified"] == 1500, counts
        assert all(counts.values()), "every way was gone"
        assert counts["handled"] == sum(row["frames"] for row in e.engine.status()["handlers"]) == e.counters("right")["tx_frames"]


def eaten(port, n):
    while n > 0:
        with port.recv(timeout=5) as batch:
            if not len(batch):
                return
            n -= len(batch)
            yield from range(len(batch))
