"""Bench job `engine`: a handler of 5 us on two workers and on one; and forwarding by an engine's worker beside other forwarders."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pktring.shm.errors import Error

from . import bench_forward as forward
from . import bench_stage as stage
from .bench import Figure, Row

FRAME_US = 5.0
FLOWS = 256
MOST_PER_S = 2 * 1e6 / FRAME_US
FORWARD = f"""
[engine]
name = "bench"
workers = [{stage.WORK_CPU}]
[port.left]
interface = "f0"
[port.right]
interface = "f1"
[[forward]]
from = "left"
to = "right"
both = true
"""
HANDLE = """
[engine]
name = "bench"
workers = [{cpus}]
dispatch = "deferred"
[port.file]
port = "pcap:{file}"
[[protocol]]
name = "ip"
handler = "so:{library}:handle"
policy = "flow"
"""


def rows(seconds: float) -> Iterator[Row]:
    """Scaling first, then forwarding."""
    stage.enter()
    missing = None if shutil.which("cc") else "no C compiler for the handler"
    if not missing and len(os.sched_getaffinity(0)) < 2:
        missing = "one CPU"
    name = f"a handler of {FRAME_US:g} us, {FLOWS} flows of a file, 2 workers"
    yield Row("engine", "frames/s", name, lambda: _handled(seconds, "0, 1"), "1 worker", lambda: _handled(seconds, "1"), missing)
    peers: dict[str, tuple[Callable[[float], Figure], str | None]] = {
        "pktring bridge": (forward._ours, None),
        "testpmd, net_af_packet": (forward._testpmd, None if shutil.which(forward.TESTPMD) else "not installed (apt install dpdk-dev)"),
        "Linux bridge": (forward._bridge, None),
    }
    for peer_name, (peer, missing) in peers.items():
        theirs = functools.partial(peer, seconds)
        yield Row("engine", "frames/s", "64 B, one way, one worker", lambda: _forwarded(seconds), peer_name, theirs, missing)


@contextlib.contextmanager
def _engine(config: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryDirectory(prefix="pktring-bench-") as folder:
        path = Path(folder, "engine.toml")
        path.write_text(config)
        os.environ.update(env, PKTRING_RUNDIR=folder)
        child = stage.start([sys.executable, "-m", "pktring.tools.main", "up", str(path)], cpu=None)
        try:
            assert child.stderr
            while line := child.stderr.readline():
                if "is ready" in line:
                    break
            else:
                raise Error("E_BENCH", "the engine did not start: run `pktring up` by hand to see why")
            yield child
        finally:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=10)
            child.kill()
            del os.environ["PKTRING_RUNDIR"]


def _forwarded(seconds: float) -> Figure:
    with _engine(FORWARD):
        return forward._through(seconds)


# ---- a handler that costs something ----


def _handled(seconds: float, cpus: str) -> Figure:
    """Frames that the handlers were through with in the time; `lost`: those that found a queue full."""
    file, library = _input(seconds), _library()
    with _engine(HANDLE.format(cpus=cpus, file=file, library=library), PKTRING_BENCH_TURNS=str(_turns())):
        time.sleep(0.2)
        begun, before = time.monotonic(), _counts()
        time.sleep(seconds)
        took, after = time.monotonic() - begun, _counts()
    handled, dropped, read = (now - was for now, was in zip(after, before, strict=True))
    if read < handled / 2:
        raise Error("E_BENCH", f"the file ended before the time did ({after[2]} frames): give fewer --seconds")
    return Figure(handled / took, dropped / max(1, handled + dropped))


def _counts() -> tuple[int, int, int]:
    from pktring import engines

    status = engines.call("bench", "status")
    work = [row for stream in status["netisr"]["workstreams"] for row in stream["work"]]
    rx = status["ports"]["file"]["counters"]["rx_frames"]
    return sum(row["handled"] for row in work), sum(row["queue-drops"] for row in work), rx


@functools.cache
def _folder() -> Path:
    _folder.kept = tempfile.TemporaryDirectory(prefix="pktring-bench-")  # type: ignore[attr-defined]
    return Path(_folder.kept.name)  # type: ignore[attr-defined]


@functools.cache
def _library() -> Path:
    import pktring

    source, out = Path(__file__).with_suffix(".c"), _folder() / "bench_engine.so"
    argv = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", f"-I{pktring.get_include()}", str(source), "-o", str(out)]
    built = subprocess.run(argv, capture_output=True, text=True)
    if built.returncode:
        raise Error("E_BENCH", f"cc {source.name}: {built.stderr.splitlines()[0]}: see the compiler")
    return out


@functools.cache
def _turns() -> int:
    """How many turns of the loop are FRAME_US on this machine: the best of several, for it may be shared."""
    work = ctypes.CDLL(str(_library())).work
    work.argtypes = [ctypes.c_uint64]
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        work(1_000_000)
        best = min(best, time.perf_counter() - begun)
    return max(1, round(FRAME_US * 1e-6 / (best / 1_000_000)))


@functools.cache
def _input(seconds: float) -> Path:
    """A pcap file that lasts: UDP frames of 60 bytes, the flows in turn."""
    out = _folder() / "flows.pcap"
    turn = b"".join(struct.pack("<IIII", 0, 0, 60, 60) + _frame(flow) for flow in range(FLOWS))
    with out.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for _ in range(int(MOST_PER_S * (seconds + 2) * 1.5 / FLOWS)):
            file.write(turn)
    return out


def _frame(flow: int) -> bytes:
    ip = struct.pack("!BBHHHBBHBBHI", 0x45, 0, 46, 0, 0, 64, 17, 0, 10, 0, flow, 0x0A090909)
    return (b"\xff" * 6 + b"\x02" + bytes(5) + b"\x08\x00" + ip + struct.pack("!HHHH", 4000, 4001, 26, 0)).ljust(60, b"\0")
