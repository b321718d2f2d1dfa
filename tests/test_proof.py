"""What would give a toy away: the path is in C, and zero-copy is zero copies."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from command import eventually
from conservation import balanced
from frames import numbered
from lab import Lab
from live import bridged, middle
from pyroute2 import IPRoute

import pktring
from pktring.engine import filter as pcap_filter
from pktring.engine.forward import Forwarder, Path
from pktring.shm.region import Region

pytestmark = pytest.mark.needs("root")

LOAD = [sys.executable, "-m", "pktring.tools.bench_load"]

# `pktring bridge` in this process, with a clock around the one call that runs the loop in C. Everything else that the process
# burns while it bridges is charged to the interpreter: the C called from there (kernel drop counts, link events) too.
CLOCKED = """
import json, sys, time
from pktring.engine.forward import Forwarder
from pktring.tools import bridge, main

inside = [0.0, 0]
class Clocked:
    def __init__(self, loop): self._loop = loop
    def __getattr__(self, name): return getattr(self._loop, name)
    def run(self, ns):
        begun = time.thread_time()
        try:
            return self._loop.run(ns)
        finally:
            inside[0] += time.thread_time() - begun
            inside[1] += 1

run = bridge.Bridge.run
def clocked(self, *args, **how):
    self._forwarder._loop = Clocked(self._forwarder._loop)
    begun = time.process_time()
    run(self, *args, **how)
    print(json.dumps({"total": time.process_time() - begun, "loop": inside[0], "calls": inside[1]}), file=sys.stderr)
bridge.Bridge.run = clocked
sys.exit(main.main(["bridge", "fa", "fb", "--json", "--duration", "2"]))
"""


@pytest.fixture
def net():
    with middle() as net:
        yield net


@pytest.fixture
def region():
    with Region.create(f"test-proof-{os.getpid()}", rings=8, slots=512) as region:
        yield region


def received(net, end):
    with net.lab.inside(end.netns), IPRoute() as ipr:
        return dict(ipr.get_links(net.lab.index(end))[0].get_attr("IFLA_STATS64"))["rx_packets"]


def flood(net, seconds):
    """As many frames as this machine makes, out of va, from another process."""
    return net.lab.start(net.a.netns, [*LOAD, "va", "64", str(seconds), "0"], stdout=-1)


# ---- the path is in C ----


@pytest.mark.needs("strace")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_at_full_load_a_call_into_the_kernel_carries_16_frames(net, rx, tmp_path):
    """Every call of every thread of the bridge, over a second in which it never rests; frames as the far end received them."""
    said = tmp_path / "calls"
    with bridged(net, rx) as bridge:
        load = flood(net, 4)
        before = received(net, net.b)
        eventually(lambda: received(net, net.b) - before > 20_000, 10)
        tracer = subprocess.Popen(["strace", "-c", "-f", "-o", said, "-p", str(bridge.child.pid)], stderr=subprocess.PIPE, text=True)
        assert "attached" in tracer.stderr.readline()
        frames = received(net, net.b)
        time.sleep(1.2)
        frames = received(net, net.b) - frames
        tracer.terminate()
        tracer.wait(10)
        load.wait(20)
    (total,) = re.findall(r"^100\.00 .* total$", said.read_text(), re.M)
    calls = int(total.split()[3])  # percent, seconds, microseconds a call, calls, perhaps errors
    print(f"{rx}: {frames} frames, {calls} calls, {frames / calls:.1f} frames a call")
    assert frames > 5000, "a load, not a trickle"
    assert calls < frames / 16, said.read_text()


def test_at_full_load_the_interpreter_has_less_than_a_hundredth_of_the_time(net):
    """CPU time of the thread inside the loop in C, against CPU time of the process from the loop's start to its end."""
    load = flood(net, 4)
    child = net.lab.start(net.fa.netns, [sys.executable, "-c", CLOCKED], stdout=-1, stderr=-1)
    out, err = child.communicate(timeout=30)
    load.wait(20)
    assert child.returncode == 0, err
    clock = json.loads(err.splitlines()[-1])
    share = 1 - clock["loop"] / clock["total"]
    print(f"interpreter {share:.2%} of {clock['total']:.2f} s CPU, {clock['calls']} calls, {json.loads(out)['a_to_b']['frames']} frames")
    assert clock["total"] > 0.2, "it was idle"
    assert share < 0.01, clock


