"""The networks that the other tests stand on: what is made is there, and gone afterwards, crash or not."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lab
import pytest
from lab import End, Lab

from pktring.drivers import link
from pktring.drivers.netns import entered, identity, named
from pktring.shm.errors import Error

pytestmark = pytest.mark.needs("root")

TO_ALL = bytes.fromhex("ffffffffffff 020000000001")
PLAIN = TO_ALL + bytes.fromhex("88b5") + bytes(46)
TAGGED = TO_ALL + bytes.fromhex("8100 0064 88b5") + bytes(46)
TWICE_TAGGED = TO_ALL + bytes.fromhex("88a8 0064 8100 0065 88b5") + bytes(46)


def test_a_pair_carries_frames_byte_by_byte_and_nothing_else():
    with Lab() as net:
        a, b = net.pair(offloads=False)
        with net.listening(a) as quiet, net.listening(b) as ear:
            assert net.send(a, [PLAIN, TAGGED, TWICE_TAGGED], 100) == 300
            assert ear.take(301, 0.5) == [PLAIN, TAGGED, TWICE_TAGGED] * 100
            assert quiet.take(1, 0.2) == []
            assert ear.dropped() == 0


def test_the_first_frame_arrives():
    """It is not dropped for want of a carrier: without Lab.running, a third of these are."""
    for _ in range(10):
        with Lab() as net:
            a, b = net.pair()
            with net.listening(b) as ear:
                net.send(a, [PLAIN])
                assert ear.take(1) == [PLAIN]


def test_ends_are_what_was_asked_for():
    with Lab() as net:
        a = End(net.namespace("a"), "x0", "192.0.2.1/24", mac="02:00:00:00:00:0a")
        b = End(net.namespace("b"), "x1", "192.0.2.2/24", mac="02:00:00:00:00:0b")
        net.veth(a, b, mtu=4000, offloads={"tso": False, "tx-checksum": False})
        for end in (a, b):
            facts = link.facts(end.name, end.netns)
            assert (facts.mtu, facts.mac.hex(":"), facts.up, facts.carrier) == (4000, end.mac, True, True)
            assert not facts.offloads["tso"] and not facts.offloads["tx-checksum"] and facts.offloads["gso"]
            assert end.address in net.run(end.netns, ["ip", "addr", "show", end.name]).stdout


def test_a_tap_and_a_bridge_join_hosts():
    with Lab() as net:
        here = net.namespace("bridge")
        there = End(net.namespace("host"), "h0")
        net.veth(End(here, "p0"), there)
        tap = net.tap(End(here, "t0"))
        net.bridge(End(here, "br0"), ["p0", "t0"])
        with net.listening(there) as ear:
            tap.write(PLAIN)
            assert ear.take(1) == [PLAIN]
        assert {each.name: each.kind for each in link.interfaces(here)} == {"lo": "", "p0": "veth", "t0": "tun", "br0": "bridge"}


def test_inside_moves_only_the_calling_thread_and_only_for_the_block():
    with Lab() as net, ThreadPoolExecutor(1) as other_thread:
        name, home = net.namespace(), other_thread.submit(identity, None).result()
        with net.inside(name):
            assert identity(None) == identity(name) != home
            assert other_thread.submit(identity, None).result() == home
        assert identity(None) == home
        with contextlib.suppress(KeyError), net.inside(name):
            raise KeyError
        assert identity(None) == home == identity(f"pid:{os.getpid()}")


@pytest.mark.parametrize("name", ["no-such", "../netns", "", "pid:4194304"])
def test_what_is_no_namespace_is_refused(name):
    with pytest.raises(Error, match="E_NO_NETNS"), entered(name):
        pass


def test_a_misspelt_namespace_is_answered_with_the_right_one():
    with Lab() as net:
        name = net.namespace("blue")
        with pytest.raises(Error, match=f"did you mean {name}"), entered(name + "x"):
            pass


def test_nothing_is_left_after_an_exception():
    with pytest.raises(KeyError), Lab() as net:
        net.pair()
        child = net.start(net.namespace(), ["sh", "-c", "sleep 60 & sleep 60"], stdout=subprocess.PIPE)
        raise KeyError
    assert child.stdout.read() == "" and child.returncode == -signal.SIGKILL  # end of file: its own child, which held the pipe, is dead too
    assert not [name for name in named() if name.startswith(f"pr-{os.getpid()}-")]


def test_a_killed_lab_takes_its_children_along_and_the_next_one_sweeps_its_namespaces():
    script = f"import sys; sys.path = {sys.path}; import time; from lab import Lab; net = Lab().__enter__(); net.pair()"
    script += "; print(net.start(None, ['sleep', '60']).pid, flush=True); time.sleep(60)"
    killed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(killed.stdout.readline())
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 2
    while (stat := Path(f"/proc/{child}/stat")).exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not stat.exists() or " Z " in stat.read_text()
    with Lab():
        assert not [name for name in named() if name.startswith(f"pr-{killed.pid}-")]


@pytest.mark.needs("unshare")
def test_it_works_in_a_user_namespace():
    if not lab.can_unshare():
        pytest.skip("root: user namespaces are not allowed here")
    script = f"""
import sys
sys.path = {sys.path}
from lab import *
with Lab() as net:
    a, b = net.pair(offloads=False)
    with net.listening(b) as ear:
        net.send(a, [{PLAIN!r}])
        assert ear.take(2, 0.3) == [{PLAIN!r}]
    net.tap(End(a.netns, "t0"))
"""
    done = subprocess.run(lab.unshared([sys.executable, "-c", script]), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
