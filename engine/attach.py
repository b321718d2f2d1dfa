"""The app's side of an attached port: the engine's worker takes the place of the kernel, everything else is as in any port.

    control socket ── reply, descriptors ──▶ attach() ──▶ Port: recv, batches, send, flush, stats, fileno, close
                                              memory: the region's, or a sealed one of this app's own (which, the engine decides)

Rings are pairs, one for each worker. What a worker does with them is in border.h; how the two wake each other in shm/app_device.h.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from pktring.shm import _shm
from pktring.shm.device import Device
from pktring.shm.errors import Error
from pktring.shm.region import RX, Region, named

from . import _engine
from .port import Port


def attach(reply: dict[str, Any], fds: Sequence[int], on_close: Callable[[], None] | None = None) -> AppPort:
    """The port that the engine's reply describes. Takes the descriptors over. `on_close` tells the engine that the app has left.

    Raises E_ABI when the memory is not what this version understands.
    """
    memory, *bells = fds
    device = AppDevice(reply, bells)
    try:
        region = AppRegion(reply, memory)
    except BaseException:
        device.close()
        raise
    finally:
        os.close(memory)
    why = f"an engine has it: app {reply['app']}, {reply['memory']} memory ({reply['why']})"
    port = AppPort(reply["port"], cast(Region, region), device, None, slots=reply["slots"], why=why)
    port.on_close = on_close
    return port


class AppRegion:
    """What a Port asks of a region, over memory whose ledger is somebody else's: rings are found, not made."""

    made_here = False

    def __init__(self, reply: dict[str, Any], fd: int):
        self.name = f"app{reply['app']}"
        size = os.fstat(fd).st_size
        header = _shm.header_read(os.pread(fd, _shm.PAGE, 0))
        if header["trouble"] or header["kind"] != _shm.PR_MEM or header["size"] != size:
            trouble = header["trouble"] or "size"
            raise Error("E_ABI", f"the engine's memory: {trouble}: run the same pktring on both sides")
        self._map = mmap.mmap(fd, size)
        self.geometry: dict[str, int] = header["geometry"]
        self._counters = mmap.mmap(-1, self.geometry["counters_size"])
        self.mem = memoryview(self._map)
        self.view = _shm.View(self._map, mmap.mmap(-1, self.geometry["ledger_size"]), self._counters)
        self._rings = {direction: reply["rx" if direction == RX else "tx"] for direction in (_shm.PR_RX, _shm.PR_TX)}

    def make_ring(self, direction: int, slots: int, label: str, ringid: int = 0) -> tuple[int, _shm.Ring]:
        """The app's ring `ringid` of that direction, as the engine made it. -> (index, ring)."""
        index = self._rings[direction][ringid]
        _engine.app_ring(self.view, index, direction, slots, label)
        return index, self.view.ring(index)

    def has_room(self, n_rings: int, slots: int) -> bool:
        """Nothing can be made here: it is the engine's."""
        return False

    def drop_ring(self, index: int) -> None:
        """Forget it; the engine takes the buffers back."""
        self.view.drop_ring(index)

    def counters(self) -> list[dict]:
        """One dict a ring of this process: its own counts; the engine keeps others in the app's record."""
        return [named(row) for row in _shm.rows(self._counters)]


class AppDevice(Device):
    """One queue for each worker."""

    def __init__(self, reply: dict[str, Any], bells: Sequence[int]):
        if not len(bells) == len(reply["rx"]) == len(reply["tx"]):
            raise Error("E_ABI", f"{len(bells)} sockets for {len(reply['rx'])} rings: run the same pktring on both sides")
        self._reply = reply
        self._port = reply["port"]
        self.port = reply["number"]  # which its frames carry
        self.queues: list[Any] = [_engine.AppDevice(bell) for bell in bells]

    def facts(self) -> dict:
        keep = ("port", "number", "app", "mode", "memory")
        return {"driver": "app", "queues": len(self.queues)} | {key: self._reply[key] for key in keep}

    def check(self) -> None:
        """Raise what ended the port: E_RING_PROTO (quarantine) or E_DETACHED."""
        for queue in self.queues:
            if queue.error == errno.EPERM:
                raise Error("E_RING_PROTO", f"{self._port}: this app broke the rules of its rings: see the engine's log, and open it again")
            if queue.error:
                raise Error("E_DETACHED", f"{self._port}: the engine let go of this app: open the port again")

    def close(self) -> None:
        for queue in self.queues:
            queue.close()


class AppPort(Port):
    """A port of an engine, in another process."""

    def _follow(self) -> None:
        self.device.check()
        super()._follow()
