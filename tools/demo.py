"""`pktring demo`: two hosts that only `pktring bridge` joins, a TCP transfer between them, and `pktring capture` beside it.

The hosts are network namespaces without a name: each lives by a descriptor of this process, and the commands, which are processes of their
own, die with it. So nothing is left behind, whatever happens to us.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pktring.shm.errors import Error

from . import cli, probes

EXAMPLES = """\
  pktring demo
  pktring demo --duration 10 -w /tmp/demo.pcapng
"""
PICTURE = """\
   host A                        this engine                        host B
   {a:<12}                                                    {b:>12}
   eth0 ══════════ left ══▶ rings in shared memory ◀══ right ══════════ eth0
                     │          (pktring bridge)
                     └──▶ {file}
                                (pktring capture)
"""
A, B, PORT = "10.99.0.1", "10.99.0.2", 5001
TRANSFER_S = 3.0
CHUNK = 1 << 20
ROUND_TRIPS = 200
START_S = END_S = 15.0
KEPT = 96  # bytes of each frame in the capture file: the headers
PR_SET_PDEATHSIG = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("-w", dest="write", metavar="FILE", help="where to capture to (a new file in the temporary folder)")
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Build it, use it, take it down, and say what happened."""
    file = args.write or os.path.join(tempfile.mkdtemp(prefix="pktring-demo-"), "demo.pcapng")
    file = os.path.abspath(file)
    with contextlib.ExitStack() as undo:
        cli.say("two hosts, each in a network namespace of its own, joined only by `pktring bridge`")
        hosts = Hosts()
        undo.callback(hosts.close)
        bridge = undo.enter_context(Command("bridge", "left", "right"))
        capture = undo.enter_context(Command("capture", "-i", "left", "-w", file, "-s", str(KEPT)))
        cli.say(f"a TCP transfer from {A} to {B}, {args.duration or TRANSFER_S:g} seconds")
        transfer = hosts.transfer(args.duration or TRANSFER_S, stop)
        found = {"transfer": transfer, "capture": capture.end(), "bridge": bridge.end(), "file": file}
    if args.json:
        cli.result(found)
    else:
        print(summary(found))
    return 0 if stop or transfer["intact"] else 1


# ---- the hosts ----


class Hosts:
    """Three network namespaces: host A, host B, and between them the one where the bridge runs, which this process enters."""

    def __init__(self) -> None:
        _enter_own_namespace()
        self.middle = _namespace()
        self.a, self.b = self._host("left", A), self._host("right", B)

    def _host(self, wire: str, address: str) -> int:
        from pyroute2 import IPRoute

        _unshare_net()
        there = _namespace()
        _enter(self.middle)
        with IPRoute() as ipr:
            ipr.link("add", ifname=wire, kind="veth", peer={"ifname": "eth0", "net_ns_fd": there})
            ipr.link("set", index=socket.if_nametoindex(wire), state="up")
        with self.inside(there), IPRoute() as ipr:
            index = socket.if_nametoindex("eth0")
            ipr.addr("add", index=index, address=address, prefixlen=24)
            ipr.link("set", index=index, state="up")
        return there

    @contextlib.contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        """Hold the calling thread in a namespace: sockets opened there stay there."""
        _enter(namespace)
        try:
            yield
        finally:
            _enter(self.middle)

    def transfer(self, duration_s: float, stop: cli.Stop) -> dict[str, Any]:
        """Send from A to B what a hash can check, for so long; then a few round trips. -> what it came to."""
        with contextlib.ExitStack() as sockets:
            with self.inside(self.b):
                listener = sockets.enter_context(socket.create_server((B, PORT)))
            with self.inside(self.a):
                sender = sockets.enter_context(socket.socket())
            sender.settimeout(START_S)
            sender.connect((B, PORT))
            receiver = sockets.enter_context(listener.accept()[0])
            receiver.settimeout(END_S)
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            round_trip_us = _round_trips(sender, receiver)
            return _stream(sender, receiver, duration_s, stop) | {"round_trip_us": round_trip_us}

    def close(self) -> None:
        """Let the namespaces go; their interfaces go with them."""
        for namespace in (self.a, self.b, self.middle):
            os.close(namespace)


