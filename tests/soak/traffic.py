"""Numbered frames through the engine at a rate, and what became of them: the truth of every kill campaign (numbered.c).

    with Traffic(net.lab, net.a, net.b, rate=60_000) as traffic:
        ...                                              # something dies
    found = traffic.found                                # what was sent and heard, flow by flow
"""

import contextlib
import json
import mmap
import signal
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ckernel
from command import eventually

FLOWS = 16
PAUSE_US = 1500
QUIET_S = 0.15


@dataclass(frozen=True)
class Found:
    """What both ends say; `pauses`: (flow, from, to, frames lost in it), times in seconds since the epoch."""

    sent: list[int]
    heard: list[int]
    twice: int
    reordered: int
    wrong: int
    pauses: list[tuple[int, float, float, int]]
    seconds: float

    @property
    def lost(self):
        """Frames that went and never came."""
        return sum(self.sent) - sum(self.heard)

    def whole(self):
        """At most once, in order, no byte changed."""
        assert (self.twice, self.reordered, self.wrong) == (0, 0, 0), (self.twice, self.reordered, self.wrong)
        return self


class Traffic:
    """A sender at `source` and a listener at `sink`, until the end of the block; what is under way arrives before the listener ends."""

    def __init__(self, lab, source, sink, *, rate=40_000.0, flows=FLOWS, pause_us=PAUSE_US):
        self.lab, self.source, self.sink, self.rate, self.flows, self.pause_us = lab, source, sink, rate, flows, pause_us
        self.found = None

    def __enter__(self):
        self._prepared()
        self._rx = self._start("rx", self.sink, self.pause_us)
        assert self._rx.stdout.readline() == "ready\n", self._rx.stderr.read()
        self._tx = self._start("tx", self.source, self.rate)
        self.flows_on(100)
        return self

    def send_only(self):
        """Without a listener; until `close`."""
        self._prepared()
        self._tx = self._start("tx", self.source, self.rate)
        return self

    def close(self):
        """The end of `send_only`."""
        try:
            self._end(self._tx)
        finally:
            self._undo.close()

    def _prepared(self):
        self._undo = contextlib.ExitStack()
        self._exe = ckernel.program((Path(__file__).parent / "numbered.c").read_text(), sanitize=False)
        self._file = self._undo.enter_context(tempfile.NamedTemporaryFile(prefix="pktring-soak-"))
        self._file.truncate(16)
        self._state = mmap.mmap(self._file.fileno(), 16)

    def _start(self, way, end, number):
        argv = [self._exe, way, end.name, self.flows, number, self._file.name]
        return self.lab.start(end.netns, [str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __exit__(self, kind, *_):
        try:
            sent = self._end(self._tx)
            self.sent_s = sent["seconds"]
            if kind is None:
                self._quiet()
            heard = self._end(self._rx)
        finally:
            self._undo.close()
        assert heard["listener_lost"] == 0 or kind, "the listener itself lost frames"
        pauses = [(flow, a / 1e6, b / 1e6, n) for flow, a, b, n in heard["pauses"]]
        twice, reordered = sum(heard["twice"]), sum(heard["reordered"])
        self.found = Found(sent["sent"], heard["heard"], twice, reordered, heard["wrong"], pauses, sent["seconds"])

    @property
    def heard(self):
        """Frames that arrived so far."""
        return struct.unpack_from("=Q", self._state, 0)[0]

    @property
    def sent(self):
        """Frames that went so far."""
        return struct.unpack_from("=Q", self._state, 8)[0]

    def flows_on(self, n=200, timeout_s=10.0):
        """Wait until so many more frames arrived."""
        goal = self.heard + n
        deadline = time.monotonic() + timeout_s
        while self.heard < goal:
            assert time.monotonic() < deadline, f"no frames arrive: {self.heard} of {self.sent}"
            time.sleep(0.0005)

    def _quiet(self):
        """Nothing arrives any more."""
        last = [self.heard, time.monotonic()]

        def silent():
            if self.heard != last[0]:
                last[:] = [self.heard, time.monotonic()]
            return time.monotonic() - last[1] > QUIET_S

        eventually(silent, 20)

    @staticmethod
    def _end(child):
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=20)
        assert child.returncode == 0, err
        return json.loads(out.splitlines()[-1])
