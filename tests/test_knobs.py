"""The values behind `pktring sysctl`: a running engine does what was written."""

import contextlib
import itertools
import os

import pytest
from netisr_lab import Lab

import pktring
from pktring.engine import _engine
from pktring.engine.rps import ROUTINES
from pktring.shm.errors import Error

W = 3
_n = itertools.count()


@contextlib.contextmanager
def running(tmp_path, **more):
    """An engine over nothing, with a protocol that counts."""
    os.environ["PKTRING_RUNDIR"] = str(tmp_path)
    ports = {"a": {"port": "null:"}, "b": {"port": "null:"}}
    counting = {"name": "ip", "handler": "count", "policy": "flow"}
    engine = pktring.Engine({"engine": {"name": f"k{next(_n)}", "workers": 2, "slots": 64}, "port": ports, "protocol": [counting], **more})
    try:
        with engine:
            yield engine
    finally:
        del os.environ["PKTRING_RUNDIR"]


def ip(i):
    """An IPv4 frame of flow i."""
    return bytes(12) + b"\x08\x00" + bytes([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, i, 10, 0, 1, 1])


def placed(lab, frame):
    """Where policy FLOW puts a frame that worker 1 received."""
    lab.queue(1, 1, [frame])
    (ws,) = [ws for ws in range(lab.workers) if lab.work(1, ws)["len"]]
    lab.serve()
    return ws


def test_rps_hash_decides_where_flows_go():
    with Lab(W, flows="microsoft") as lab:
        lab.register("ip", 1, "flow")
        many = [ip(i) for i in range(64)]
        spread = {}
        for name in ROUTINES:
            lab.netisr.set_rps_hash(name)
            spread[name] = {placed(lab, frame) for frame in many}
        assert spread == {"zero": {0}, "curcpu": {1}, "toeplitz": {0, 1, 2}, "toeplitz-othercpus": {0, 2}}


def tcp(a, b):
    """A TCP segment from host and port a to b."""
    header = bytes([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, a, 10, 0, 0, b])
    return bytes(12) + b"\x08\x00" + header + bytes([a, 1, b, 1]) + bytes(16)


def test_with_the_symmetric_key_both_ways_of_a_connection_meet():
    pairs = [(a, a * 7 % 251) for a in range(1, 41)]
    apart = {}
    for key in ("microsoft", "symmetric"):
        with Lab(W, flows=key) as lab:
            lab.register("ip", 1, "flow")
            there, back = ([placed(lab, tcp(*ends)) for ends in way] for way in (pairs, [(b, a) for a, b in pairs]))
            apart[key] = there != back
            assert len(set(there)) == W
    assert apart == {"microsoft": True, "symmetric": False}


def test_what_was_written_is_read_and_acts(tmp_path):
    with running(tmp_path, sysctl={"net.isr.defaultqlimit": 100}) as engine:
        written = {
            "net.isr.dispatch": "hybrid",
            "net.pktqueue.ip.maxlen": 55,
            "net.pktqueue.rps_hash": "curcpu",
            "dev.netmap.generic_mit": 7000,
            "dev.pktring.workers": 1,
        }
        assert engine.netisr.getqlimit("ip") == engine.sysctl("net.pktqueue.ip.maxlen") == 100
        for name, value in written.items():
            assert engine.sysctl(name, value) == engine.sysctl(name) == value
        assert engine.netisr.getqlimit("ip") == 55 and engine.status()["netisr"]["settings"]["dispatch"] == "hybrid"
        engine.netisr.register(pktring.Handler("arp", "arp", "count"))
        assert engine.netisr.getqlimit("arp") == 100
        assert engine.sysctl("net.isr.numthreads") == 2
        assert engine.sysctl("net.pktqueue.arp.len") == engine.sysctl("net.pktqueue.arp.drops") == 0


@pytest.mark.parametrize(("name", "value"), [("net.isr.dispatch", "default"), ("dev.pktring.workers", 3), ("net.pktqueue.ip.maxlen", 0)])
def test_a_refused_write_changes_nothing(tmp_path, name, value):
    with running(tmp_path) as engine:
        before = engine.sysctl(name)
        with pytest.raises(Error, match="E_SYSCTL|EINVAL"):
            engine.sysctl(name, value)
        assert engine.sysctl(name) == before


def test_the_default_of_mitigation_is_the_loops_own(tmp_path):
    with running(tmp_path) as engine:
        assert engine.sysctl("dev.netmap.generic_mit") == _engine.PR_GATHER_NS
