"""What an engine says of itself: one dictionary, from its plan, its crew and the counters of shared memory. It is what `stat` shows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import psutil

from pktring.shm.region import COUNTER_NAMES

from . import _engine, netisr
from .apps import AppTable
from .crew import Crew, Post
from .plan import Plan, PlannedPort

STATES = {_engine.PR_WS_STARTING: "starting", _engine.PR_WS_RUNNING: "running", _engine.PR_WS_STOPPED: "stopped"}


def status(plan: Plan, crew: Crew, apps: AppTable, supervisor: int, started: float, events: Sequence[str]) -> dict[str, Any]:
    """Everything; see above."""
    rows = {row["ring"]: row for row in plan.region.counters()}
    tables = plan.memory.netisr.tables()
    return {
        "name": plan.config.name,
        "generation": plan.generation,
        "pid": os.getpid(),
        "supervisor": supervisor,
        "uptime_s": round(time.monotonic() - started, 3),
        "version": _version(),
        "workers": [_worker(plan, crew, post) for post in crew.posts],
        "ports": {port.name: _port(port, rows) | {"vnet": plan.memory.netisr.port(port.number)[2]} for port in plan.ports},
        "netisr": {"settings": plan.memory.settings()} | netisr.json(tables),
        "handlers": plan.memory.handler_report(plan.handlers),
        "apps": apps.describe(),
        "pool": plan.region.pool_of(len(plan.cpus) + 1).count(),
        "events": list(events),
    }


def _worker(plan: Plan, crew: Crew, post: Post) -> dict[str, Any]:
    record = _engine.record_read(plan.memory.record(post.index))
    state = STATES.get(record["state"], "none") if post.hand else "held_off" if time.monotonic() < post.held_until else "starting"
    return {
        "id": post.index + 1,
        "cpu": plan.cpus[post.index],
        "wanted_cpu": plan.cpus[post.index],
        "pid": post.hand.pid if post.hand else 0,
        "state": state,
        "restarts": post.restarts,
        "generation": post.gen,
        "cpu_s": _cpu_s(post.hand.pid) if post.hand else 0.0,
        "note": post.pinned or post.note,
        "jail": post.hand.facts if post.hand else {},
    } | {k: record[k] for k in ("progress", "bursts", "sleeps", "drop_tx_full")}


def _port(port: PlannedPort, rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    mine = [rows[index] for index in port.rings if index in rows]
    return {
        "number": port.number,
        "port": port.text,
        "facts": port.device.facts(),
        "warnings": port.device.warnings(),
        "why": port.why,
        "counters": {name: sum(row[name] for row in mine) for name in COUNTER_NAMES},
        "rings": [{"row": row["row"], "worker": row["writer"]} | {name: row[name] for name in COUNTER_NAMES} for row in mine],
    }


def _cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return round(times.user + times.system, 3)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pktring")
    except PackageNotFoundError:
        return "0"
