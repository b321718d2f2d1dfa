"""`pktring bridge`: what the command promises its user. That frames cross byte for byte is in test_wire_true.py."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from command import COMMAND, answer, ended, hear, left, pktring, refused, started
from frames import number, numbered
from lab import End, Lab

pytestmark = pytest.mark.needs("root")

ARP_REQUEST = bytes.fromhex("ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000009")


class Net:
    """Host a, host b, and between them the namespace where the bridge runs, with the ends `left` and `right`."""

    def __init__(self, lab):
        self.lab = lab
        self.middle = lab.namespace("middle")
        self.a, self.b = (End(lab.namespace(name), "eth0", f"10.0.0.{i}/24") for i, name in enumerate("ab", 1))
        self.left, self.right = End(self.middle, "left", "10.0.0.9/24"), End(self.middle, "right")
        lab.veth(self.left, self.a)
        lab.veth(self.right, self.b)

    def started(self, *words, **how):
        return started(self.lab, self.middle, "bridge", "left", "right", *words, ready="pktring: bridging", **how)

    def run(self, *words, **how):
        return pktring("bridge", *words, lab=self.lab, netns=self.middle, **how)


@pytest.fixture
def net():
    with Lab() as lab:
        yield Net(lab)


def crossing(net, child, frames_from_a, frames_from_b=()):
    """Send from both hosts; what arrived at the other, in order."""
    with net.lab.listening(net.b) as at_b, net.lab.listening(net.a) as at_a:
        net.lab.send(net.a, frames_from_a)
        net.lab.send(net.b, frames_from_b)
        return at_b.take(len(frames_from_a)), at_a.take(len(frames_from_b))


def test_frames_cross_both_ways_and_the_json_says_so(net):
    child = net.started("--json")
    forth, back = [numbered(i, 60 + i) for i in range(100)], [numbered(i, 60) for i in range(30)]
    assert crossing(net, child, forth, back) == (forth, back)
    status, out, _ = ended(child)
    report = json.loads(out)
    assert status == 0 and 0 < report.pop("seconds") < 30
    assert report == {
        "a_to_b": {"frames": 100, "bytes": sum(map(len, forth)), "dropped": 0, "reasons": {}},
        "b_to_a": {"frames": 30, "bytes": 1800, "dropped": 0, "reasons": {}},
        "mirrors": [],
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_report(net, number):
    status, out, err = ended(net.started(), number)
    assert status == 0
    assert re.fullmatch(r"left > right: 0 frames, 0 bytes, 0 dropped\nright > left: 0 frames, 0 bytes, 0 dropped\n[\d.]+ seconds\n", out)
    assert err.startswith("pktring: bridging left (af_packet, taking) <-> right (af_packet, taking)\n")


def test_duration_ends_it(net):
    assert 0.2 <= answer(net.run("left", "right", "--duration", "200ms", "--json"))["seconds"] < 3


def heard(net):
    """Does the host in the middle answer an ARP request that arrives at `left`?"""
    with net.lab.listening(net.a) as ear:
        net.lab.send(net.a, [ARP_REQUEST])
        return bool(ear.take(1, 0.3))


def test_the_host_hears_nothing_until_the_bridge_is_gone(net):
    assert heard(net)
    child = net.started()
    assert not heard(net)
    child.kill()
    child.wait()
    assert heard(net)


def test_with_take_0_the_host_keeps_its_traffic(net):
    child = started(net.lab, net.middle, "bridge", "left?take=0", "right", ready="pktring: bridging left?take=0 (af_packet, watching)")
    assert heard(net)
    assert crossing(net, child, [numbered(1)]) == ([numbered(1)], [])
    with net.lab.listening(net.b) as ear:  # what the bridge sends out of `left` is not seen there and sent back
        net.lab.send(net.b, [numbered(2)])
        assert not ear.take(1, 0.3)
    assert ended(child)[0] == 0


def test_a_filter_lets_pass_what_matches(net):
    child = net.started("--filter", "ether[21] & 1 = 0", "--json")
    with net.lab.listening(net.b) as ear:
        net.lab.send(net.a, [numbered(i) for i in range(10)])
        assert [number(frame) for frame in ear.take(5)] == [0, 2, 4, 6, 8]
        assert not ear.take(1, 0.2)
    report = json.loads(ended(child)[1])
    assert report["a_to_b"] == {"frames": 5, "bytes": 320, "dropped": 5, "reasons": {"drop_filter": 5}}


def test_mirrors_get_copies_of_both_ways(net, tmp_path):
    from pcapng import FileScanner

    net.lab.veth(End(net.middle, "span"), watcher := End(net.lab.namespace("watcher"), "eth0"))
    file = tmp_path / "m.pcapng"
    child = net.started("--mirror", f"pcap:{file}", "--mirror", "span", "--json")
    with net.lab.listening(watcher) as ear:
        crossing(net, child, [numbered(i) for i in range(10)], [numbered(i) for i in range(100, 105)])
        assert sorted(map(number, ear.take(15))) == [*range(10), *range(100, 105)]
    report = json.loads(ended(child)[1])
    told = [(mirror["port"], mirror["frames"], mirror["unwritten"]) for mirror in report["mirrors"]]
    assert told == [(f"pcap:{file}", 15, 0), ("span", 15, 0)]
    with open(file, "rb") as opened:
        blocks = list(FileScanner(opened))
    packets = [block for block in blocks if type(block).__name__ == "EnhancedPacket"]
    names = [block.options["if_name"] for block in blocks if type(block).__name__ == "InterfaceDescription"]
    assert names == ["left", "right"]
    assert [number(p.packet_data) for p in packets if p.interface_id == 0] == list(range(10))
    assert [number(p.packet_data) for p in packets if p.interface_id == 1] == list(range(100, 105))


def test_a_mirror_whose_disk_is_full_does_not_hold_the_bridge_up(net, tmp_path):
    script = f'mount -t tmpfs -o size=64k t {tmp_path} && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *COMMAND, "bridge", "left", "right", "--mirror", f"pcap:{tmp_path}/m", "--json"]
    child = net.lab.start(net.middle, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.said = child.stderr.readline()
    with net.lab.listening(net.b) as ear:
        for i in range(0, 3000, 100):
            net.lab.send(net.a, [numbered(k, 1000) for k in range(i, i + 100)])
            time.sleep(0.01)
        assert [number(frame) for frame in ear.take(3000)] == list(range(3000))
    status, out, err = ended(child)
    report = json.loads(out)
    assert status == 1 and err.count("E_CAPTURE_SPACE") == 1
    assert report["a_to_b"]["frames"] == 3000 and report["a_to_b"]["dropped"] == 0
    assert report["mirrors"][0]["frames"] < 70


@pytest.mark.parametrize("port", ["tap:pr0", "null:"])
def test_other_kinds_of_ports(net, port):
    child = started(net.lab, net.middle, "bridge", "left", port, "--json", ready="pktring: bridging")
    net.lab.send(net.a, [numbered(i) for i in range(10)])
    time.sleep(0.3)
    status, out, _ = ended(child)
    assert status == 0 and json.loads(out)["a_to_b"]["frames"] == 10


def test_an_end_may_be_in_another_namespace(net):
    child = started(net.lab, None, "bridge", f"left?netns={net.middle}", f"right?netns={net.middle}", ready="pktring: bridging")
    assert crossing(net, child, [numbered(1)], [numbered(2)]) == ([numbered(1)], [numbered(2)])
    assert ended(child)[0] == 0


def test_an_end_that_was_deleted_joins_again_when_it_is_back(net):
    child = net.started("--json")
    assert crossing(net, child, [numbered(1)]) == ([numbered(1)], [])
    net.lab.delete(net.middle, "right")
    hear(child, "E_PORT_GONE if=right")
    net.lab.veth(net.right, net.b)
    hear(child, "I_PORT_UP if=right")
    time.sleep(0.2)
    assert crossing(net, child, [numbered(2)], [numbered(3)]) == ([numbered(2)], [numbered(3)])
    assert ended(child)[0] == 0


def test_sigusr1_tells_the_rates(net):
    child = net.started()
    child.send_signal(signal.SIGUSR1)
    line = hear(child, "A>B")
    assert re.fullmatch(r"pktring: A>B 0 frames/s 0 bit/s dropped 0   B>A 0 frames/s 0 bit/s dropped 0\n", line)
    assert ended(child)[0] == 0


def test_a_terminal_sees_a_rate_each_second(net):
    terminal, inner = os.openpty()
    child = net.lab.start(net.middle, [*COMMAND, "bridge", "left", "right"], stdout=subprocess.PIPE, stderr=inner)
    os.close(inner)
    seen = b""
    deadline = time.monotonic() + 20
    while seen.count(b"A>B") < 2 and time.monotonic() < deadline:
        seen += os.read(terminal, 1000)
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0 and seen.count(b"A>B") >= 2
    os.close(terminal)


# ---- what cannot be ----


def test_the_way_to_this_host_is_not_cut_unless_one_means_it(net):
    from pyroute2 import IPRoute

    with net.lab.inside(net.middle), IPRoute() as ipr:
        ipr.route("add", dst="default", gateway="10.0.0.1")
    line = refused(net.run("left", "right"), "E_WOULD_CUT_HOST", 2)
    assert "left carries the default route" in line and "--yes" in line
    assert heard(net)
    answer(net.run("left", "right", "--yes", "--duration", "100ms", "--json"))


def test_bad_input_is_one_line_and_leaves_nothing(net, tmp_path):
    net.lab.veth(End(net.middle, "v0"), End(net.middle, "v1"))
    before = left()
    for words, code, status in [
        (["left", "nosuch"], "E_NO_INTERFACE", 2),
        (["nosuch", "right"], "E_NO_INTERFACE", 2),
        (["left", "left"], "E_PORT", 2),
        (["left", "af_packet:left"], "E_PORT", 2),
        (["v0", "v1"], "E_PORT", 2),
        (["left", "right", "--filter", "tcp prot 80"], "E_FILTER", 2),
        (["left", "right", "--workers", "2"], "E_WORKERS", 2),
        (["left", f"pcap:{tmp_path}/x"], "E_DIRECTION", 2),
        (["left", "right?color=1"], "E_OPTION", 2),
        (["left", "right", "--mirror", "nosuch"], "E_NO_INTERFACE", 2),
        (["left", "right", "--mirror", f"pcap:{tmp_path}/no/such"], "E_NO_FILE", 2),
        (["left"], "E_USAGE", 2),
        (["left", "right", "--duration", "-1"], "E_USAGE", 2),
    ]:
        refused(net.run(*words), code, status)
    assert left() == before and not list(tmp_path.iterdir())
    assert heard(net)


def test_without_the_privilege_it_says_which(net):
    prefix = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    assert "CAP_NET_" in refused(net.run("left", "right", prefix=prefix), "E_PERM", 1)


def test_a_full_dev_shm_is_one_line_and_takes_nothing(net):
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M t /dev/shm && "$@"', "sh"]
    refused(net.run("left", "right", prefix=prefix), "E_SHM_SPACE", 1)
    assert heard(net)
