"""What changed between two statuses of an engine, a second: pure arithmetic for `stat --watch` and `top`.

A status is the controller's answer (see engine/README.md). Counters only grow while their engine lives; one that is less than before
belongs to a new engine of that name, and counts from nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import cli

Status = dict[str, Any]
COPIES = "drop_mirror"  # copies, not frames: told by name, in no sum


@dataclass
class Sample:
    """A status, and when it was taken (CLOCK_MONOTONIC)."""

    status: Status
    at: float = field(default_factory=time.monotonic)


def drops(counters: dict[str, int]) -> dict[str, int]:
    """Return what was dropped, by reason, most first; only what happened."""
    found = {name: n for name, n in counters.items() if name.startswith("drop_") and n}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def dropped(counters: dict[str, int]) -> int:
    """Return how many frames were dropped, for whatever reason."""
    return sum(n for name, n in drops(counters).items() if name != COPIES)


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up rows of counters, or of rates; a ring's name and worker are no counters."""
    sums: dict[str, Any] = {}
    for row in rows:
        for name in row.keys() - {"row", "worker"}:
            sums[name] = sums.get(name, 0) + row[name]
    return sums


def between(before: Sample, after: Sample) -> dict[str, Any]:
    """Return the rates: `interval_s, ports: {NAME: {rx_pps, rx_bps, tx_pps, tx_bps, drops_pps, reasons}}`, `total`, which has the keys of
    a port, and `workers: {ID: {cpu_percent}}`."""
    seconds = max(after.at - before.at, 1e-6)
    same = before.status.get("generation") == after.status.get("generation")
    old = before.status if same else {}
    ports = {name: _port(_counters(old, name), port["counters"], seconds) for name, port in after.status["ports"].items()}
    every = {key: sum(port[key] for port in ports.values()) for key in ("rx_pps", "rx_bps", "tx_pps", "tx_bps", "drops_pps")}
    cpu_s = {worker["id"]: worker["cpu_s"] for worker in old.get("workers", []) if worker.get("cpu_s") is not None}
    workers = {str(w["id"]): _worker(cpu_s.get(w["id"]), w.get("cpu_s"), seconds) for w in after.status["workers"]}
    total = every | {"reasons": summed([port["reasons"] for port in ports.values()])}
    return {"interval_s": round(seconds, 3), "ports": ports, "total": total, "workers": workers}


def _counters(status: Status, name: str) -> dict[str, int]:
    return status.get("ports", {}).get(name, {}).get("counters", {})


def _port(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, Any]:
    delta = {name: n if n < before.get(name, 0) else n - before.get(name, 0) for name, n in after.items()}
    got = {name: round(delta.get(name, 0) / seconds, 1) for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")}
    return {
        "rx_pps": got["rx_frames"],
        "rx_bps": got["rx_bytes"] * 8,
        "tx_pps": got["tx_frames"],
        "tx_bps": got["tx_bytes"] * 8,
        "drops_pps": round(dropped(delta) / seconds, 1),
        "reasons": {name: round(n / seconds, 1) for name, n in drops(delta).items()},
    }


def _worker(before: float | None, after: float | None, seconds: float) -> dict[str, float]:
    """A replaced worker's time begins anew: what it used since is its own."""
    if before is None or after is None:
        return {"cpu_percent": 0.0}
    used = after if after < before else after - before
    return {"cpu_percent": round(min(used / seconds, 1.0) * 100, 1)}


def lines(rates: dict[str, Any], clock: str | None = None) -> Iterator[str]:
    """Write a line for each port, for where nothing can be drawn over."""
    clock = clock or time.strftime("%H:%M:%S")
    for name, port in rates["ports"].items():
        ways = [f"{way} {pps(port[f'{way}_pps']):>7}/s {cli.si(port[f'{way}_bps'], 'bit/s'):>11}" for way in ("rx", "tx")]
        yield f"{clock} {name:<10} {'  '.join(ways)}  dropped {pps(port['drops_pps'])}/s"


def pps(value: float) -> str:
    """Write a rate in at most seven columns: '0', '999', '1.23 M'; a trickle is not none."""
    return f"{value:.1f}" if 0 < value < 9.95 else cli.si(value)
