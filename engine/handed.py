"""The frames that a handler is called with: a burst in a worker's hands. What is asked of it is answered by door_frames.c."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pktring.shm import _shm
from pktring.shm.errors import Error

from . import _engine
from .batch import Burst, mask_of

if TYPE_CHECKING:
    import numpy as np

Ports = Mapping[str, int]  # the engine's: numbers by name
COLUMNS = ("COL_LENGTH", "COL_TIMESTAMP", "COL_FLAGS", "COL_PORT", "COL_BUFFER", "COL_WIRE")
assert all(getattr(_shm, name) == getattr(_engine, name) for name in COLUMNS)


class Handed(Burst):
    """Frames that netisr gave to a handler; what pktring.Batch has, and `hashes`. Nothing is copied until you ask.

    It is valid until the handler returns, after which it raises E_BATCH and the views that it gave are shut (arrays made
    over such views are not, and must not be used any more). A frame that was not forwarded by then ends. The same object
    is given to the handler again with the next burst: at most 64 frames.
    """

    def __init__(self, frames: _engine.Frames, ports: Ports):
        self._frames = frames
        self._ports = ports
        self._fill = frames.column  # type: ignore[method-assign]
        self._gather = frames.gather  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> memoryview:
        """One frame: a view into its buffer, which may be written; or a copy when it spans several."""
        return self._frames.frame(i)

    def parts(self, i: int) -> list[bytes]:
        """The wire frames that frame i stands for: several for a super-frame (`?gso=whole`), else itself."""
        return self._frames.parts(i)

    @property
    def hashes(self) -> np.ndarray:
        """Flow hash of each frame, 0 where none was computed; numpy uint32 [n]."""
        return self._column(_engine.COL_HASH, "u4")

    def forward(self, other: Any, where: Any = None) -> int:
        """Send frames out of another port (its name, its number or its handle) when the handler returns; nothing is copied.

        `where`: n booleans; None = all. A frame goes by the first port that it is forwarded to. Returns how many were
        marked. Raises E_PORT for a port that the engine does not have, E_BATCH for a mask of another length.
        """
        mask = None if where is None else mask_of(where, len(self._frames))
        return self._frames.forward(number_of(other, self._ports), mask)


def number_of(port: Any, ports: Ports) -> int:
    """The number of the port that is meant by a name, a number, or an object with a `.number`. Raises E_PORT."""
    if isinstance(port, str):
        if port not in ports:
            raise Error("E_PORT", f"there is no port {port!r}: this engine has {known(ports)}")
        return ports[port]
    try:
        number = operator.index(getattr(port, "number", port))
    except TypeError:
        number = -1
    if isinstance(port, bool) or number not in ports.values():
        raise Error("E_PORT", f"{port!r} is no port: this engine has {known(ports)}")
    return number


def known(ports: Ports) -> str:
    """The ports in words."""
    return ", ".join(f"{name} ({number})" for name, number in ports.items()) or "none"
