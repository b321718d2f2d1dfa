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
    """The one queue there is: always worth a call."""

    device: object
    rx_fd: int = -1
    tx_fd: int = -1
    receives = sends = True


class Null(Device):
    """What `open` returns."""

    kind = "null"

    def __init__(self, frame: bytes = b"", count: int = 0, port: int = 0):
        self._frame, self._count, self._port = frame, count, port
        self.queues = [Queue(_drivers.Null(frame, count, port).device)]

    def facts(self) -> dict:
        """What this port is."""
        return {"driver": self.kind, "queues": 1, "len": len(self._frame), "count": self._count}


    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to be this device too."""
        return {"driver": self.kind, "len": len(self._frame), "count": self._count, "port": self._port}, []

    @classmethod
    def adopt(cls, state: dict, fds: list[int]) -> Null:
        """Be a device that another process handed on."""
        return cls(_frame(state["len"]), state["count"], state["port"])


def open(name: str, options: dict[str, str], *, port: int = 0) -> Null:
    """Open the port `null:`; its name is nothing. `port` is what the metadata of its frames says. Raises E_OPTION."""
    length, count = _number(options, "len", 65535), _number(options, "count", 1 << 63)
    return Null(_frame(length), count, port)


def _frame(length: int) -> bytes:
    return HEADER[:length].ljust(length, b"\0")


def _number(options: dict[str, str], key: str, most: int) -> int:
    text = options.get(key, "0")
    if not text.isdecimal() or int(text) > most:
        raise Error("E_OPTION", f"{key}={text}: a number from 0 to {most}")
    return int(text)
