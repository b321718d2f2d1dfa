"""A port as a scapy socket: `sniff(opened_socket=port.scapy())`, `sendp(packets, socket=port.scapy())`.

Frames come out of the rings in bursts and are dissected one by one, at scapy's pace; what scapy is too slow for waits
in the ring and is counted by the kernel when even that is full.
"""

from __future__ import annotations

import select
from collections import deque
from typing import TYPE_CHECKING, Any

from scapy.data import MTU
from scapy.layers.l2 import Ether
from scapy.supersocket import SuperSocket

if TYPE_CHECKING:
    from .port import Port


class PortSocket(SuperSocket):
    """scapy's view of a port. Closing it leaves the port open: the port belongs to whoever opened it."""

    desc = "read and write Ethernet frames through a pktring port"

    def __init__(self, port: Port):
        self.port = port
        self.iface = port.name
        self.LL = Ether
        self._waiting: deque[tuple[bytes, int]] = deque()
        self.closed = False

    def fileno(self) -> int:
        return self.port.fileno()

    def recv_raw(self, x: int = MTU) -> tuple[Any, bytes | None, float | None]:
        """One frame: (class, bytes, time)."""
        if not self._waiting:
            with self.port.recv(timeout=0) as batch:
                times = batch.timestamps
                self._waiting.extend((bytes(frame), int(t)) for frame, t in zip(batch, times, strict=True))
        if not self._waiting:
            return None, None, None
        frame, ns = self._waiting.popleft()
        return self.LL, frame[:x], ns / 1e9

    def send(self, x: Any) -> int:
        """Send one packet (a scapy packet or bytes). Returns its length, 0 when the ring is full."""
        frame = bytes(x)
        if hasattr(x, "sent_time"):
            import time

            x.sent_time = time.time()
        return len(frame) if self.port.send([frame]) else 0

    @staticmethod
    def select(sockets: list[SuperSocket], remain: float | None = None) -> list[SuperSocket]:
        """Those of the sockets that have something to read."""
        ready: list[SuperSocket] = [s for s in sockets if isinstance(s, PortSocket) and s._waiting]
        if ready:
            return ready
        readable, _, _ = select.select(sockets, [], [], remain)
        return readable

    def close(self) -> None:
        self.closed = True
