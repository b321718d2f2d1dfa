"""`pktring up` as a user runs it: rules, mirrors, handlers of every kind, what is left to the host, reload, notifications to systemd."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from command import eventually
from engine_handlers import ETHERTYPES, frame
from engine_lab import running
from frames import number, numbered
from lab import End, _roomy
from live import Load, heard, middle, once_in_order

import pktring
from pktring.drivers.netns import entered

try:
    import numba
except ImportError:
    numba = None

pytestmark = pytest.mark.needs("root")
PORTS = """
[engine]
name = "t"
workers = 2
slots = 256
[port.left]
interface = "fa"
rings = 2
[port.right]
interface = "fb"
rings = 2
"""
RULES = (
    PORTS
    + """
[port.side]
interface = "fc"
[[forward]]
from = "left"
to = "side"
filter = "ether proto 0x88b6"
[[forward]]
from = "left"
to = "right"
both = true
filter = "not ether proto 0x88b7"
[[forward]]
from = "left"
to = "side"
filter = "ether proto 0x88b8"
[[mirror]]
from = "left"
to = "side"
direction = "in"
filter = "ether proto 0x88b5"
[[mirror]]
from = "right"
to = "pcap:FOLDER/right.pcapng"
direction = "in"
"""
)
HANDLERS = """
import pktring

def marked(frame, mark):
    frame[79] = mark

def batch(batch):
    for i in range(len(batch)):
        batch[i][79] = 1
    assert batch.forward("right", where=batch.lengths == 80) == len(batch)

@pktring.per_frame(to="right")
def each(frame):
    frame[79] = 2
    return frame[49] != 7

def broken(batch):
    raise ValueError("this one is broken")
"""
COMPILED = """
@pktring.compiled(to="right")
def fast(frame, length):
    frame[79] = 3
    return length == 80
"""
SOURCE = """
#include <pktring_handler.h>
void mark(struct pktring_batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        b->frame[i][79] = 4;
        b->verdict[i] = 1;
    }
}
"""


BOTH = '[[forward]]\nfrom = "left"\nto = "right"\nboth = true\nfilter = "not arp"\n'


def protocols(**handlers):
    return "".join(f'[[protocol]]\nname = "{name}"\nhandler = "{handler}"\npolicy = "flow"\n' for name, handler in handlers.items())


def counters(engine, port):
    return engine.status()["ports"][port]["counters"]


def captured(path):
    """The frames of a file."""
    from scapy.utils import RawPcapNgReader

    with RawPcapNgReader(str(path)) as reader:
        return [data for data, _ in reader]


# ---- rules and mirrors ----


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """An engine with three ports, and where its capture is."""
    folder = tmp_path_factory.mktemp("rules")
    with middle() as net:
        c, fc = End(net.lab.namespace("c"), "vc"), End(net.fa.netns, "fc")
        net.lab.veth(c, fc)
        with running(net, RULES.replace("FOLDER", str(folder))) as engine:
            engine.c, engine.captured = c, []
            yield engine
    assert captured(folder / "right.pcapng") == engine.captured


def test_rules_are_tried_in_order_and_mirrors_get_copies(ruled):
    net = ruled.net
    with net.lab.listening(net.b) as b, net.lab.listening(ruled.c) as c:
        sent = [numbered(i, 100, 0x88B5 + i % 4) for i in range(40)]
        net.lab.send(net.a, sent)
        of = {0x88B5 + k: sent[k::4] for k in range(4)}
        assert sorted(b.take(20)) == sorted(of[0x88B5] + of[0x88B8]), "what rule 1 took never comes to rule 2, what 2 took never to 3"
        assert sorted(c.take(20)) == sorted(of[0x88B6] + of[0x88B5]), "a rule's and a mirror's"
        assert not b.take(1, 0.1) and not c.take(1, 0.1)
    left = counters(ruled, "left")
    assert (left["rx_frames"], left["forwarded"], left["drop_no_rule"], left["mirrored"]) == (40, 30, 10, 10)
    assert left["copies"] == 0, "only mirrors copy, and what they copy is counted there"


def test_both_ways_and_a_mirror_into_a_file(ruled):
    net = ruled.net
    sent = [numbered(i, 60 + i) for i in range(200)]
    with net.lab.listening(net.a) as a:
        net.lab.send(net.b, sent)
        assert sorted(a.take(200)) == sorted(sent)
    eventually(lambda: counters(ruled, "right")["mirrored"] == 200)
    ruled.captured = sent


def test_what_no_rule_takes_the_host_of_a_taking_port_does_not_see(ruled):
    net = ruled.net
    before = counters(ruled, "left")["drop_no_rule"]
    with heard_by_the_stack(net, 0x88B7) as got:
        net.lab.send(net.a, [numbered(i, 64, 0x88B7) for i in range(25)])
        eventually(lambda: counters(ruled, "left")["drop_no_rule"] == before + 25)
    assert not got


@contextlib.contextmanager
def heard_by_the_stack(net, ethertype):
    """Numbers that the middle host's own stack receives."""
    got = []
    with entered(net.fa.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype)) as sock:
        _roomy(sock)
        sock.settimeout(0.2)
        yield got
        with contextlib.suppress(TimeoutError):
            while True:
                got.append(number(sock.recv(2048)))


