"""An engine of two workers for netisr's rows, seen from outside: frames come in by real interfaces, counters by `stat -Q --json`.

    with started(net, [protocol("ip", policy="flow")], dispatch="deferred") as engine:
        engine.send(frames); engine.heard(len(frames)); engine.rows()["ip"]

It runs in the namespace of the middle host of `live.middle`, started by pktring.Engine in the test's process.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass, field

import engine_handlers as handlers
import pytest
from command import eventually
from engine_handlers import HERE, frame, gate
from lab import _roomy

import pktring
from pktring.drivers.netns import entered

BSD = ("length", "dispatched", "hybrid-dispatched", "queue-drops", "queued", "handled", "purged", "crashed")
COMMAND = [sys.executable, "-m", "pktring.tools.main"]


def protocol(name, handler="engine_handlers:stamped", policy="source", **more):
    """A [[protocol]]."""
    return {"name": name, "handler": handler, "policy": policy, **more}


def ports(**more):
    """Left and right, two rings each."""
    return {"left": {"interface": "fa", "rings": 2, "take": True, **more}, "right": {"interface": "fb", "rings": 2, "take": True}}


@dataclass
class Run:
    net: object
    engine: pktring.Engine
    ear: object
    out: socket.socket
    env: dict = field(default_factory=dict)

    @property
    def netisr(self):
        return self.engine.netisr

    def send(self, frames):
        """Out of host a."""
        for each in frames:
            self.out.send(each)
        return len(frames)

    def heard(self, n, timeout_s=5.0):
        """The stamps of the next n frames at host b."""
        got = [handlers.stamp(each) for each in self.ear.take(n, timeout_s)]
        assert len(got) == n, (len(got), n, self.rows())
        return got

    def heard_all(self, n=1 << 20, timeout_s=0.05):
        """The stamps of all that comes until nothing comes for so long; n at most."""
        got = []
        while len(got) < n and (more := self.ear.take(1, timeout_s)):
            got.append(handlers.stamp(more[0]))
        return got

    def silent(self, timeout_s=0.1):
        """Nothing arrives at host b."""
        assert not (got := self.ear.take(1, timeout_s)), got

    def command(self, *words):
        """A pktring command, as a user types it."""
        done = self.net.lab.run(self.net.fa.netns, [*COMMAND, *words], env=self.env)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def ask(self, *words):
        return json.loads(self.command(*words, "--json"))

    def rows(self, name=None):
        """{protocol: [row of workstream 0, 1]}, or those of one, by `stat -Q --json`."""
        found = {}
        for stream in self.ask("stat", "-Q")["netisr"]["workstream"]:
            for row in stream["work"]:
                found.setdefault(row["name"], []).append(row)
        return found[name] if name else found

    def now(self, name):
        """The same rows, asked in this process: it takes milliseconds."""
        streams = self.engine.status()["netisr"]["workstreams"]
        return [row for stream in streams for row in stream["work"] if row["name"] == name]

    def total(self, name, key):
        return sum(row[key] for row in self.rows(name))

    def work(self, proto, key):
        """A counter of ours, [of workstream 0, 1]: net.isr.work."""
        return [row[key] for row in self.sysctl("net.isr.work") if row["proto"] == proto]

    def sysctl(self, name, value=None):
        return self.engine.sysctl(name, value)

    def pids(self):
        return [worker["pid"] for worker in self.engine.status()["workers"]]

    def counters(self, port):
        return self.engine.status()["ports"][port]["counters"]

    def at_rest(self):
        """Wait until every frame that came in has been handled or dropped."""

        def quiet():
            rows = [row for stream in self.engine.status()["netisr"]["workstreams"] for row in stream["work"]]
            return all(row["length"] == 0 and row["queued"] == row["handled"] - row["dispatched"] - row["hybrid-dispatched"]
                       + row["purged"] + row["crashed"] for row in rows)  # fmt: skip

        eventually(quiet, 10)


@contextlib.contextmanager
def started(net, protocols, **more):
    """`more`: [engine]'s keys, or whole tables: port, sysctl, forward."""
    handlers.forget()
    tables = {key: more.pop(key) for key in ("port", "sysctl", "forward", "mirror") if key in more}
    config = {"engine": {"name": "t", "workers": 2, "slots": 256, **more}, "port": ports(), "protocol": protocols, **tables}
    with tempfile.TemporaryDirectory(prefix="pktring-test-") as folder, contextlib.ExitStack() as undo:
        before = os.environ.get("PKTRING_RUNDIR")
        os.environ["PKTRING_RUNDIR"] = folder
        undo.callback(lambda: os.environ.update(PKTRING_RUNDIR=before) if before else os.environ.pop("PKTRING_RUNDIR", None))
        with entered(net.fa.netns):
            engine = pktring.Engine(config).start()
        undo.callback(engine.stop)
        undo.callback(gate.open)
        ear = net.lab.listening(net.b)
        with entered(net.a.netns):
            out = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            _roomy(out)
            out.bind((net.a.name, 0))
        yield Run(net, engine, ear, out, {**os.environ})


