"""`pktring stat`: the counters of a running engine as a table, as JSON, or as netstat -Q prints netisr's; drawn from one status, purely."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

from pktring.shm.errors import Error

from . import cli, engines
from .rates import Sample, Status, between, dropped, drops, lines, pps, summed
from .table import age, columns

EXAMPLES = """\
  pktring stat                       counters of every port, by direction and drop reason; workers, queues, apps, buffers
  pktring stat left right            only these ports
  pktring stat --watch 1             the same each second, with rates, until Ctrl-C
  pktring stat -Q                    netisr's protocols and workstreams, as netstat -Q
  pktring stat --engine edge --json  everything, for a script
"""
WAYS = ("rx", "tx")
CLEAR = "\x1b[H\x1b[2J"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("ports", nargs="*", metavar="PORT", help="only these ports of the engine")
    add("-Q", action="store_true", help="netisr's tables in netstat -Q's layout; with --json its keys")
    add("--watch", type=cli.seconds, metavar="SEC", help="again every so often, with rates, until Ctrl-C or --duration")
    engines.flag(parser)
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Print once, or until the end."""
    engine = engines.Watched(args.engine)
    if args.Q:
        return _netisr(args, stop, engine)
    sample = Sample(chosen(engine.status(), args.ports))
    rates = _watch(args, stop, engine, sample) if args.watch else None
    if args.json:
        cli.result(sample.status | ({"rates": rates} if rates else {}))
    elif not args.watch or not sys.stdout.isatty():
        print(text(sample.status, rates))
    return 0


def _watch(args: argparse.Namespace, stop: cli.Stop, engine: engines.Watched, sample: Sample) -> dict[str, Any] | None:
    """Show each interval; leaves the last status in `sample`, returns the last rates."""
    rates = None
    for after in engine.samples(stop, args.watch, args.duration):
        after.status = chosen(after.status, args.ports)
        rates = between(sample, after)
        sample.status, sample.at = after.status, after.at
        if sys.stdout.isatty() and not args.json:
            print(f"{CLEAR}{text(sample.status, rates)}", flush=True)
        else:
            print("\n".join(lines(rates)), file=sys.stderr if args.json else sys.stdout, flush=True)
    return rates


def _netisr(args: argparse.Namespace, stop: cli.Stop, engine: engines.Watched) -> int:
    """Print netisr's tables, once or each interval; --json: the last ones."""
    from pktring.engine import netisr_tables

    clear = CLEAR if args.watch and sys.stdout.isatty() else ""
    end = time.monotonic() + (args.duration or math.inf)
    while True:
        tables, settings = netisr(engine.ask("sysctl", name="net.isr")["values"])
        if not args.json:
            print(clear + netisr_tables.text(tables, settings), end="" if clear or not args.watch else "\n", flush=True)
        if not args.watch or not engines.slept(stop, min(args.watch, end - time.monotonic())) or time.monotonic() >= end:
            break
    if args.json:
        cli.result({"netisr": netisr_tables.libxo(tables)["netisr"] | {"settings": settings}})
    return 0


def chosen(status: Status, ports: list[str]) -> Status:
    """Leave out the ports that were not asked for."""
    for name in ports:
        if name not in status["ports"]:
            raise Error("E_PORT", f"{status['name']} has no port {name!r}: {cli.near(name, list(status['ports'])) or 'it has none'}")
    return status | {"ports": {name: port for name, port in status["ports"].items() if not ports or name in ports}}


# ---- the human page ----


def text(status: Status, rates: dict[str, Any] | None = None) -> str:
    """Draw a status as a page of 80 columns, with a column of rates where they are known."""
    parts = [[_title(status)], _ports(status, rates), list(_reasons(status)), _workers(status, rates), _queues(status)]
    parts += [_handlers(status), _apps(status), list(_pool(status)), list(_remarks(status))]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _title(status: Status) -> str:
    who = f"{status['name']}: generation {status['generation']}, pid {status['pid']}"
    return f"{who}, up {age(status['uptime_s'])}, pktring {status['version']}"


def _ports(status: Status, rates: dict[str, Any] | None) -> list[str]:
    ports = list(status["ports"].items())
    speeds = rates["ports"] | {"all": rates["total"]} if rates else {}
    if len(ports) > 1:
        ports.append(("all", {"facts": {}, "rings": [ring for _, port in ports for ring in port["rings"]]}))
    head = "Port Way >Frames >Bytes >Dropped" + (" >Frames/s >bit/s" if rates else " Device")
    return columns(head, [row for name, port in ports for row in _port(name, port, speeds.get(name))]) if ports else []


