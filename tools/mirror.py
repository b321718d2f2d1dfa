"""Where `bridge --mirror` sends copies."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pktring
from pktring.engine.port import Port
from pktring.shm.errors import Error

from . import cli
from .recording import Recording


class Mirror:
    """A port that gets copies: another interface, a TAP, or a file with an interface block for each end of the bridge."""

    def __init__(self, name: str, ends: Sequence[Port], filter_text: str):
        self.name = name
        self.failed = False
        self._recording: Recording | None = None
        if name.startswith("pcap:") and "?" not in name:
            self._recording = Recording(name.removeprefix("pcap:"), ends, filter_text=filter_text)
            self.port = self._recording.port
        else:
            self.port = pktring.open(name, directions="tx", region=ends[0].region)

    def tend(self) -> None:
        """See whether a file goes on. When its disk is full that is said once, and the bridge goes on without it."""
        if self._recording is None or self.failed:
            return
        self._recording.tell_drops()
        try:
            self.failed = not self._recording.writer.proceed()
        except Error as error:
            self.failed = True
            cli.say(f"{error}")

    def report(self) -> dict[str, Any]:
        """What it got."""
        stats = self.port.stats()
        unwritten = stats["tx_queued"] - stats["tx_frames"]
        return {"port": self.name, "frames": stats["tx_frames"], "bytes": stats["tx_bytes"], "unwritten": unwritten}

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recording:
            with contextlib.suppress(Error) if self.failed else contextlib.nullcontext():
                self._recording.flush()
        self.port.close()