def test_a_watched_port_leaves_everything_to_the_host_and_its_capture_is_whole():
    with middle() as net:
        watching = PORTS.partition("[port.right]")[0] + '[[mirror]]\nfrom = "left"\nto = "pcap:CAPTURE"\n'
        capture = Path(f"/tmp/pktring-test-{os.getpid()}-watched.pcapng")
        try:
            with running(net, watching.replace("CAPTURE", str(capture))) as engine:
                assert engine.status()["ports"]["left"]["facts"]["mode"] == "watching"
                with heard_by_the_stack(net, 0x88B5) as got:
                    sent = [numbered(i, 70) for i in range(300)]
                    net.lab.send(net.a, sent)
                    eventually(lambda: counters(engine, "left")["mirrored"] == 300)
                assert got == list(range(300))
                assert counters(engine, "left")["delivered"] == 300 and not counters(engine, "left")["drop_no_rule"]
            assert sorted(captured(capture)) == sorted(sent)
        finally:
            capture.unlink(missing_ok=True)


def test_taking_by_name_consumes_before_any_rule(ruled, monkeypatch):
    """`?take=1` of what the engine owns: the frames themselves, and those that the filter leaves go on."""
    net = ruled.net
    monkeypatch.setenv("PKTRING_RUNDIR", ruled.env["PKTRING_RUNDIR"])
    with net.lab.listening(net.b) as b:
        with entered(net.fa.netns):
            port = pktring.open("fa?take=1", filter="ether[21] & 1 = 1")
        with port:
            net.lab.send(net.a, [numbered(i, 64) for i in range(50)])
            mine = []
            while len(mine) < 25:
                with port.recv(timeout=3) as batch:
                    assert len(batch), mine
                    mine += [number(batch[i]) for i in range(len(batch))]
            assert sorted(mine) == list(range(1, 50, 2))
            assert sorted(number(f) for f in b.take(25)) == list(range(0, 50, 2))
        eventually(lambda: not ruled.status()["apps"])
        net.lab.send(net.a, [numbered(i, 64) for i in range(10)])
        assert len(b.take(10)) == 10


# ---- handlers ----


def test_handlers_of_every_kind(tmp_path):
    """A function on a batch, one on a frame, one that is compiled, one in C; each marks its frames and sends them on."""
    (tmp_path / "mark.c").write_text(SOURCE)
    library = tmp_path / "mark.so"
    flags = ["-shared", "-fPIC", "-O2", "-I", pktring.get_include(), "-o", library]
    subprocess.run(["cc", *flags, tmp_path / "mark.c"], check=True, timeout=60)
    kinds = {"ip": "handlers:batch", "arp": "handlers:each", "ether": f"so:{library}:mark"}
    marks = {"ip": 1, "arp": 2, "ether": 4}
    if numba:
        kinds, marks = kinds | {"ipv6": "handlers:fast"}, marks | {"ipv6": 3}
    source = HANDLERS + (COMPILED if numba else "")
    with middle() as net, running(net, PORTS + protocols(**kinds), handlers=source) as engine, net.lab.listening(net.b) as ear:
        assert engine.status()["ports"]["left"]["facts"]["mode"] == "watching", "nothing said that it takes"
        net.lab.send(net.a, [frame(i, i, kind) for i in range(50) for kind in kinds])
        got = ear.take(50 * len(kinds) - 1)
        by_kind = {kind: [f for f in got if int.from_bytes(f[12:14]) == ETHERTYPES[kind]] for kind in kinds}
        assert {kind: len(frames) for kind, frames in by_kind.items()} == {kind: 50 - (kind == "arp") for kind in kinds}
        for kind, frames in by_kind.items():
            assert {f[79] for f in frames} == {marks[kind]}
            assert sorted(f[:79] for f in frames) == sorted(frame(i, i, kind)[:79] for i in range(50) if kind != "arp" or i != 7)
        done = {}
        for row in engine.status()["handlers"]:
            done[row["name"]] = done.get(row["name"], 0) + row["frames"]
            assert row["raised"] == 0
        assert done == dict.fromkeys(kinds, 50)
        assert counters(engine, "left")["classified"] == 50 * len(kinds)


