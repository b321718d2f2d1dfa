"""`pktring demo`: two hosts that only an engine joins; a TCP transfer by its rule, questions through netisr and a Python handler, all of it
captured; and a process of another user attached to it.

The hosts are network namespaces that live by descriptors of this process, and whatever it starts dies with it: nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import cli, demo_app, demo_engine
from .demo_engine import KEPT, Engine
from .demo_hosts import ROUND_TRIPS, A, B, Hosts

EXAMPLES = """\
  pktring demo
  pktring demo --duration 10 -w /tmp/demo.pcapng
"""
PICTURE = """\
   host A                       the engine {name:<22} host B
   {a:<12}                                                    {b:>12}
   eth0 ═════════ left ══▶ {first:<15} {second:>15} ◀══ right ═════════ eth0
                    │      rings in shared memory
                    ├──▶ {file}
                    └──▶ a process of {user}
"""
TRANSFER_S = 3.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("-w", dest="write", metavar="FILE", help="where to capture to (a new file in the temporary folder)")
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Build it, use it, take it down, and say what happened."""
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(_folder(keep=not args.write))
        file = os.path.abspath(args.write or os.path.join(folder, "demo.pcapng"))
        cli.say("two hosts, each in a network namespace of its own, joined only by `pktring up`")
        hosts = Hosts()
        undo.callback(hosts.close)
        user = _another_user(folder)
        found = _shown(args, stop, hosts, folder, file, user)
    if args.json:
        cli.result({key: value for key, value in found.items() if key != "tables"})
    else:
        print(summary(found))
    return 0 if stop or found["transfer"]["intact"] else 1


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[str]:
    """Where the configuration and the capture lie. What only the engine needed is removed in any case."""
    folder = tempfile.mkdtemp(prefix="pktring-demo-")
    try:
        yield folder
    finally:
        shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
        if not keep or os.listdir(folder) == ["demo.toml"]:
            shutil.rmtree(folder, ignore_errors=True)


def _another_user(folder: str) -> int | None:
    """The uid of the attached process, None = ours. The engine's folder is where that user may look for it, else in ours."""
    user = demo_app.another_user() if os.access("/run", os.W_OK) else None
    if user is None:
        os.environ["PKTRING_RUNDIR"] = os.path.join(folder, "run")
    else:
        os.environ.pop("PKTRING_RUNDIR", None)
    return user


def _shown(args: argparse.Namespace, stop: cli.Stop, hosts: Hosts, folder: str, file: str, user: int | None) -> dict[str, Any]:
    """Run it. -> what is reported."""
    name = f"demo-{os.getpid()}"
    text = demo_engine.config(name, file)
    path = os.path.join(folder, "demo.toml")
    with open(path, "w", encoding="utf-8") as toml:
        toml.write(text)
    with Engine(name, path) as engine:
        with demo_app.App(name, "left", user) as app:
            who = f"uid {app.attached['uid']}" + ("" if user is not None else ", ours: no other user is known here")
            cli.say(f"pid {app.attached['pid']} ({who}) attached to port left: {app.attached['memory']} memory")
            cli.say(f"a TCP transfer from {A} to {B}, {args.duration or TRANSFER_S:g} seconds")
            transfer = hosts.transfer(args.duration or TRANSFER_S, stop)
            questions = hosts.questions() if not stop else {"round_trips": 0, "round_trip_us": 0.0, "lost": 0}
            status, tables = engine.status(), engine.netisr()
            seen = app.end()
        carried = engine.end()
    told: dict[str, Any] = next((one for one in status["apps"] if one["id"] == seen["app"]), {})
    return {
        "transfer": transfer,
        "capture": demo_engine.captured(status, carried, file),
        "bridge": {"a_to_b": demo_engine.way(status, "left", "right"), "b_to_a": demo_engine.way(status, "right", "left")},
        "file": file,
        "engine": demo_engine.facts(status) | {"config": text, "file": path if os.path.dirname(file) == folder else ""},
        "netisr": status["netisr"] | questions,
        "app": {key: told.get(key) for key in ("why", "counters")} | seen,
        "tables": tables,
    }


# ---- the summary ----


