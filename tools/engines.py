"""Which engine a verb means (`--engine NAME`, or the only one that runs), and how it is asked."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from . import cli
from .rates import Sample, Status

if TYPE_CHECKING:
    from pktring.engine.rundir import EngineSeen

TIMEOUT_S = 5.0
SUCCESSION_S = 3.0  # how long a controller whose workers run may be without a successor


def flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every verb that speaks to an engine."""
    parser.add_argument("--engine", metavar="NAME", help="which engine, where several run (`pktring ps`)")


def known() -> list[EngineSeen]:
    """Return every engine that this user can see, the dead ones' stale folders too."""
    from pktring.engine import rundir

    return rundir.engines()


def pick(name: str | None) -> EngineSeen:
    """Return the engine of this name, or the only one; waits a moment for one whose controller has just died."""
    living = _living(name)
    names = [found.name for found in living]
    if name is None and len(living) > 1:
        raise Error("E_USAGE", f"{len(living)} engines run ({', '.join(names)}): say which with --engine NAME")
    if not living:
        which = f"no engine named {name!r} runs" if name else "no engine runs"
        raise Error("E_NO_ENGINE", f"{which}: start one with `pktring up CONFIG.toml`")
    for found in living:
        if name in (None, found.name):
            return found
    raise Error("E_NO_ENGINE", f"no engine named {name!r} runs: {cli.near(str(name), names)}")


def _living(name: str | None) -> list[EngineSeen]:
    from pktring.engine.rundir import data_path

    deadline = time.monotonic() + SUCCESSION_S
    while True:
        seen = known()
        living = [found for found in seen if found.alive]
        awaited = any(not found.alive and name in (None, found.name) and data_path(found.path) for found in seen)
        if any(name in (None, found.name) for found in living) or not awaited or time.monotonic() > deadline:
            return living
        time.sleep(0.02)


def call(found: EngineSeen, verb: str, timeout_s: float = TIMEOUT_S, **body: Any) -> dict[str, Any]:
    """Ask its controller one thing."""
    from pktring.engine.control import Client

    with Client(found.control, timeout_s) as client:
        answer, fds = client.call(verb, **body)
    for fd in fds:
        os.close(fd)
    return answer


class Watched:
    """An engine that is asked again and again, over the death of its controller."""

    def __init__(self, name: str | None):
        self.found = pick(name)

    def ask(self, verb: str, **body: Any) -> dict[str, Any]:
        """Ask once."""
        return call(self.found, verb, **body)

    def status(self) -> Status:
        """Ask for its status."""
        return self.ask("status")

    def samples(self, stop: cli.Stop, every_s: float, duration: float | None) -> Iterator[Sample]:
        """Yield a status every so often, until asked to end. While a controller is being replaced there is none; when the engine is gone,
        E_NO_ENGINE."""
        end = time.monotonic() + (math.inf if duration is None else duration)
        due = time.monotonic() + every_s
        while due <= end and slept(stop, due - time.monotonic()):
            due = max(due + every_s, time.monotonic())
            if sample := self.sample():
                yield sample
        if end < math.inf:
            slept(stop, end - time.monotonic())

    def sample(self) -> Sample | None:
        """Ask once; None when nobody answers although the engine lives."""
        try:
            return Sample(self.status())
        except Error as error:
            if error.code != "E_NO_CONTROLLER":
                raise
        self.found = pick(self.found.name)
        return None


def slept(stop: cli.Stop, duration_s: float) -> bool:
    """Sleep. False: asked to end meanwhile."""
    for span in stop.slices(duration_s):
        time.sleep(span)
    return not stop
