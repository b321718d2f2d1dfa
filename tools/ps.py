"""`pktring ps`: the engines of this machine, one line each; -v adds their workers, ports and apps."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from . import cli, engines
from .table import age, columns

if TYPE_CHECKING:
    from pktring.engine.rundir import EngineSeen

    from .rates import Status

EXAMPLES = """\
  pktring ps           every engine: its pid, generation, and how many workers of how many run
  pktring ps -v        each worker: CPU, pid, restarts, capabilities, seccomp; each app: whose memory it works in, and why
  pktring ps --json    a list of objects, one an engine
"""
TIMEOUT_S = 1.0  # an engine that does not answer is a line like the others
SECCOMP = {"0": "none", "1": "strict", "2": "filter"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("-v", "--verbose", action="store_true", help="the workers, ports and apps of each, too")
    parser.add_argument("--engine", metavar="NAME", help="only this engine")
    cli.common(parser, duration=False)


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Print the list; no engine is no error, but for one that was named."""
    found = engines.known()
    if args.engine and args.engine not in [one.name for one in found]:
        engines.pick(args.engine)
    listed = [_listed(one) for one in found if args.engine in (None, one.name)]
    if args.json:
        print(json.dumps(listed), flush=True)
    else:
        print(text(listed, verbose=args.verbose))
    return 0


def _listed(found: EngineSeen) -> dict[str, Any]:
    """Return the keys of --json; an engine that is dead, or does not answer, has but few."""
    bare: dict[str, Any] = {"name": found.name, "pid": found.pid, "workers": [], "ports": [], "apps": [], "generation": None}
    if not found.alive:
        return bare | {"state": "stale"}
    try:
        return listed(engines.call(found, "status", TIMEOUT_S))
    except (Error, OSError) as error:
        return bare | {"state": "no answer", "why": getattr(error, "code", None) or type(error).__name__}


def listed(status: Status) -> dict[str, Any]:
    """Return the keys of --json from a status, and what /proc says of each worker."""
    workers = [{key: w.get(key) for key in ("id", "cpu", "pid", "state", "restarts", "note")} | rights(w["pid"]) for w in status["workers"]]
    return {
        "name": status["name"],
        "pid": status["supervisor"] or status["pid"],
        "controller": status["pid"],
        "generation": status["generation"],
        "uptime_s": status["uptime_s"],
        "version": status["version"],
        "state": "running" if all(w["state"] == "running" for w in workers) else "degraded",
        "workers": workers,
        "ports": list(status["ports"]),
        "apps": [{key: app.get(key) for key in ("id", "pid", "uid", "port", "mode", "memory", "why", "lent")} for app in status["apps"]],
    }


def rights(pid: int | None, proc: Path = Path("/proc")) -> dict[str, Any]:
    """Return what a process may still do, as the kernel tells it: `capabilities`, `seccomp`, `no_new_privs`; nothing of a dead one."""
    with contextlib.suppress(OSError, KeyError):
        lines = (line.partition(":") for line in (proc / str(pid) / "status").read_text().splitlines())
        facts = {key: value.strip() for key, _, value in lines}
        bits = int(facts["CapEff"], 16)
        names = [name for i, name in enumerate(CAPABILITIES) if bits >> i & 1]
        return {"capabilities": names, "seccomp": SECCOMP[facts["Seccomp"]], "no_new_privs": facts["NoNewPrivs"] == "1"}
    return {}


# linux/capability.h, in its order
CAPABILITIES = """\
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
""".split()


# ---- text ----


def text(found: list[dict[str, Any]], *, verbose: bool = False) -> str:
    """Draw the list."""
    if not found:
        return "no engine runs: `pktring up CONFIG.toml` starts one"
    table = columns("NAME >PID >GEN >WORKERS >PORTS >APPS STATE", [_row(one) for one in found])
    if not verbose:
        return "\n".join(table)
    parts = [line for row, one in zip(table[1:], found, strict=True) for line in [row, *_more(one)]]
    return "\n".join([table[0], *parts])


def _row(one: dict[str, Any]) -> list[Any]:
    if "controller" not in one:
        return [one["name"], one["pid"] or "-", "-", "-", "-", "-", one["state"] + (f" ({one['why']})" if "why" in one else "")]
    running = sum(worker["state"] == "running" for worker in one["workers"])
    counts = [f"{running}/{len(one['workers'])}", len(one["ports"]), len(one["apps"])]
    return [one["name"], one["pid"], one["generation"], *counts, f"{one['state']}, up {age(one['uptime_s'])}"]


def _more(one: dict[str, Any]) -> Iterator[str]:
    for worker in one["workers"]:
        yield f"  worker {worker['id']}: {', '.join(_worker(worker))}"
    if one["ports"]:
        yield f"  ports: {' '.join(one['ports'])}"
    for app in one["apps"]:
        lent = cli.plural(app["lent"] or 0, "buffer")
        yield f"  app {app['id']}: pid {app['pid'] or '-'} uid {app['uid']}, {app['mode']} of {app['port']}, {_memory(app)}, {lent} lent"


def _worker(worker: dict[str, Any]) -> Iterator[str]:
    yield f"cpu {_or_dash(worker['cpu'])}"
    yield f"pid {worker['pid'] or '-'}"
    yield worker["state"]
    yield cli.plural(worker["restarts"] or 0, "restart")
    if "seccomp" in worker:
        yield f"capabilities {_capabilities(worker['capabilities'])}"
        yield f"seccomp {worker['seccomp']}"
    if worker["note"]:
        yield worker["note"]


def _capabilities(names: list[str]) -> str:
    return "all" if len(names) > 30 else " ".join(names) or "none"


def _memory(app: dict[str, Any]) -> str:
    """Say in which domain of trust an app works: with the engine in its memory, or in memory of its own where frames are copied once."""
    what = {"shared": "in the engine's memory", "sealed": "in sealed memory of its own"}.get(app["memory"], str(app["memory"]))
    return what + (f" ({app['why']})" if app.get("why") else "")


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value