def _round_trips(one: socket.socket, other: socket.socket) -> float:
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        one.sendall(b"?")
        other.recv(1)
        other.sendall(b"!")
        one.recv(1)
        times.append(time.perf_counter() - began)
    return round(sorted(times)[len(times) // 2] * 1e6, 1)


def _stream(sender: socket.socket, receiver: socket.socket, duration_s: float, stop: cli.Stop) -> dict[str, Any]:
    chunk = os.urandom(CHUNK)
    arrived = Arrived(receiver, chunk)
    arrived.start()
    sent, began = 0, time.monotonic()
    while not stop and time.monotonic() - began < duration_s:
        sender.sendall(chunk)
        sent += len(chunk)
    sender.shutdown(socket.SHUT_WR)
    arrived.join(END_S)
    seconds = time.monotonic() - began
    intact = arrived.bytes == sent and arrived.same
    return {"bytes": arrived.bytes, "seconds": round(seconds, 3), "bps": round(arrived.bytes * 8 / seconds), "intact": intact}


class Arrived(threading.Thread):
    """Receives to the end, and compares every byte with what was sent: the same chunk over and over."""

    def __init__(self, receiver: socket.socket, chunk: bytes):
        super().__init__(daemon=True)
        self._receiver, self._expected = receiver, chunk + chunk
        self.bytes, self.same = 0, True

    def run(self) -> None:
        """Until the sender is done."""
        buffer = bytearray(CHUNK)
        with contextlib.suppress(OSError):
            while n := self._receiver.recv_into(buffer):
                at = self.bytes % CHUNK
                self.same = self.same and buffer[:n] == self._expected[at : at + n]
                self.bytes += n


# ---- namespaces ----

_libc = ctypes.CDLL(None, use_errno=True)


def _enter_own_namespace() -> None:
    """Root needs no more than a network namespace; anybody else gets a user namespace around it."""
    for user in (False, True):
        try:
            return probes.unshare(user=user)
        except OSError as error:
            why = error.strerror
    raise Error("E_PERM", f"no network namespace of our own: {why}: run as root, or see `pktring doctor`")


def _unshare_net() -> None:
    probes.unshare(user=False)


def _namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, probes.CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")


# ---- the commands ----


class Command:
    """A `pktring` command of its own process, started when it says that it is ready, ended by SIGTERM, killed if we die."""

    def __init__(self, *words: str):
        argv = [sys.executable, "-m", "pktring.tools.main", *words, "--json"]
        self.words = words
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_die_with_parent, text=True
        )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise

    def _await_ready(self) -> None:
        assert self._process.stderr
        if not select.select([self._process.stderr], [], [], START_S)[0]:
            raise Error("E_DEMO", f"`pktring {' '.join(self.words)}` said nothing within {START_S:g} s: see `pktring doctor`")
        line = self._process.stderr.readline().strip()
        cli.say(line.removeprefix("pktring: "))
        if line.startswith("pktring: E_") or not line:
            raise Error("E_DEMO", f"`pktring {' '.join(self.words)}` did not start: see `pktring doctor`")

    def end(self) -> dict[str, Any]:
        """Ask it to end, and return the object that it prints."""
        self._process.send_signal(signal.SIGTERM)
        out, err = self._process.communicate(timeout=END_S)
        if self._process.returncode:
            raise Error("E_DEMO", f"`pktring {' '.join(self.words)}` failed: {err.strip()}: see `pktring doctor`")
        return json.loads(out)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # nothing, where it has ended already
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # so that they clean up even if we are killed


# ---- the summary ----


@dataclass(frozen=True)
class Next:
    """A command to try, and what it is good for."""

    command: str
    why: str


def summary(found: dict[str, Any]) -> str:
    """What a newcomer reads."""
    transfer, bridge, capture = found["transfer"], found["bridge"], found["capture"]
    verdict = "every byte as it was sent" if transfer["intact"] else "NOT what was sent"
    lines = [
        PICTURE.format(a=A, b=B, file=found["file"]),
        f"transfer   {cli.si(transfer['bytes'], 'B')} in {transfer['seconds']:.1f} s = {cli.si(transfer['bps'], 'bit/s')}, {verdict}",
        f"           a round trip takes {transfer['round_trip_us']:g} µs (median of {ROUND_TRIPS})",
        _way("A to B", bridge["a_to_b"]),
        _way("B to A", bridge["b_to_a"]),
        f"captured   {capture['captured']} frames, their first {KEPT} bytes; {capture['dropped_kernel']} dropped by the kernel, "
        f"{capture['dropped_engine']} by us",
        f"           {found['file']} ({cli.si(capture['written_bytes'], 'B')})",
        "",
        "try next",
        *(f"   {step.command}\n       {step.why}" for step in _next(found["file"])),
    ]
    return "\n".join(lines)


def _way(label: str, way: dict[str, Any]) -> str:
    reasons = "".join(f", {name} {n}" for name, n in way["reasons"].items())
    whole = ", TCP super-frames carried whole" if way["bytes"] > 1514 * way["frames"] else ""
    return f"bridge     {label}: {way['frames']} frames, {cli.si(way['bytes'], 'B')}{whole}; {way['dropped']} dropped{reasons}"


def _next(file: str) -> list[Next]:
    me = os.path.join(os.path.dirname(sys.executable), "pktring")
    me = os.path.relpath(me) if os.path.exists(me) else "pktring"
    return [
        Next(f"{me} doctor", "what works on this machine, and how to mend the rest"),
        Next(f"{me} capture -r {file} -c 10", "the first frames of the capture, decoded"),
        Next(f"{me} capture -i lo -n", "watch an interface live; -w FILE writes pcapng"),
    ]
