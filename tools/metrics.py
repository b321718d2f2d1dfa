"""The engine's counters for Prometheus: a small process of its own, which asks the control socket at each scrape.

It holds nothing of the engine, so it can neither slow down a worker nor keep one's memory; it ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from .rates import Status

if TYPE_CHECKING:
    from prometheus_client import Metric

FORM = "ADDRESS:PORT, such as 127.0.0.1:9469 or [::1]:9469"
START_S, TIMEOUT_S = 10.0, 2.0
READY = "metrics on "
PLAIN = {"rx_frames", "rx_bytes", "tx_frames", "tx_bytes"}
WORK = {
    "dispatched": "frames handled at once by the worker that received them",
    "hybrid-dispatched": "frames handled at once because the queue was empty",
    "queue-drops": "frames dropped because a protocol's queue was full",
    "queued": "frames put into a protocol's queue",
    "handled": "frames that a protocol's handler got",
}


# ---- the names ----


def families(status: Status) -> Iterator[Metric]:
    """Turn a status into Prometheus' families; names and units as its conventions ask."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def family(kind: Any, name: str, text: str, labels: str, rows: Iterable[tuple]) -> Metric:
        made = kind(f"pktring_{name}", text, labels=["engine", *labels.split()])
        for *values, number in rows:
            made.add_metric([status["name"], *map(str, values)], float(number))
        return made

    def counter(*what: Any) -> Metric:
        return family(CounterMetricFamily, *what)

    def gauge(*what: Any) -> Metric:
        return family(GaugeMetricFamily, *what)

    ports = [(name, port["counters"]) for name, port in status["ports"].items()]
    yield gauge("engine_info", "which engine this is", "version generation", [(status["version"], status["generation"], 1)])
    yield gauge("engine_uptime_seconds", "how long its controller has been up", "", [(status["uptime_s"],)])
    for unit in ("frames", "bytes"):
        rows = [(name, way, counters[f"{way}_{unit}"]) for name, counters in ports for way in ("rx", "tx")]
        yield counter(f"port_{unit}", f"{unit} placed in receive rings (rx), accepted by the kernel or file (tx)", "port direction", rows)
    lost = [(name, reason, n) for name, counters in ports for reason, n in counters.items() if reason.startswith("drop_")]
    yield counter("drops", "frames dropped; reasons as `pktring help counters`", "port reason", lost)
    rest = [(name, key, n) for name, counters in ports for key, n in counters.items() if key not in PLAIN and not key.startswith("drop_")]
    yield counter("port_events", "the other counters of `pktring help counters`", "port event", rest)
    up = [(name, port["facts"].get("up", True)) for name, port in status["ports"].items()]
    yield gauge("port_up", "whether the interface is up", "port", up)
    yield from _netisr(status, counter, gauge)
    yield from _workers(status, counter, gauge)
    handlers = [((h["name"], h["protocol"], h["worker"]), h) for h in status["handlers"]]
    for key, text in (("frames", "frames given to a handler"), ("batches", "calls of a handler"), ("raised", "calls that raised")):
        yield counter(f"handler_{key}", text, "handler protocol worker", [(*labels, h[key]) for labels, h in handlers])
    yield gauge("buffers", "buffers of the region by the state of their owner word", "state", list(status["pool"].items()))
    yield gauge("apps", "apps attached, by port and memory", "port memory", _tally((app["port"], app["memory"]) for app in status["apps"]))


def _netisr(status: Status, counter: Callable[..., Metric], gauge: Callable[..., Metric]) -> Iterator[Metric]:
    works = [work for stream in status["netisr"]["workstreams"] for work in stream["work"]]
    for key, text in WORK.items():
        name = f"netisr_{key.replace('-', '_')}"
        yield counter(name, text, "protocol workstream", [(work["name"], work["workstream"], work[key]) for work in works])
    for key, text in (("length", "frames waiting in a protocol's queue"), ("watermark", "the most that ever waited")):
        yield gauge(f"netisr_queue_{key}", text, "protocol workstream", [(work["name"], work["workstream"], work[key]) for work in works])
    limits = [(protocol["name"], protocol["queue-limit"]) for protocol in status["netisr"]["protocols"]]
    yield gauge("netisr_queue_limit", "how many may wait", "protocol", limits)


