"""Forwarding: paths between ports, run by a loop in C (forward.h tells what happens to a frame)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import _engine
from .port import Port

DIRECTIONS = {"in": _engine.PR_DIR_IN, "out": _engine.PR_DIR_OUT, "inout": _engine.PR_DIR_IN | _engine.PR_DIR_OUT}
WHY = {
    _engine.PR_WHY_TIME: "time",
    _engine.PR_WHY_LIMIT: "limit",
    _engine.PR_WHY_END: "end",
    _engine.PR_WHY_PAUSED: "paused",
    _engine.PR_WHY_EVENT: "event",
    _engine.PR_WHY_SIGNAL: "signal",
}
NO_LIMIT = 2**64 - 1
SLICE_S = 0.1  # Python looks at signals and kernel drop counts this often; in between the interpreter sleeps


@dataclass(frozen=True)
class Path:
    """Frames of `source` go to `target` (None: they are only counted), copies of all of them to the mirrors.

    `filter` is a program of `filter.compile`; `direction` is seen from the host: in, out or inout.
    """

    source: Port
    target: Port | None
    filter: bytes | None = None
    direction: str = "inout"
    mirrors: Sequence[Port] = field(default=())


class Forwarder:
    """Runs paths in this process, without the GIL."""

    def __init__(self, paths: Sequence[Path], limit: int | None = None):
        """`limit`: stop after so many frames have passed, over all paths."""
        self._loop = _engine.Loop()
        self.ports = list(dict.fromkeys(p for path in paths for p in (path.source, path.target, *path.mirrors) if p))
        self._loop.left = NO_LIMIT if limit is None else limit
        for path in paths:
            self._add(path)
        for port in self.ports:
            if port.event_fd >= 0:
                self._loop.add_event(port.event_fd)

    def _add(self, path: Path) -> None:
        targets = path.target.tx_rings if path.target else [None]
        # Whole super-frames are worth six times the speed, where the other side can take them.
        path.source.carry_whole(path.target is not None and path.target.carries_whole)
        for i, ring in enumerate(path.source.rx_rings):
            mirrors = [m.tx_rings[i % len(m.tx_rings)] for m in path.mirrors]
            self._loop.add_path(ring, targets[i % len(targets)], path.filter or b"", DIRECTIONS[path.direction], mirrors)

    @property
    def left(self) -> int | None:
        """Frames that may still pass."""
        return None if self._loop.left == NO_LIMIT else self._loop.left

    def run(self, seconds: float) -> str:
        """Forward for at most `seconds`. Returns why it stopped.

        time · limit · end (a file has no more) · paused (a file is full or to be rotated) · event (a port has link events,
        which `port.events()` handles) · signal.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            why = WHY[self._loop.run(int(min(left, SLICE_S) * 1e9))]
            for port in self.ports:
                port.read_kernel_drops()
            if why != "time":
                return why
        return "time"