# ---- zero-copy ----


def upcoming(ring, n):
    """The buffers that the next n slots of a ring hold: what a driver will fill, or what it has just sent."""
    return [ring.slot((ring.head + i) % ring.num_slots)[0] for i in range(n)]


@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_the_buffer_that_received_a_frame_is_the_one_that_sends_it(region, rx):
    with Lab() as lab:
        a, b = lab.pair(("va", "vb"))
        c, d = lab.pair(("vc", "vd"))
        with (
            pktring.open("vb", netns=b.netns, region=region, take=1, rx=rx) as left,
            pktring.open("vc", netns=c.netns, region=region, take=1, rx=rx) as right,
        ):
            ear = lab.listening(d)
            forwarder = Forwarder([Path(left, right), Path(right, left)])
            for _ in range(5):  # 750 frames around rings of 512 slots
                stamped = upcoming(left.rx_rings[0], 150)
                first = right.tx_rings[0].head
                sent = [numbered(i, 64 + i) for i in range(150)]
                lab.send(a, sent)
                while len(got := ear.take(150, 0.01)) < 150 and left.stats()["forwarded"] % 150:
                    forwarder.run(0.01)
                forwarder.run(0.05)
                got += ear.take(150 - len(got))
                assert got == sent
                ring = right.tx_rings[0]
                assert [ring.slot((first + i) % ring.num_slots)[0] for i in range(150)] == stamped
            assert left.stats()["copies"] == 0 == right.stats()["copies"] and left.stats()["forwarded"] == 750
            assert balanced(region)


def test_a_filter_lets_the_same_buffers_through(region):
    with Lab() as lab:
        a, b = lab.pair(("va", "vb"))
        c, _ = lab.pair(("vc", "vd"))
        with (
            pktring.open("vb", netns=b.netns, region=region, take=1) as left,
            pktring.open("vc", netns=c.netns, region=region, take=1) as right,
        ):
            stamped, first = upcoming(left.rx_rings[0], 90), right.tx_rings[0].head
            lab.send(a, [numbered(i, ethertype=0x88B6 if i % 3 == 0 else 0x88B5) for i in range(90)])
            Forwarder([Path(left, right, filter=pcap_filter.compile("ether proto 0x88b6"))]).run(0.2)
            assert [right.tx_rings[0].slot(first + i)[0] for i in range(30)] == stamped[::3]
            assert (left.stats()["copies"], left.stats()["drop_filter"]) == (0, 60) and balanced(region)


def test_a_batch_in_python_forwards_the_same_buffers(region):
    with Lab() as lab:
        a, b = lab.pair(("va", "vb"))
        c, _ = lab.pair(("vc", "vd"))
        with (
            pktring.open("vb", netns=b.netns, region=region, take=1) as left,
            pktring.open("vc", netns=c.netns, region=region, take=1) as right,
        ):
            stamped, first = upcoming(left.rx_rings[0], 40), right.tx_rings[0].head
            lab.send(a, [numbered(i) for i in range(40)])
            forwarded = []
            while left.stats()["rx_frames"] < 40 or left.rx_rings[0].ready:
                with left.recv(timeout=1) as batch:
                    where = np.arange(len(batch)) % 2 == 0
                    forwarded += batch.buffers[where].tolist()
                    batch.forward(right, where=where)
            assert set(forwarded) <= set(stamped) and len(forwarded) >= 20
            assert [right.tx_rings[0].slot(first + i)[0] for i in range(len(forwarded))] == forwarded
            assert left.stats()["copies"] == 0 == right.stats()["copies"] and balanced(region)


def test_what_is_copied_is_counted_as_copied(region):
    """The counter is no constant: between regions there is no other way."""
    with (
        Region.create(f"test-proof-other-{os.getpid()}", rings=2, slots=64) as other,
        pktring.open("null:?len=60&count=500", directions="rx", region=region) as source,
        pktring.open("null:", directions="tx", region=other) as sink,
    ):
        assert Forwarder([Path(source, sink)]).run(1) == "end"
        assert source.stats()["copies"] == 500 == sink.stats()["tx_frames"]
