"""Bench job `ring`: two pinned processes and shared memory between them. The measured loop is bench_ring.c."""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pktring.shm.errors import Error

from .bench import Figure, Row

BURSTS = (1, 32, 256)


def rows(seconds: float) -> Iterator[Row]:
    """Hand-over with owner words beside the bare ring, and beside what Python programs use."""
    missing = None if shutil.which("cc") else "no C compiler for the measuring loop"
    for burst in BURSTS:
        name = f"hand-over there and back, owner words kept, bursts of {burst}"
        yield Row("ring", "buffers/s", name, _c("owned", seconds, burst), "a bare SPSC ring, one way", _c("bare", seconds, burst), missing)
    name, ours = "hand-over there and back, 64 bytes written and read", _c("touch", seconds, 32)
    yield Row("ring", "buffers/s", name, ours, "multiprocessing.Pipe", lambda: _pipe(seconds), missing)
    yield Row("ring", "buffers/s", name, ours, "multiprocessing.SimpleQueue", lambda: _queue(seconds), missing)


def _c(mode: str, seconds: float, burst: int) -> Callable[[], Figure]:
    def measure() -> Figure:
        argv = [str(_program()), mode, str(seconds), str(burst)]
        return Figure(float(subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout))

    return measure


@functools.cache
def _program() -> Path:
    """The compiled loop; it lives as long as this process."""
    import pktring

    _program.folder = tempfile.TemporaryDirectory(prefix="pktring-bench-")  # type: ignore[attr-defined]
    out = Path(_program.folder.name) / "bench_ring"  # type: ignore[attr-defined]
    source = Path(__file__).with_suffix(".c")
    argv = ["cc", "-std=gnu11", "-O3", f"-I{pktring.get_include()}", str(source), "-o", str(out)]
    built = subprocess.run(argv, capture_output=True, text=True)
    if built.returncode:
        raise Error("E_BENCH", f"cc {source.name}: {built.stderr.splitlines()[0]}: see the compiler")
    return out


def _pipe(seconds: float) -> Figure:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    return _counted(seconds, receiver.recv_bytes, sender.send_bytes)


def _queue(seconds: float) -> Figure:
    queue: Any = multiprocessing.SimpleQueue()
    return _counted(seconds, queue.get, queue.put)


def _counted(seconds: float, receive: Callable[[], bytes], send: Callable[[bytes], None]) -> Figure:
    count = multiprocessing.Value("Q", 0)

    def read() -> None:
        while receive():
            count.value += 1

    child = multiprocessing.get_context("fork").Process(target=read, daemon=True)
    child.start()
    item, end = bytes(63) + b"x", time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(200):
            send(item)
    send(b"")
    child.join(10)
    return Figure(count.value / seconds)
