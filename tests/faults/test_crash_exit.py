"""However a program that holds ports ends, the host has its traffic back, and nothing of it stays; signals that do not end it lose nothing.

A taken interface gives the host's own stack nothing. Whether it does is asked of a socket on one protocol, which is fed behind the taking.
"""

import json
import os
import random
import signal
import sys
import time

import psutil
import pytest
from command import COMMAND, eventually, left, pktring, started
from frames import ETHERTYPE
from live import Load, accounted, bridged, heard, middle, once_in_order

from pktring.shm.region import Region

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]

KILLS = 10
HOLDER = """
import sys, pktring
with pktring.open("fa", take=1) as a, pktring.open("fb", take=1) as b:
    print("pktring: ready", file=sys.stderr, flush=True)
    for batch in a.batches():
        batch.forward(b)
"""


@pytest.fixture
def net():
    with middle() as net:
        yield net


def killed_at_random(net, n, start):
    """Start it, kill it within 100 ms of forwarding, see that the host gets its traffic and that nothing else is left. n times."""
    links, pids = links_of(net), []
    with heard(net.fa.netns, ETHERTYPE) as host, Load(net.a) as load:
        for _ in range(n):
            child = start()
            pids.append(child.pid)
            time.sleep(0.02)  # what was on its way to the host when it was taken
            quiet = len(host)
            time.sleep(random.uniform(0.01, 0.1))
            assert len(host) == quiet, "the host hears what is taken from it"
            child.kill()
            child.wait(10)
            quiet = len(host)
            eventually(lambda at=quiet: len(host) > at, 2)
            load.goes_on(20)
    assert links_of(net) == links
    swept(pids)


def swept(pids):
    """The next to open anything removes what the dead left in /dev/shm."""
    with Region.create(f"test-sweep-{os.getpid()}", rings=1, slots=64):
        assert not [name for name in left() for pid in pids if name.startswith(f"pktring.{pid}-")]


def links_of(net):
    return {(link["ifname"], link.get("promiscuity")) for link in json.loads(net.lab.run(net.fa.netns, ["ip", "-d", "-j", "link"]).stdout)}


def test_a_killed_bridge_gives_the_host_its_traffic_back(net):
    killed_at_random(net, KILLS, lambda: started(net.lab, net.fa.netns, "bridge", "fa", "fb"))


