"""`capture -w`: frames go from rings to the file in C; this looks ten times a second whether something is to be done."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from pktring.drivers.rotation import Rotation
from pktring.engine.forward import Forwarder, Path
from pktring.engine.port import Port
from pktring.shm.errors import Error

from . import cli, sources
from .capture import Outcome
from .recording import Recording

DRAIN_S = 0.02  # what the kernel has when we are asked to end comes within this: its rings hand over every 2 ms


def run(args: argparse.Namespace, ports: Sequence[Port], stop: cli.Stop, outcome: Outcome, pipe: int | None = None) -> None:
    """Capture to a file, a row of them, or a pipe, until the end. What goes wrong is left in `outcome`, to be raised after the report."""
    after = After(args.after)
    recording = Recording(
        args.write if pipe is None else pipe,
        ports,
        snaplen=min(args.snaplen or sources.FULL_FRAME, sources.FULL_FRAME),
        filter_text=sources.filter_text(args),
        rotation=Rotation(args.rotate_mb or 0, args.rotate_s or 0, args.keep or 0),
        closed=after.start,
    )
    try:
        with recording:
            sources.announce(args, ports)
            paths = [Path(port, recording.port, filter=args.program, direction=sources.direction(args, port)) for port in ports]
            progress = cli.Progress(stop, quiet=args.q or pipe is not None)
            _record(Forwarder(paths, limit=args.count), recording, stop, args.duration, progress)
            recording.flush()
            for port in ports:
                port.device.check()
    except Error as error:
        outcome.error = error
    _count(recording, outcome)
    after.wait()


def _record(forwarder: Forwarder, recording: Recording, stop: cli.Stop, duration: float | None, progress: cli.Progress) -> None:
    ended = False
    for span in stop.slices(duration):
        why = forwarder.run(span)
        drops = recording.tell_drops()
        if why == "event":
            cli.tell_events(forwarder.ports)
            ended = all(port.ended for port in forwarder.ports if port.rx_rings)  # a damaged file is trouble and the end at once
        if ended or why in ("limit", "end") or (why == "paused" and not recording.writer.proceed()):
            break
        if progress.due():
            progress.show(f"{recording.writer.frames} packets captured, {drops} dropped by kernel")
    else:
        if forwarder.run(DRAIN_S) == "paused":
            recording.writer.proceed()
    progress.end()


def _count(recording: Recording, outcome: Outcome) -> None:
    outcome.captured = recording.writer.frames
    outcome.written_bytes = recording.writer.written_bytes
    outcome.files = list(recording.writer.files)
    if recording.unwritten:
        outcome.reasons["unwritten"] = recording.unwritten


class After:
    """-z: a command on each finished file, beside the capture and at a low priority."""

    def __init__(self, command: str | None):
        self._command = shlex.split(command or "")
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> None:
        """Start the command on this file."""
        self._running = [child for child in self._running if child.poll() is None]
        if self._command:
            argv = ["nice", *self._command, name]
            self._running.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True))

    def wait(self) -> None:
        """Wait until all are done."""
        for child in self._running:
            child.wait()
