"""The demo's engine: its configuration, `pktring up` as a process of its own, and what is asked of it while it runs."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from pktring.shm.errors import Error

from . import engines, stat
from .rates import dropped, drops, summed

CONFIG = """\
[engine]
name = "{name}"
workers = 2                 # a process each, on a CPU of its own
dispatch = "deferred"       # netisr queues a frame, and the workstream of its flow handles it
guests = true               # any user may attach, and gets copies in a sealed memory of his own

[port.left]
interface = "left"
[port.right]
interface = "right"

[[forward]]                 # the bulk: buffers change rings, TCP super-frames stay whole
from = "left"
to = "right"
both = true
filter = "tcp"

[[mirror]]                  # copies of what arrives at either port, cut to wire frames
from = "left"
to = {file}
[[mirror]]
from = "right"
to = {file}

# all the rest: netisr, and a Python function over batches
{protocols}"""
PROTOCOL = """\
[[protocol]]
name = "{name}"
handler = "pktring.tools.demo_handler:across"
policy = "{policy}"
"""
PROTOCOLS = {"arp": "source", "ip": "flow", "ipv6": "flow"}
KEPT = 96  # bytes of each frame in the capture file: the headers
START_S, END_S, REST_S = 20.0, 15.0, 2.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def config(name: str, file: str) -> str:
    """The configuration, as a user would have written it."""
    protocols = "".join(PROTOCOL.format(name=protocol, policy=policy) for protocol, policy in PROTOCOLS.items())
    return CONFIG.format(name=name, file=json.dumps(f"pcap:{file}?snaplen={KEPT}", ensure_ascii=False), protocols=protocols)


class Engine:
    """`pktring up` on that configuration; ready when this returns, ended by SIGTERM, and ending by itself if we die."""

    def __init__(self, name: str, file: str):
        self.name = name
        argv = [sys.executable, "-m", "pktring.tools.main", "up", file, "--json"]
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_die_with_parent
        )
        try:
            self._await_ready()
            self._found = engines.pick(name)
        except BaseException:
            self.__exit__()
            raise

    def _await_ready(self) -> None:
        """Show what it says as far as "is ready"."""
        assert self._process.stderr
        deadline, text = time.monotonic() + START_S, b""
        while b" is ready" not in text or not text.endswith(b"\n"):
            if not select.select([self._process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Error("E_DEMO", f"`pktring up` was not ready within {START_S:g} s: see `pktring doctor`")
            more = os.read(self._process.stderr.fileno(), 65536)
            text += more
            sys.stderr.write(more.decode(errors="replace"))
            if not more:
                raise Error("E_DEMO", "`pktring up` did not start: see the line above, and `pktring doctor`")

    def status(self) -> dict[str, Any]:
        """Its status at rest: when what was received has been sent, or waits for nothing but more."""
        deadline = time.monotonic() + REST_S
        before = None
        while (now := engines.call(self._found, "status"))["ports"] != before and time.monotonic() < deadline:
            before = now["ports"]
            time.sleep(0.05)
        return now

    def netisr(self) -> str:
        """What `pktring stat -Q` prints."""
        from pktring.engine import netisr_tables

        return netisr_tables.text(*stat.netisr(engines.call(self._found, "sysctl", name="net.isr")["values"]))

    def end(self) -> dict[str, Any]:
        """Ask it to end, and wait. -> what its ports carried in all, as `up --json` says it."""
        self._process.send_signal(signal.SIGTERM)
        out, err = self._process.communicate(timeout=END_S)
        if self._process.returncode:
            raise Error("E_DEMO", f"`pktring up` failed: {err.decode(errors='replace').strip()}: see `pktring doctor`")
        return json.loads(out)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # nothing, where it has ended already
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # so that it cleans up even if we are killed


# ---- what it did, from its status ----


def way(status: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    """Return what was carried from one port to another, and what was lost on the way: `frames, bytes, dropped, reasons`."""
    rows = [*_rows(status, source, "rx"), *_rows(status, target, "tx")]
    sent = summed(_rows(status, target, "tx"))
    reasons = {name: n for name, n in drops(summed(rows)).items() if name != "drop_mirror"}
    return {"frames": sent["tx_frames"], "bytes": sent["tx_bytes"], "dropped": dropped(summed(rows)), "reasons": reasons}


def captured(status: dict[str, Any], carried: dict[str, Any], file: str) -> dict[str, Any]:
    """Return what the mirrors wrote, to the end: the keys of `capture --json` that mean something here."""
    ports = status["ports"]
    name, written = next((name, port["counters"]) for name, port in ports.items() if port["facts"].get("driver") == "pcap")
    ends = [ports[name]["counters"] for name in ("left", "right")]
    reasons = {name: n for name, n in drops(summed(ends)).items() if name == "drop_mirror"}
    kernel = sum(end["drop_kernel"] for end in ends)
    return {
        "captured": carried["ports"][name]["tx_frames"],
        "dropped_kernel": kernel,
        "dropped_engine": sum(reasons.values()) + dropped(written),
        "written_bytes": os.path.getsize(file),
        "files": [file],
        "reasons": reasons | drops(written),
    }


def _rows(status: dict[str, Any], port: str, direction: str) -> list[dict[str, Any]]:
    return [row for row in status["ports"][port]["rings"] if f" {direction}" in row["row"]]


def facts(status: dict[str, Any]) -> dict[str, Any]:
    """Return what of a status is worth keeping."""
    keys = ("name", "version", "generation", "uptime_s", "workers", "ports", "handlers", "pool")
    return {key: status[key] for key in keys}