def test_a_killed_python_program_gives_the_host_its_traffic_back(net):
    def start():
        child = net.lab.start(net.fa.netns, [sys.executable, "-c", HOLDER], stderr=-1)
        assert child.stderr.readline() == "pktring: ready\n"
        return child

    killed_at_random(net, KILLS // 2, start)


def test_a_killed_bridge_takes_its_tap_with_it(net):
    child = started(net.lab, net.fa.netns, "bridge", "fa", "tap:t0")
    assert "t0" in {name for name, _ in links_of(net)}
    child.kill()
    child.wait(10)
    eventually(lambda: "t0" not in {name for name, _ in links_of(net)})
    swept([child.pid])


def test_a_killed_capture_leaves_a_file_of_whole_frames_in_order(net, tmp_path):
    path = tmp_path / "f.pcapng"
    for _ in range(KILLS // 2):
        with Load(net.a) as load:
            child = started(net.lab, net.fa.netns, "capture", "-i", "fa", "-w", path)
            eventually(lambda: path.exists() and path.stat().st_size > 20_000)
            time.sleep(random.uniform(0, 0.1))
            child.kill()
            child.wait(10)
        again = pktring("capture", "-r", path, "-w", tmp_path / "again.pcapng", "--json")
        assert again.returncode == 0 or "E_PCAP" in again.stderr, again
        assert json.loads(again.stdout)["captured"] > 50
        got = numbers(tmp_path / "again.pcapng")
        once_in_order(load, got)
        assert got == list(range(got[0], got[0] + len(got))), "a hole in what was written"
        path.unlink()
        swept([child.pid])


def numbers(path):
    import pktring as product

    with product.open(f"pcap:{path}") as port:
        return [int.from_bytes(frame[14:22], "big") for batch in port.batches() for frame in batch if len(frame) >= 22]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_bridge_asked_to_end_under_load_reports_exactly_what_it_did(net, number):
    before = left()
    with heard(net.b.netns) as got, heard(net.fa.netns, ETHERTYPE) as host, Load(net.a) as load:
        child = started(net.lab, net.fa.netns, "bridge", "fa", "fb", "--json")
        eventually(lambda: len(got) > 200)
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
        assert child.returncode == 0 and "Traceback" not in err, err
        assert left() <= before
        at = len(host)
        load.goes_on(50)
        eventually(lambda: len(host) > at, 2)
    report = json.loads(out)
    assert report["a_to_b"]["frames"] == len(got) and report["a_to_b"]["dropped"] == 0
    once_in_order(load, got)


def test_two_interrupts_end_it_at_once_and_leave_nothing(net):
    before = left()
    child = started(net.lab, net.fa.netns, "bridge", "fa", "fb")
    child.send_signal(signal.SIGSTOP)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGCONT)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert child.returncode in (0, 130) and "Traceback" not in err, err
    assert left() <= before


def test_a_stopped_and_continued_bridge_loses_nothing_that_the_kernel_had_room_for(net):
    with bridged(net) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        for _ in range(3):
            bridge.child.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            n = len(got)
            load.goes_on(500)
            assert len(got) == n
            bridge.child.send_signal(signal.SIGCONT)
            load.goes_on(100)
    assert not accounted(load, got, bridge.report)


def storm(child, seconds, pause=0.001):
    """SIGUSR1 a thousand times a second, as near as sleep comes to it. -> how many"""
    n, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        child.send_signal(signal.SIGUSR1)
        n += 1
        time.sleep(pause)
    return n


def test_F21_a_storm_of_signals_costs_a_bridge_no_frame(net):
    with bridged(net) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        sent = storm(bridge.child, 2)
        load.goes_on(100)
    assert sent > 100 and bridge.count("A>B") > 1, "it was asked for its counts"
    assert not accounted(load, got, bridge.report)


def test_F21_a_storm_of_signals_costs_a_capture_no_frame(net, tmp_path):
    path = tmp_path / "f.pcapng"
    with open(tmp_path / "said", "w+") as said:
        child = net.lab.start(net.fa.netns, [*COMMAND, "capture", "-i", "fa", "-w", str(path), "--json"], stdout=-1, stderr=said)
        eventually(lambda: path.exists())
        time.sleep(0.2)
        with Load(net.a) as load:
            storm(child, 2)
            load.goes_on(100)
        time.sleep(0.3)
        child.terminate()
        out, _ = child.communicate(timeout=10)
    assert child.returncode == 0
    report = json.loads(out)
    got = numbers(path)
    assert report["dropped_kernel"] == 0 == report["dropped_engine"]
    assert got[0] == 0 and not once_in_order(load, got)


@pytest.mark.needs("strace")
def test_F21_interrupted_calls_are_made_again(net):
    """Every second call of those that may be interrupted is, by the kernel's own error."""
    calls = "sendmmsg,poll,epoll_wait,recvmsg,getsockopt"
    inject = [arg for call in calls.split(",") for arg in ("-e", f"inject={call}:error=EINTR:when=1+2")]
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", *inject, *COMMAND, "bridge", "fa", "fb", "--json"]
    child = net.lab.start(net.fa.netns, argv, stdout=-1, stderr=-1)
    while "bridging" not in (line := child.stderr.readline()):
        assert line
    with heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 2000, 20)
    time.sleep(0.3)
    (bridge,) = psutil.Process(child.pid).children()
    bridge.terminate()
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    assert not accounted(load, got, json.loads(out))
