"""`pktring down [NAME]`: ask an engine to stop, wait until it is gone, and say what it carried."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from . import cli, engines
from .rates import dropped

if TYPE_CHECKING:
    from pktring.engine.rundir import EngineSeen

    from .rates import Status

EXAMPLES = """\
  pktring down               stop the only engine
  pktring down edge          stop this one
  pktring down edge --json   what it carried, as an object
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="which engine, where several run (`pktring ps`)")
    parser.add_argument("--engine", metavar="NAME", help="the same")
    parser.add_argument("--timeout", type=cli.seconds, default=10.0, metavar="SECONDS", help="how long it may take (10)")
    cli.common(parser, duration=False)


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Stop it; a deadline that passes is a failure, and what is left is said."""
    if args.name and args.engine and args.name != args.engine:
        raise Error("E_USAGE", f"{args.name} or {args.engine}: name one engine")
    found = engines.pick(args.name or args.engine)
    began = time.monotonic()
    report = carried(engines.call(found, "status"))
    last = engines.call(found, "down", args.timeout)
    if "ports" in last:  # its books as they were closed
        report = carried(last)
    _gone(found, began + args.timeout)
    report |= {"seconds": round(time.monotonic() - began, 3)}
    if args.json:
        cli.result(report)
    else:
        print("\n".join(lines(report)))
    return 0


def _gone(found: EngineSeen, deadline: float) -> None:
    """Wait for the end of its processes, and of its folder."""
    while left := [one for one in engines.known() if one.name == found.name and one.alive and one.pid == found.pid]:
        if time.monotonic() > deadline:
            raise Error("E_BUSY", f"{found.name} is still there, pid {left[0].pid}: look at `pktring ps -v`, or kill that process")
        time.sleep(0.02)


def carried(status: Status) -> dict[str, Any]:
    """Return what the ports of an engine have carried: the keys of --json."""
    keys = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")
    ports = {name: port["counters"] for name, port in status["ports"].items()}
    sums = {name: {key: counters.get(key, 0) for key in keys} | {"dropped": dropped(counters)} for name, counters in ports.items()}
    return {"name": status["name"], "uptime_s": status["uptime_s"], "ports": sums}


def lines(report: dict[str, Any]) -> list[str]:
    """Say it to a person."""
    told = [
        f"{name}: received {cli.plural(port['rx_frames'], 'frame')} ({port['rx_bytes']} bytes), "
        f"sent {cli.plural(port['tx_frames'], 'frame')} ({port['tx_bytes']} bytes), {port['dropped']} dropped"
        for name, port in report["ports"].items()
    ]
    return [*told, f"{report['name']} is down, after {report['uptime_s']:.0f} seconds up"]