def _workers(status: Status, counter: Callable[..., Metric], gauge: Callable[..., Metric]) -> Iterator[Metric]:
    workers = status["workers"]
    yield counter("worker_restarts", "times a worker was replaced", "worker", [(w["id"], w["restarts"]) for w in workers])
    spent = [(w["id"], w["cpu"], w["cpu_s"]) for w in workers if w.get("cpu_s") is not None]
    yield counter("worker_cpu_seconds", "CPU time of a worker's process", "worker cpu", spent)
    runs = [(w["id"], w["state"] == "running") for w in workers]
    yield gauge("worker_running", "1: it runs; 0: it is starting, held off or stopped", "worker", runs)


def _tally(keys: Iterable[tuple]) -> list[tuple]:
    counts: dict[tuple, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return [(*key, n) for key, n in counts.items()]


class Collector:
    """What prometheus_client asks at each scrape. When the engine does not answer, pktring_up is 0 and nothing else is told."""

    def __init__(self, status: Callable[[], Status]):
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Ask once, and tell."""
        from prometheus_client.core import GaugeMetricFamily

        told: list[Metric] = []
        with contextlib.suppress(Error, OSError):
            told = list(families(self._status()))
        yield GaugeMetricFamily("pktring_up", "whether the engine answers", value=float(bool(told)))
        yield from told

    def describe(self) -> list[Metric]:
        """Tell nothing beforehand, so that to register does not ask the engine."""
        return []


# ---- the endpoint ----


def address(listen: str) -> tuple[str, int]:
    """Take ADDRESS:PORT apart. Raises E_CONFIG."""
    host, colon, port = listen.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise Error("E_CONFIG", f"[metrics] listen = {listen!r}: write {FORM}")
    return host, int(port)


class Served:
    """An endpoint that answers /metrics until it is closed."""

    def __init__(self, server: Any, thread: threading.Thread):
        self._server, self._thread = server, thread
        self.address: tuple[str, int] = server.server_address[:2]

    def close(self) -> None:
        """Stop answering and free the address."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(listen: str, status: Callable[[], Status]) -> Served:
    """Answer scrapes with what `status()` returns, which is called in threads of this process. Raises E_METRICS_LISTEN, E_CONFIG."""
    from prometheus_client import CollectorRegistry, start_http_server

    host, port = address(listen)
    registry = CollectorRegistry()
    registry.register(Collector(status))
    try:
        return Served(*start_http_server(port, host, registry))
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        why = "another program listens there" if busy else error.strerror or error
        what = f"{why}: choose another {'port' if busy else 'address, one of this host'}"
        raise Error("E_METRICS_LISTEN", f"[metrics] listen = {listen!r}: {what}") from None


# ---- the process ----


def start(listen: str, control: str) -> subprocess.Popen[str]:
    """Start the endpoint as a process that ends with this one; returns when it listens. Raises E_METRICS_LISTEN, E_CONFIG."""
    address(listen)
    argv = [sys.executable, "-m", "pktring.tools.metrics", listen, control, str(os.getpid())]
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout
    line = child.stdout.readline() if _readable(child.stdout.fileno(), START_S) else ""
    if line.startswith(READY):
        return child
    child.kill()
    child.wait()
    code, _, text = line.strip().partition(" ")
    raise Error(code or "E_METRICS_LISTEN", text or f"{listen}: the process that should listen did not start: see above why")


def _readable(fd: int, timeout_s: float | None = None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def run(listen: str, control: str, parent: int) -> int:
    """Serve until the process `parent`, which started us, is gone. The first line on stdout is READY and where, or an error."""
    from pktring.engine.control import Client

    def status() -> Status:
        with Client(control, TIMEOUT_S) as client:
            return client.call("status")[0]

    watched = os.pidfd_open(parent)
    if os.getppid() != parent:  # it ended before we looked, and that number may be another's by now
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's; we end with it
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"pktring: metrics {listen}")
    try:
        with serve(listen, status) as served:
            print(f"{READY}http://{served.address[0]}:{served.address[1]}/metrics", flush=True)
            _readable(watched)
    except Error as error:
        print(f"{error.code} {error.text}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