PROTOCOLS = [
    protocol("ip", policy="flow", drainedcpu="engine_handlers:drained"),
    protocol("arp", "engine_handlers:gated"),
    protocol("ether", policy="flow", m2flow="engine_handlers:m2flow"),
    protocol("ipv6", policy="cpu", m2cpuid="engine_handlers:m2cpuid"),
]


def rested(run):
    """Lend it at rest, and deferred; a fixture's body."""
    gate.open()
    run.sysctl("net.isr.dispatch", "deferred")
    yield run
    gate.open()
    run.at_rest()
    run.heard_all()


def ways(run):
    """{flow: (workstream whose worker receives it, workstream that it belongs to)}: the kernel's hash, and ours."""
    found = []
    for how in ("direct", "deferred"):
        run.sysctl("net.isr.dispatch", how)
        run.send([frame(i, i) for i in range(32)])
        pids = run.pids()
        found.append({flow: pids.index(pid) for _, flow, pid, _ in run.heard(32)})
    return {flow: (found[0][flow], found[1][flow]) for flow in range(32)}


def one(flows, received, placed):
    """A flow that is received there and belongs there."""
    return next(flow for flow, way in flows.items() if way == (received, placed))


@contextlib.contextmanager
def rising(e):
    """By how much counters rise in the block: {protocol: [of workstream 0, 1]}, complete after it."""
    before, rise = e.rows(), {}
    yield rise
    e.at_rest()
    after = e.rows()
    rise |= {name: [{k: row[k] - was[k] for k in BSD} for row, was in zip(rows, before[name], strict=True)] for name, rows in after.items()}


@contextlib.contextmanager
def fresh(e, name="fresh", proto=3, handler="engine_handlers:stamped", policy="source", **more):
    """A protocol for the block, registered while the engine runs."""
    e.netisr.register(pktring.Handler(name, proto, handler, policy, **more))
    try:
        yield proto
    finally:
        gate.open()
        e.netisr.unregister(proto)


@contextlib.contextmanager
def held(e, *workstreams):
    """Their workers stand in a handler of arp (4) during the block."""
    with gate:
        for ws in workstreams:
            assert e.netisr.queue_src("arp", ws, frame(0, HERE)) == 0
        gate.waiting(len(workstreams))
        yield


def refused(number, what, *args):
    with pytest.raises(pktring.Error) as why:
        what(*args)
    assert why.value.code == "E_NETISR" and errno.errorcode[number] in why.value.text


def in_order(got):
    """Each flow was handled in the order of its numbers; nothing came twice."""
    by_flow = {}
    for number, flow, _, when in got:
        by_flow.setdefault(flow, []).append((when, number))
    for flow, seen in by_flow.items():
        numbers = [number for _, number in sorted(seen)]
        assert numbers == sorted(set(numbers)), (flow, numbers)


class Stream(threading.Thread):
    """Frames of 32 flows from host a, 5000 a second, until the block ends."""

    def __init__(self, e, kinds=("ip",)):
        super().__init__(daemon=True)
        self.e, self.kinds, self.sent, self.over = e, kinds, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.002):
            for _ in range(10):
                self.e.send([frame(self.sent, self.sent % 32, self.kinds[self.sent % len(self.kinds)])])
                self.sent += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join(10)


def drops(e):
    """What was dropped on the way, by reason that is told: the kernel's, and queues'."""
    left, right = e.counters("left"), e.counters("right")
    of_ports = sum(c[key] for c in (left, right) for key in c if key.startswith("drop_"))
    return of_ports + sum(row["queue-drops"] for rows in e.rows().values() for row in rows)
