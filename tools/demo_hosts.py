"""The two hosts of the demo, and what they send each other: a TCP stream that a hash could not check better, and questions over UDP.

The hosts are network namespaces without a name: each lives by a descriptor of this process, and is gone with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pktring.shm.errors import Error

from . import cli, probes

A, B = "10.99.0.1", "10.99.0.2"
B_TOO = [f"10.99.0.{i}" for i in range(3, 11)]  # where questions go: netisr spreads UDP over the workstreams by its addresses
STREAM_PORT, QUESTIONS_PORT = 5001, 5002
CHUNK = 1 << 20
ROUND_TRIPS = 200
START_S = END_S = 15.0
ANSWER_S = 1.0


class Hosts:
    """Three network namespaces: host A, host B, and between them the one where the engine runs, which this process enters."""

    def __init__(self) -> None:
        _enter_own_namespace()
        self.middle = _namespace()
        self.a, self.b = self._host("left", [A]), self._host("right", [B, *B_TOO])

    def _host(self, wire: str, addresses: list[str]) -> int:
        from pyroute2 import IPRoute

        _unshare_net()
        there = _namespace()
        _enter(self.middle)
        with IPRoute() as ipr:
            ipr.link("add", ifname=wire, kind="veth", peer={"ifname": "eth0", "net_ns_fd": there})
            ipr.link("set", index=socket.if_nametoindex(wire), state="up")
        with self.inside(there), IPRoute() as ipr:
            index = socket.if_nametoindex("eth0")
            for address in addresses:
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
        """Send from A to B what can be checked to the byte, for so long, after a few round trips. -> what it came to."""
        with contextlib.ExitStack() as sockets:
            with self.inside(self.b):
                listener = sockets.enter_context(socket.create_server((B, STREAM_PORT)))
            with self.inside(self.a):
                sender = sockets.enter_context(socket.socket())
            sender.settimeout(START_S)
            sender.connect((B, STREAM_PORT))
            receiver = sockets.enter_context(listener.accept()[0])
            receiver.settimeout(END_S)
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            round_trip_us, _ = _round_trips(functools.partial(_there_and_back, sender, receiver))
            return _stream(sender, receiver, duration_s, stop) | {"round_trip_us": round_trip_us}

    def questions(self) -> dict[str, Any]:
        """Ask B from A over UDP, at each of B's addresses in turn. -> how long that took, how many were lost."""
        with contextlib.ExitStack() as sockets:
            flows = [self._flow(sockets, address) for address in B_TOO]
            round_trip_us, lost = _round_trips(*(functools.partial(_there_and_back, *flow) for flow in flows))
        return {"round_trips": ROUND_TRIPS, "round_trip_us": round_trip_us, "lost": lost}

    def _flow(self, sockets: contextlib.ExitStack, address: str) -> tuple[socket.socket, socket.socket]:
        with self.inside(self.a):
            one = sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        with self.inside(self.b):
            other = sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        other.bind((address, QUESTIONS_PORT))
        one.bind((A, 0))
        one.connect((address, QUESTIONS_PORT))
        other.connect(one.getsockname())
        for end in (one, other):
            end.settimeout(ANSWER_S)
        return one, other

    def close(self) -> None:
        """Let the namespaces go; their interfaces go with them."""
        for namespace in (self.a, self.b, self.middle):
            os.close(namespace)


def _there_and_back(one: socket.socket, other: socket.socket) -> None:
    one.sendall(b"?")
    other.recv(1)
    other.sendall(b"!")
    one.recv(1)


def _round_trips(*trips: Callable[[], None]) -> tuple[float, int]:
    """Make ROUND_TRIPS of them, in turn. -> the median in us, and how many did not come back."""
    times: list[float] = []
    for i in range(ROUND_TRIPS):
        began = time.perf_counter()
        try:
            trips[i % len(trips)]()
        except TimeoutError:
            if not times:  # nobody answers
                break
        else:
            times.append(time.perf_counter() - began)
    median = sorted(times)[len(times) // 2] if times else 0.0
    return round(median * 1e6, 1), ROUND_TRIPS - len(times)


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
