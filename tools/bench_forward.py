"""Bench job `forward`: 64-byte frames sent into f0 as fast as they go; what arrives at s1, behind the forwarder, counts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

from . import bench_stage as stage
from .bench import Figure, Row

READY_S = 2.5
DRAIN_S = 0.3
TESTPMD = "dpdk-testpmd"
RING = "blocksz=1048576,framesz=2048,framecnt=4096,qpairs=1"  # testpmd's best settings on veth


def rows(seconds: float) -> Iterator[Row]:
    """Beside a user-space forwarder of the best kind, and the kernel's own."""
    stage.enter()
    missing = None if shutil.which(TESTPMD) else "not installed (apt install dpdk-dev)"
    yield _row("testpmd, net_af_packet", _testpmd, seconds, missing)
    yield _row("Linux bridge", _bridge, seconds, None)


def _row(name: str, peer: Callable[[float], Figure], seconds: float, missing: str | None) -> Row:
    return Row("forward", "frames/s", "64 B, one way, one core", lambda: _ours(seconds), name, lambda: peer(seconds), missing)


def _through(seconds: float) -> Figure:
    """Load, and what came out on the other side."""
    time.sleep(READY_S)
    before = stage.received("s1")
    sent = stage.load(seconds)
    time.sleep(DRAIN_S)
    passed = stage.received("s1") - before
    return Figure(passed / seconds, max(0.0, 1 - passed / sent))


def _while_running(child: subprocess.Popen[str], seconds: float) -> Figure:
    try:
        return _through(seconds)
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def _ours(seconds: float) -> Figure:
    return _while_running(stage.pktring("bridge", "f0", "f1", "-q"), seconds)


def _testpmd(seconds: float) -> Figure:
    devices = [word for i, name in enumerate(("f0", "f1")) for word in ("--vdev", f"net_af_packet{i},iface={name},{RING}")]
    # Without huge pages, which this machine may not have. It forwards on CPU 1; its main thread waits on the other.
    argv = [TESTPMD, "--no-huge", "--no-shconf", "--no-telemetry", "-m", "1024", "--no-pci", "-l", "0,1", "--main-lcore", "0", *devices]
    how = ["--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=65536", "--disable-link-check", "--stats-period=60", "--no-mlockall"]
    child = stage.start([*argv, "--", *how], cpu=None)
    return _while_running(child, seconds)


def _bridge(seconds: float) -> Figure:
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        ipr.link("add", ifname="br0", kind="bridge", br_stp_state=0)
        master = socket.if_nametoindex("br0")
        for name in ("f0", "f1"):
            ipr.link("set", index=socket.if_nametoindex(name), master=master)
        ipr.link("set", index=master, state="up")
        try:
            return _through(seconds)
        finally:
            ipr.link("del", index=master)
