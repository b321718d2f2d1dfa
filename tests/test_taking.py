"""A taken interface gives the host nothing, AF_PACKET everything, and is the host's again whatever ends the taking."""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lab
import pytest
from lab import End, Lab

from pktring.drivers import link, netlink, taking
from pktring.drivers.taking import HostDrop, would_cut_host
from pktring.shm.errors import Error

pytestmark = pytest.mark.needs("root")

PORT = 4789


@pytest.fixture
def net():
    with Lab() as net:
        yield net


@pytest.fixture
def ends(net):
    a, b = net.pair()
    resolved(net, a, b)
    return a, b


def resolved(net, a, b):
    """Tell a where b is, so that a sends to a host that does not answer ARP."""
    with net.inside(a.netns), lab.IPRoute() as ipr:
        ipr.neigh("replace", dst=b.host, lladdr=link.facts(b.name, b.netns).mac.hex(":"), ifindex=net.index(a), state="permanent")


@contextlib.contextmanager
def host(net, end):
    """Listen on UDP as a program of that host."""
    with net.inside(end.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", PORT))
        yield sock


def hears(net, a, b, sock, within_s=0.15):
    """Say whether a datagram sent by host a reaches `sock` on host b."""
    with net.inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"are you there?", (b.host, PORT))
    sock.settimeout(within_s)
    with contextlib.suppress(TimeoutError):
        return sock.recv(99) == b"are you there?"
    return False


def seen_by_stack(net, end):
    """Count the packets that the host's IP and IPv6 received, and read its ARP table."""
    with net.inside(end.netns):
        v4, v6, arp = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("snmp", "snmp6", "arp"))
    names, values = (line.split() for line in v4.splitlines() if line.startswith("Ip:"))
    return values[names.index("InReceives")], re.search(r"Ip6InReceives\s+(\d+)", v6)[1], arp


def test_the_host_hears_before_and_after_but_not_during(net, ends):
    a, b = ends
    with host(net, b) as sock, net.listening(b) as ear:
        assert hears(net, a, b, sock)
        with HostDrop(b.name, b.netns) as drop:
            assert not hears(net, a, b, sock) and os.fstat(drop.fileno())
            assert len(ear.take(2)) == 2, "AF_PACKET saw what came before and what was dropped"
        assert hears(net, a, b, sock)


def test_what_the_host_sends_still_leaves(net, ends):
    a, b = ends
    resolved(net, b, a)
    with HostDrop(b.name, b.netns), host(net, a) as sock:
        assert hears(net, b, a, sock)


def test_every_kind_of_frame_is_dropped_and_seen_by_packet_sockets():
    with Lab(ipv6=True) as net:
        a, b = net.pair()
        here, there = (link.facts(end.name, end.netns).mac for end in (a, b))
        arp = bytes.fromhex("0001 0800 0604 0001") + here + socket.inet_aton("10.0.0.9") + bytes(6) + socket.inet_aton(b.host)
        ip = bytes.fromhex("4500 001c 0001 0000 40fd 0000") + socket.inet_aton(a.host) + socket.inet_aton(b.host) + bytes(8)
        ends6 = b"".join(socket.inet_pton(socket.AF_INET6, end) for end in ("fe80::9", "ff02::1"))
        ip6 = bytes.fromhex("6000 0000 0008 3b40") + ends6 + bytes(8)
        to, all_hosts, all_nodes = there + here, b"\xff" * 6 + here, bytes.fromhex("333300000001") + here
        frames = [
            all_hosts + bytes.fromhex("0806") + arp,
            all_nodes + bytes.fromhex("86dd") + ip6,
            to + bytes.fromhex("0800") + ip,
            to + bytes.fromhex("8100 0000 0800") + ip,  # a priority tag: the host takes it for its own
            to + bytes.fromhex("8100 0005 0800") + ip,
            to + bytes.fromhex("88a8 0005 8100 0006 0800") + ip,
            to + bytes.fromhex("0026") + bytes(38),  # 802.3 with LLC
            to + bytes.fromhex("88b5") + bytes(46),
        ]
        with HostDrop(b.name, b.netns), net.listening(b) as ear:
            quiet = seen_by_stack(net, b)
            net.send(a, frames)
            seen = ear.take(99, 0.3)
            assert all(frame in seen for frame in frames)
            assert seen_by_stack(net, b) == quiet
        net.send(a, frames)
        assert seen_by_stack(net, b) != quiet, "else the counters that proved it do not count"