def test_built_ins_and_a_handler_that_raises():
    kinds = {"ip": "forward:right", "arp": "mirror", "ipv6": "drop", "ether": "handlers:broken"}
    with middle() as net, running(net, PORTS + protocols(**kinds), handlers=HANDLERS) as engine:
        with net.lab.listening(net.b) as b, net.lab.listening(net.a) as a:
            net.lab.send(net.a, [frame(i, i, kind) for i in range(30) for kind in kinds])
            assert sorted(b.take(30)) == sorted(frame(i, i, "ip") for i in range(30))
            assert sorted(a.take(30)) == sorted(frame(i, i, "arp") for i in range(30)), "back by the port that they came in by"
            assert not b.take(1, 0.1) and not a.take(1, 0.1)
        rows = engine.status()["handlers"]
        broken = [row for row in rows if row["name"] == "ether"]
        assert sum(row["lost"] for row in broken) == 30 == sum(row["frames"] for row in broken) >= sum(row["raised"] for row in broken) > 0
        assert any("ValueError: this one is broken" in row["last_error"] for row in broken)
        engine.told("handlers:broken raised ValueError: this one is broken")
        assert [w["restarts"] for w in engine.status()["workers"]] == [0, 0]


# ---- reload, notifications ----


def test_a_reload_under_load_loses_nothing_and_a_wrong_file_changes_nothing():
    with middle() as net, running(net, PORTS + BOTH) as engine:
        file = Path(engine.env["PYTHONPATH"]) / "engine.toml"
        right = file.read_text()
        pids = [w["pid"] for w in engine.status()["workers"]]
        with heard(net.b.netns) as got, Load(net.a) as load:
            load.goes_on()
            file.write_text(right + '[[forward]]\nfrom = "right"\nto = "left"\nfilter = "arp"\n')
            engine.child.send_signal(signal.SIGHUP)
            eventually(lambda: not {w["pid"] for w in engine.status()["workers"]} & {0, *pids}, 10)
            load.goes_on()
            file.write_text(right + '[[forward]]\nfrom = "right"\nto = "nowhere"\n')
            pids = [w["pid"] for w in engine.status()["workers"]]
            engine.child.send_signal(signal.SIGHUP)
            engine.told("E_CONFIG .*nowhere")
            for wrong in (right.replace("rings = 2", "rings = 1"), right.replace("right", "left", 1), PORTS + BOTH.replace("both", "#")):
                before = len(engine.lines("E_CONFIG"))
                file.write_text(wrong)
                engine.child.send_signal(signal.SIGHUP)
                eventually(lambda n=before: len(engine.lines("E_CONFIG")) > n)
            load.goes_on()
        assert not once_in_order(load, got)
        assert [w["pid"] for w in engine.status()["workers"]] == pids
        with net.lab.listening(net.a) as ear:
            net.lab.send(net.b, [frame(1, 0, "arp"), frame(2, 0, "ip")])
            assert sorted(ear.take(2)) == sorted([frame(1, 0, "arp"), frame(2, 0, "ip")]), "arp only by the new rule"


def test_a_reload_gives_a_protocol_another_handler_and_refuses_no_frame_meanwhile():
    with middle() as net, running(net, PORTS + protocols(ip="handlers:batch"), handlers=HANDLERS) as engine:
        with net.lab.listening(net.b) as ear:
            over = []
            file = Path(engine.env["PYTHONPATH"]) / "engine.toml"
            file.write_text(PORTS + protocols(ip="handlers:each"))
            engine.child.send_signal(signal.SIGHUP)
            sent = 0
            while not over:
                net.lab.send(net.a, [frame(sent + i, i % 6) for i in range(20)])
                sent += 20
                marks = [f[79] for f in ear.take(20)]
                assert len(marks) == 20
                over = [m for m in marks if m == 2] if marks[-1] == 2 == marks[0] else []
                assert sent < 20_000
        (row,) = {(r["name"], r["protocol"]) for r in engine.status()["handlers"]}
        assert row == ("ip", 1)
        work = [row for stream in engine.status()["netisr"]["workstreams"] for row in stream["work"]]
        assert sum(row["handled"] for row in work) == sent


def test_systemd_is_told():
    with middle() as net, contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
        path = f"/tmp/pktring-test-{os.getpid()}-notify"
        notify.bind(path)
        notify.settimeout(10)
        try:
            with running(net, PORTS, env={"NOTIFY_SOCKET": path}) as engine:
                assert "READY=1" in notify.recv(4096).decode().splitlines()
                engine.child.send_signal(signal.SIGHUP)
                assert "RELOADING=1" in notify.recv(4096).decode().splitlines()
                assert "READY=1" in notify.recv(4096).decode().splitlines()
                assert engine.run("down", "t").returncode == 0
                assert "STOPPING=1" in notify.recv(4096).decode().splitlines()
                assert engine.child.wait(10) == 0
        finally:
            os.unlink(path)