@dataclass(frozen=True)
class Next:
    """A command to try, and what it is good for."""

    command: str
    why: str


def summary(found: dict[str, Any]) -> str:
    """What a newcomer reads."""
    transfer, bridge, netisr, app = found["transfer"], found["bridge"], found["netisr"], found["app"]
    verdict = "every byte as it was sent" if transfer["intact"] else "NOT what was sent"
    lines = [
        _picture(found),
        f"transfer   {cli.si(transfer['bytes'], 'B')} in {transfer['seconds']:.1f} s = {cli.si(transfer['bps'], 'bit/s')}, {verdict}",
        f"           by [[forward]]; a round trip takes {transfer['round_trip_us']:g} µs (median of {ROUND_TRIPS})",
        f"netisr     {netisr['round_trips']} questions and answers by [[protocol]], a Python function: {netisr['round_trip_us']:g} µs, "
        f"{netisr['lost']} lost",
        _way("A to B", bridge["a_to_b"]),
        _way("B to A", bridge["b_to_a"]),
        *_workers(found["engine"]["workers"]),
        *_captured(found),
        *_app(app),
        "",
        "pktring stat -Q, while it ran",
        *(f"   {line}".rstrip() for line in found["tables"].splitlines()),
        "",
        f"the engine's configuration{', ' + found['engine']['file'] if found['engine']['file'] else ''}",
        *(f"   {line}".rstrip() for line in found["engine"]["config"].splitlines()),
        "",
        "try next",
        *(f"   {step.command}\n       {step.why}" for step in _next(found["file"])),
    ]
    return "\n".join(lines)


def _picture(found: dict[str, Any]) -> str:
    workers = [f"worker {worker['id']} cpu {worker['cpu']}" for worker in found["engine"]["workers"]]
    user = f"user {found['app']['uid']}, in {found['app']['memory']} memory"
    return PICTURE.format(a=A, b=B, name=found["engine"]["name"], first=workers[0], second=workers[-1], file=found["file"], user=user)


def _way(label: str, way: dict[str, Any]) -> str:
    reasons = "".join(f", {name} {n}" for name, n in way["reasons"].items())
    whole = ", TCP super-frames carried whole" if way["bytes"] > 1514 * way["frames"] else ""
    return f"engine     {label}: {way['frames']} frames, {cli.si(way['bytes'], 'B')}{whole}; {way['dropped']} dropped{reasons}"


def _workers(workers: list[dict[str, Any]]) -> list[str]:
    lines = [f"worker {w['id']}, pid {w['pid']}, on CPU {w['cpu']}: {w['cpu_s']:.1f} s of it; {w['restarts']} restarts" for w in workers]
    return [f"{'workers' if i == 0 else '':<11}{line}" for i, line in enumerate(lines)]


def _captured(found: dict[str, Any]) -> list[str]:
    capture = found["capture"]
    return [
        f"captured   {capture['captured']} frames, their first {KEPT} bytes; {capture['dropped_kernel']} dropped by the kernel, "
        f"{capture['dropped_engine']} by us",
        f"           {found['file']} ({cli.si(capture['written_bytes'], 'B')})",
    ]


def _app(app: dict[str, Any]) -> list[str]:
    kinds = ", ".join(f"{n} {kind}" for kind, n in app["kinds"].items())
    return [
        f"attached   pid {app['pid']} of uid {app['uid']} saw {app['frames']} frames of port {app['port']} that match "
        f"{demo_app.FILTER!r} ({kinds}); {app['dropped']} dropped",
        f"           in {app['memory']} memory: {app['why']}",
    ]


def _next(file: str) -> list[Next]:
    me = os.path.join(os.path.dirname(sys.executable), "pktring")
    me = os.path.relpath(me) if os.path.exists(me) else "pktring"
    return [
        Next(f"{me} doctor", "what works on this machine, and how to mend the rest"),
        Next(f"{me} capture -r {file} -c 10", "the first frames of the capture, decoded"),
        Next(f"{me} capture -i lo -n", "watch an interface live; -w FILE writes pcapng"),
        Next(f"{me} up --help", "run such an engine between two interfaces of yours"),
    ]