def _port(name: str, port: dict[str, Any], rates: dict[str, Any] | None) -> Iterator[list[Any]]:
    for way in WAYS:
        counters = _way(port, way)
        end = [pps(rates[f"{way}_pps"]), pps(rates[f"{way}_bps"])] if rates else [_device(port["facts"]) if way == "rx" else ""]
        yield [name if way == "rx" else "", way, counters.get(f"{way}_frames", 0), counters.get(f"{way}_bytes", 0), dropped(counters), *end]


def _way(port: dict[str, Any], way: str) -> dict[str, int]:
    """Sum the receive or the transmit rings, whose rows are named `left rx0`."""
    return summed([ring for ring in port["rings"] if str(ring["row"]).rpartition(" ")[2].startswith(way)])


def _device(facts: dict[str, Any]) -> str:
    words = [facts.get("driver"), facts.get("interface"), facts.get("mode"), None if facts.get("up", True) else "DOWN"]
    return " ".join(str(word) for word in words if word)


def _reasons(status: Status) -> Iterator[str]:
    """Name every reason, with what its counter counts."""
    from pktring.shm import _shm

    meaning = {name: told.partition(" (")[0] for name, told in _shm.COUNTERS}
    rows = [(name, reason, n) for name, port in status["ports"].items() for reason, n in drops(port["counters"]).items()]
    yield from columns("Port Reason >Count Meaning", [[*row, meaning.get(row[1], "")] for row in rows]) if rows else ()


def _workers(status: Status, rates: dict[str, Any] | None) -> list[str]:
    head = "Worker >CPU >Pid State >Restarts >CPU_time" + (" >CPU_%" if rates else "") + " Note"
    return columns(head, [_worker(worker, rates) for worker in status["workers"]]) if status["workers"] else []


def _worker(worker: dict[str, Any], rates: dict[str, Any] | None) -> list[Any]:
    share = [f"{rates['workers'][str(worker['id'])]['cpu_percent']:.0f}"] if rates else []
    spent = "-" if worker.get("cpu_s") is None else f"{worker['cpu_s']:.1f} s"
    words = [worker["id"], _or_dash(worker["cpu"]), worker["pid"] or "-", worker["state"], worker["restarts"], spent]
    return [*words, *share, worker.get("note") or ""]


def _queues(status: Status) -> list[str]:
    """Sum a protocol's work over the workstreams; -Q has each of them."""
    works = [work for stream in status["netisr"]["workstreams"] for work in stream["work"]]
    keys = ("dispatched", "hybrid-dispatched", "queued", "handled", "queue-drops", "length")
    names = list(dict.fromkeys(work["name"] for work in works if any(work[key] for key in keys)))
    rows = [[name, *(sum(work[key] for work in works if work["name"] == name) for key in keys)] for name in names]
    return columns("Protocol >Direct >Hybrid >Queued >Handled >Dropped >Waiting", rows) if rows else []


def _handlers(status: Status) -> list[str]:
    """Sum a handler's work over the workers; the times are of a burst."""
    every: dict[tuple[int, str], list[dict[str, Any]]] = {(h["protocol"], h["name"]): [] for h in status["handlers"]}
    for h in status["handlers"]:
        every[h["protocol"], h["name"]].append(h)
    rows = []
    for (number, name), works in every.items():
        counts = [sum(h[key] for h in works) for key in ("frames", "batches", "raised")]
        mean = sum(h["mean_us"] * h["batches"] for h in works) / max(counts[1], 1)
        told = next((h["last_error"] for h in works if h["last_error"]), "")
        rows.append([name, number, *counts, f"{mean:.1f}", f"{max(h['max_us'] for h in works):.1f}", told])
    return columns("Handler >Proto >Frames >Batches >Raised >Mean_us >Max_us Last_error", rows) if rows else []


def _apps(status: Status) -> list[str]:
    rows = [
        [app["id"], app["pid"] or "-", app["uid"], app["port"], app["mode"], app["memory"], app["lent"], app.get("why") or ""]
        for app in status["apps"]
    ]
    return columns("App >Pid >Uid Port Mode Memory >Lent Why", rows) if rows else []


def _pool(status: Status) -> Iterator[str]:
    if pool := status["pool"]:
        yield f"Buffers: {sum(pool.values())} = " + " + ".join(f"{n} {state}" for state, n in pool.items() if n)


def _remarks(status: Status) -> Iterator[str]:
    for name, port in status["ports"].items():
        yield from (f"{name}: {remark}" for remark in [*([port["why"]] if port.get("why") else []), *port["warnings"]])
    yield from status["events"][-5:]


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


# ---- netstat -Q ----


def netisr(values: dict[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Sort the knobs of net.isr into tables and settings, as netstat -Q does. For engine/netisr_tables.py."""
    knobs = {name.removeprefix("net.isr."): value for name, value in values.items()}
    tables = {"protocol": knobs.pop("proto"), "workstream": knobs.pop("workstream"), "work": knobs.pop("work")}
    return tables, knobs
