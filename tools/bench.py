"""`pktring bench`: our figures beside those of the programs people use now, in one run on one machine.

Each row pairs us with one peer: A B A B ..., each several times, the medians and the spread of the pairs' ratios. What is not
installed is left out by name. A figure is only worth its row: the machine's speed drifts, the ratio of neighbours hardly does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pktring.shm.errors import Error

from . import cli

EXAMPLES = """\
  pktring bench                       every job
  pktring bench forward --repeat 5    one job, five pairs a row
  pktring bench ring --json
"""
JOBS = {
    "ring": "buffers handed from one process to another",
    "capture": "frames kept of those that arrive at full speed, and at 100 k/s and 300 k/s",
    "forward": "frames from one interface to another, 64 bytes, at full speed",
    "engine": "an engine: a handler of 5 us on two workers and on one; forwarding by one worker",
}


@dataclass(frozen=True)
class Figure:
    """What one run of one contender came to: `rate` in things a second; `lost`: share of what was offered."""

    rate: float
    lost: float = 0.0


@dataclass(frozen=True)
class Row:
    """A comparison to be made. `missing` names what is not installed."""

    job: str
    unit: str
    name: str
    ours: Callable[[], Figure]
    peer_name: str
    peer: Callable[[], Figure]
    missing: str | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("job", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} (all)")
    parser.add_argument("--seconds", type=cli.seconds, default=2.0, help="length of one measurement (2)")
    parser.add_argument("--repeat", type=cli.positive, default=3, metavar="N", help="pairs a row (3)")
    cli.common(parser, duration=False)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Measure, row by row; the table at the end, or the JSON."""
    for job in args.job:
        if job not in JOBS:
            raise Error("E_USAGE", f"no job {job!r}: {cli.near(job, list(JOBS))}")
    rows: list[dict[str, Any]] = []
    for job in args.job or JOBS:
        module = import_module(f"pktring.tools.bench_{job}")
        for row in module.rows(args.seconds):
            if stop:
                break
            if row.missing:
                cli.say(f"{job}: {row.peer_name} left out: {row.missing}")
                continue
            compared = compare(row, args.repeat, stop)
            if not compared["peer"]:
                cli.say(f"{job}: {row.peer_name} left out: it is installed and did nothing here")
                continue
            rows.append(compared)
            cli.say(line(compared))
    if args.json:
        cli.result({"machine": machine(), "rows": rows})
    else:
        print("\n".join(table(rows)))
    return 0


def compare(row: Row, repeat: int, stop: cli.Stop) -> dict[str, Any]:
    """Run the pairs of one row."""
    ours, peers = [], []
    for _ in range(repeat):
        ours.append(row.ours())
        peers.append(row.peer())
        if stop:
            break
    ratios = [o.rate / p.rate if p.rate else float("inf") for o, p in zip(ours, peers, strict=True)]
    return {
        "job": row.job,
        "what": row.name,
        "unit": row.unit,
        "ours": statistics.median(f.rate for f in ours),
        "ours_lost": statistics.median(f.lost for f in ours),
        "peer": statistics.median(f.rate for f in peers),
        "peer_lost": statistics.median(f.lost for f in peers),
        "peer_name": row.peer_name,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "pairs": len(ratios),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import os

    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        models = [text.partition(":")[2].strip() for text in file if text.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cpus": os.cpu_count(), "kernel": platform.release()}


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    lost = "".join(f", {who} lost {row[key]:.1%}" for who, key in (("we", "ours_lost"), ("they", "peer_lost")) if row[key] > 0.0001)
    return (
        f"{row['job']}: {row['what']}: {cli.si(row['ours'], row['unit'])} against {row['peer_name']} {cli.si(row['peer'], row['unit'])}"
        f" = {row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f}){lost}"
    )


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, so that it can be pasted."""
    facts = machine()
    yield f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}"
    yield ""
    yield "| job | pktring | lost | peer | its figure | lost | ratio (spread) |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        yield (
            f"| {r['what']} | {cli.si(r['ours'], r['unit'])} | {r['ours_lost']:.2%} | {r['peer_name']} | {cli.si(r['peer'], r['unit'])} "
            f"| {r['peer_lost']:.2%} | **{r['ratio']:.2f}** ({r['ratio_low']:.2f}-{r['ratio_high']:.2f}) |"
        )
