"""The null device: receives nothing, or copies of one frame at full speed; swallows what is sent."""

from __future__ import annotations

from dataclasses import dataclass

from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import _drivers

OPTIONS = {
    "len": "receive frames of this length (0: nothing is received)",
    "count": "so many of them, then the end (0: without end)",
}
HEADER = b"\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"  # to everyone, from nobody, IEEE 802 local experiment


@dataclass
class Queue:
    """The one queue: always worth a call."""

    device: object
    rx_fd: int = -1
    tx_fd: int = -1


class Null(Device):
    """What `open` returns."""

    kind = "null"

    def __init__(self, frame: bytes = b"", count: int = 0):
        self._frame, self._count = frame, count
        self.queues = [Queue(_drivers.Null(frame, count).device)]

    def facts(self) -> dict:
        """What this port is."""
        return {"driver": self.kind, "queues": 1, "len": len(self._frame), "count": self._count}


def open(name: str, options: dict[str, str]) -> Null:
    """Open the port `null:`; its name is nothing. Raises E_OPTION."""
    length, count = _number(options, "len", 65535), _number(options, "count", 1 << 63)
    return Null(HEADER[:length].ljust(length, b"\0"), count)


def _number(options: dict[str, str], key: str, most: int) -> int:
    text = options.get(key, "0")
    if not text.isdecimal() or int(text) > most:
        raise Error("E_OPTION", f"{key}={text}: a number from 0 to {most}")
    return int(text)