def test_a_bridge_gets_nothing_from_a_taken_port(net, ends):
    a, b = ends
    net.veth(End(b.netns, "p1"), far := End(net.namespace("far"), "f0"))
    net.bridge(End(b.netns, "br0"), ["vb", "p1"])
    frame = b"\xff" * 6 + bytes.fromhex("0200000000aa 88b5") + bytes(46)
    with net.listening(far) as ear:
        with HostDrop("vb", b.netns):
            net.send(a, [frame])
            assert ear.take(1, 0.15) == []
        net.send(a, [frame])
        assert ear.take(1) == [frame]


def test_a_killed_taker_gives_the_interface_back(net, ends):
    a, b = ends
    script = f"import sys; sys.path = {sys.path}; from pktring.drivers.taking import HostDrop; import time"
    script += f"; drop = HostDrop('vb', {b.netns!r}); print('taken', flush=True); time.sleep(60)"
    child = net.start(None, [sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout.readline() == "taken\n"
    with host(net, b) as sock:
        assert not hears(net, a, b, sock)
        os.kill(child.pid, signal.SIGKILL)
        start = time.monotonic()
        while not (heard := hears(net, a, b, sock, within_s=0.02)) and time.monotonic() < start + 1:
            pass
        assert heard


def test_one_process_takes_two_interfaces_and_gives_back_one(net, ends):
    a, b = ends
    c, d = End(net.namespace("c"), "vc", "10.0.1.1/24"), End(b.netns, "vd", "10.0.1.2/24")
    net.veth(c, d)
    resolved(net, c, d)
    with host(net, b) as sock, HostDrop("vd", b.netns):
        with HostDrop("vb", b.netns):
            assert not hears(net, a, b, sock) and not hears(net, c, d, sock)
        assert hears(net, a, b, sock) and not hears(net, c, d, sock)


def test_a_copy_of_the_descriptor_keeps_it_taken(net, ends):
    a, b = ends
    drop = HostDrop("vb", b.netns)
    kept = os.dup(drop.fileno())
    drop.close()
    with host(net, b) as sock:
        assert not hears(net, a, b, sock)
        os.close(kept)
        assert hears(net, a, b, sock)


def test_two_ports_of_one_process_may_take_the_same_interface(net, ends):
    a, b = ends
    with host(net, b) as sock, HostDrop("vb", b.netns):
        with HostDrop("vb", b.netns):
            assert not hears(net, a, b, sock)
        assert not hears(net, a, b, sock)


def test_an_interface_that_is_not_there_is_not_taken(ends):
    _, b = ends
    with pytest.raises(Error, match="E_NO_INTERFACE vbb"):
        HostDrop("vbb", b.netns)
    with pytest.raises(Error, match="E_NO_NETNS"):
        HostDrop("vb", "no-such-namespace")


def test_a_renamed_interface_is_followed(net, ends):
    a, b = ends
    with host(net, b) as sock, HostDrop("vb", b.netns) as drop:
        net.change(b.netns, "vb", ifname="vz")
        drop.follow("vz")
        assert not hears(net, a, b, sock)
        net.change(b.netns, "vz", ifname="vb")
        drop.follow("vb")
        assert not hears(net, a, b, sock)
    with host(net, b) as sock:
        assert hears(net, a, b, sock)


def test_a_new_interface_of_the_name_is_followed(net, ends):
    a, b = ends
    with host(net, b) as sock, HostDrop("vb", b.netns) as drop:
        net.delete(b.netns, "vb")
        with contextlib.suppress(Error):  # before Linux 6.16 nothing hooks onto a name that is not there yet
            drop.follow("vb")
        net.veth(a, b)
        resolved(net, a, b)
        drop.follow("vb")
        assert not hears(net, a, b, sock)
    with host(net, b) as sock:
        assert hears(net, a, b, sock)


def test_a_hook_that_went_with_its_interface_is_not_missed(net, ends):
    a, b = ends
    with host(net, b) as sock, HostDrop("vb", b.netns) as drop:
        drop._chains = ["deleted-by-the-kernel"]  # as before Linux 6.16
        drop.follow("vb")
        assert not hears(net, a, b, sock)


def test_an_answer_that_a_dead_taker_did_not_read_is_not_taken_for_ours(ends, monkeypatch):
    """Each process numbers its requests from 1 on."""
    _, b = ends
    with HostDrop(b.name, b.netns) as drop:
        monkeypatch.setattr(netlink, "_sequence", itertools.count(1))
        drop._sock.send(b"".join(taking._batch(taking._del_chain(drop._table, "there is none"))))
        monkeypatch.setattr(netlink, "_sequence", itertools.count(1))
        state, fd = drop.hand_on()
        with HostDrop.adopt(state, os.dup(fd)) as heir:
            heir.follow(b.name)


def test_to_follow_leaves_no_gap(net, ends):
    """A host that is flooded while the hook is made anew 500 times hears nothing (replacing the table at once let 107 through in 3000)."""
    a, b = ends
    flood = f"import os, socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(({b.host!r}, {PORT}))"
    flood += "\nwhile True: s.send(b'flood'), os.sched_yield()"
    with host(net, b) as sock, net.listening(b) as ear, HostDrop("vb", b.netns) as drop:
        net.start(a.netns, [sys.executable, "-c", flood])
        assert ear.take(1)
        for _ in range(500):
            drop.follow("vb")
        assert len(ear.take(500)) == 500, "the flood was no flood"
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(99)


@pytest.mark.needs("unshare")
def test_it_works_in_a_user_namespace():
    if not lab.can_unshare():
        pytest.skip("root: user namespaces are not allowed here")
    tests = [test_the_host_hears_before_and_after_but_not_during, test_every_kind_of_frame_is_dropped_and_seen_by_packet_sockets]
    node = [f"{__file__}::{test.__name__}" for test in tests]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *node]
    done = subprocess.run(lab.unshared(command), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


# E_WOULD_CUT_HOST.


def test_an_ordinary_interface_cuts_nobody_off(ends):
    a, _ = ends
    assert would_cut_host("va", a.netns) is None


def test_the_default_route_is_not_to_be_taken(net, ends):
    a, _ = ends
    net.run(a.netns, ["ip", "route", "add", "default", "via", "10.0.0.2"])
    assert would_cut_host("va", a.netns) == "va carries the default route"
    assert would_cut_host("lo", a.netns) is None


def test_a_port_of_the_bridge_with_the_default_route_is_not_to_be_taken(net, ends):
    a, _ = ends
    net.veth(End(a.netns, "vc"), End(net.namespace(), "vd"))
    net.bridge(End(a.netns, "br0", "10.0.5.1/24"), ["va"])
    net.run(a.netns, ["ip", "route", "add", "default", "via", "10.0.5.2"])
    assert would_cut_host("va", a.netns) == "va, below br0, carries the default route"
    assert would_cut_host("vc", a.netns) is None


def test_the_other_end_of_a_veth_to_the_world_may_be_taken(net):
    """The host's way out may lead through the engine: the engine then takes the end that the host does not use."""
    here = net.namespace()
    net.veth(End(here, "host", "10.0.0.1/24"), End(here, "engine"))
    net.run(here, ["ip", "route", "add", "default", "via", "10.0.0.2"])
    assert would_cut_host("host", here) and would_cut_host("engine", here) is None


@pytest.mark.parametrize(
    "connection, cut",
    [
        ("10.0.0.2 50000 192.0.2.1 22", "va"),  # the answers leave by it
        ("198.51.100.1 50000 10.0.0.1 22", "va"),  # the questions arrive at it
        ("fe80::1%va 50000 fe80::2%va 22", "va"),
        ("198.51.100.1 50000 192.0.2.1 22", None),
    ],
)
def test_the_way_of_this_ssh_connection_is_not_to_be_taken(net, ends, monkeypatch, connection, cut):
    a, _ = ends
    monkeypatch.setenv("SSH_CONNECTION", connection)
    assert would_cut_host("va", a.netns) is None, "we do not come by that namespace"
    with net.inside(a.netns):
        why = would_cut_host("va")
    assert why == (cut and f"va carries this ssh connection, from {connection.split()[0]}")


def test_sudo_does_not_hide_the_ssh_connection(net, monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    script = f"import sys; sys.path = {sys.path}; from pktring.drivers import taking; print(taking._ssh_connection())"
    command = ["sh", "-c", 'env -u SSH_CONNECTION "$@"; true', "sh", sys.executable, "-c", script]
    done = net.run(None, command, env={**os.environ, "SSH_CONNECTION": "10.0.0.2 5 10.0.0.1 22"})
    assert done.stdout == "('10.0.0.2', '10.0.0.1')\n", done.stderr


def test_a_refusal_says_what_is_missing():
    lines = [str(taking._refusal("va", OSError(number, "words"))) for number in (1, 93, 95, 5)]
    assert lines[0].startswith("E_PERM take va:") and "CAP_NET_ADMIN" in lines[0]
    assert "no nfnetlink" in lines[1] and "5.12" in lines[2] and "words" in lines[3]
    assert all(line.startswith("E_TAKE take va from the host by nf_tables:") for line in lines[1:])
