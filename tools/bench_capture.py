"""Bench job `capture`: frames that end up in a file, or in a Python loop that looks at headers, of those that were sent."""

from __future__ import annotations

import json
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import bench_stage as stage
from .bench import Figure, Row

READY_S = 1.5  # for a capture program to be listening
DRAIN_S = 0.5

# Each looks at a header byte of every frame, by numpy over a batch, and prints its count when stdin is closed.
OURS = """
import select, sys, pktring
with pktring.open("f0") as port:
    print("ready", flush=True)
    n = hits = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        batch = port.recv(timeout=0.05)
        if len(batch):
            hits += int((batch.head(14)[:, 12] == 0x88).sum())
            n += len(batch)
    print(hits if hits == n else -1)
"""
PCAPY = """
import select, sys, numpy, pcapy
p = pcapy.create("f0")
p.set_snaplen(65535); p.set_promisc(1); p.set_timeout(10); p.set_buffer_size(32 << 20)
p.activate(); p.setnonblock(1)
print("ready", flush=True)
n = hits = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    data, meta = p.next_batch(512)
    if not meta:
        select.select([p.getfd()], [], [], 0.05)
        continue
    at = numpy.frombuffer(meta, "u4").reshape(-1, 4)[:, 2]
    hits += int((numpy.frombuffer(data, "u1")[at + 12] == 0x88).sum())
    n += len(at)
print(hits if hits == n else -1)
"""


def rows(seconds: float) -> Iterator[Row]:
    """To a file, then in Python; at rates that must lose nothing, then flat out."""
    stage.enter()
    for pps, name in ((100_000, "100 k/s"), (0, "full speed")):
        for peer, measure in (("tcpdump", _tcpdump), ("dumpcap", _dumpcap)):
            yield _row(f"to a file, {name}", _ours_to_file, peer, measure, seconds, pps, _missing(peer))
    for pps, name in ((300_000, "300 k/s"), (0, "full speed")):
        yield _row(f"Python loop, {name}", _python(OURS), "pcapy-ng next_batch", _python(PCAPY), seconds, pps, None)


def _row(
    name: str,
    ours: Callable[[float, int], Figure],
    peer_name: str,
    peer: Callable[[float, int], Figure],
    seconds: float,
    pps: int,
    missing: str | None,
) -> Row:
    return Row("capture", "frames/s", name, lambda: ours(seconds, pps), peer_name, lambda: peer(seconds, pps), missing)


def _missing(program: str) -> str | None:
    return None if shutil.which(program) else "not installed"


def _figure(captured: int, sent: int, seconds: float) -> Figure:
    return Figure(captured / seconds, max(0.0, 1 - captured / sent))


def _ours_to_file(seconds: float, pps: int) -> Figure:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        child = stage.pktring("capture", "-i", "f0", "-w", f"{folder}/it.pcapng", "--json")
        time.sleep(READY_S)
        sent = stage.load(seconds, pps)
        time.sleep(DRAIN_S)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=30)
        return _figure(json.loads(out)["captured"], sent, seconds)


def _counted(argv: list[str], pattern: str, seconds: float, pps: int) -> Figure:
    child = stage.start(argv)
    time.sleep(READY_S)
    sent = stage.load(seconds, pps)
    time.sleep(DRAIN_S)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    found = re.search(pattern, out + err)
    return _figure(int(found[1]) if found else 0, sent, seconds)


def _tcpdump(seconds: float, pps: int) -> Figure:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        argv = ["tcpdump", "-i", "f0", "-n", "-B", "32768", "-Z", "root", "-w", f"{folder}/it.pcap"]
        return _counted(argv, r"(\d+) packets captured", seconds, pps)


def _dumpcap(seconds: float, pps: int) -> Figure:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder).chmod(0o777)
        argv = ["dumpcap", "-i", "f0", "-q", "-B", "32", "-w", f"{folder}/it.pcapng"]
        return _counted(argv, r"Packets captured: (\d+)", seconds, pps)


def _python(program: str) -> Callable[[float, int], Figure]:
    def measure(seconds: float, pps: int) -> Figure:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=stage.pinned
        )
        assert child.stdout
        select.select([child.stdout], [], [], 10)
        child.stdout.readline()
        sent = stage.load(seconds, pps)
        time.sleep(DRAIN_S)
        out, _ = child.communicate(timeout=30)
        return _figure(int(out), sent, seconds)

    return measure
