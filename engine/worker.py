"""One worker: a process that owns a workstream. It is forked from the controller with a plan, warms up, is told whom to be, and runs.

    spare:   resolve the handlers ▸ give up every privilege ▸ "ready" ▸ wait
    become:  mend what its predecessor left ▸ bind the rings ▸ go on where that one stopped
    run:     pull ▸ sort ▸ deliver ▸ push ▸ rest: pr_w_run in worker.h, in C; it comes back here only for messages
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any

from pktring.shm.errors import Error
from pktring.shm.segment import start_time

from . import _engine, jail
from .handlers import HandlerTable
from .netisr import End
from .plan import NO_WORKSTREAM, Plan, PlannedPort, send

SLICE_NS = 1_000_000_000
BURST = 64


def live(plan: Plan, link: socket.socket) -> int:
    """Be a spare, and then a worker. Returns the exit status; the controller is at the other end of `link`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    worker = Worker(plan, link)
    try:
        worker.tell(ready=worker.warm_up())
    except Error as why:
        worker.tell(error=[why.code, why.text])
        return 1
    order = worker.hear()
    if "become" not in order:
        return 0
    try:
        worker.become(order["become"], order["gen"], order["died"])
    except Error as why:
        worker.tell(error=[why.code, why.text])
        return 1
    return worker.run()


class Worker:
    """See above."""

    def __init__(self, plan: Plan, link: socket.socket):
        self.plan = plan
        self._link: socket.socket | None = link
        self._orphan_since = 0.0
        self._index = -1
        self._rings: list[Any] = []
        self._found: dict[str, int] = {}

    # ---- a spare ----

    def warm_up(self) -> dict[str, Any]:
        """Everything that takes time, before it matters. Returns what was given up. Raises E_HANDLER."""
        _title(f"pktring: spare {self.plan.config.name}")
        ports = {port.name: port.number for port in self.plan.ports}
        self._handlers = HandlerTable(self.plan.region, ports, self._log)
        for handler in self.plan.handlers.values():
            self._handlers.load(handler)
        files = any("file" in port.device.facts() for port in self.plan.ports)  # which an heir cuts back to what its predecessor told of
        return jail.enter(jit=self._handlers.compiled, files=files)

    # ---- becoming a worker ----

    def become(self, index: int, gen: int, died: bool) -> None:
        """Take the place of worker `index`, whose last holder stopped or died."""
        plan, self._index = self.plan, index
        _title(f"pktring: worker {index + 1} cpu {plan.cpus[index]}")
        pool = plan.region.pool_of(index + 1, gen)
        self._found = found = plan.region.mend(index + 1, pool)
        found["reclaimed"] += plan.memory.netisr.bury(pool, index, plan.bells)
        where: dict[str, Any] = {"producer": index, "workstream": index, "bells": plan.bells}
        self._end = End(plan.memory.netisr, pool, plan.region.view, **where, rss_key=plan.config.rss_key)
        found["lost"] += self._end.found
        self._handlers.attach(plan.memory.handler_stats(index), pool)
        record = plan.memory.record(index)
        self._loop = _engine.Worker(record, self._end, self._handlers, plan.bells[index])
        for port in plan.ports:
            self._add_port(port)
        for rule in plan.forwards:
            self._loop.add_forward(rule.source, rule.filter, rule.directions, rule.target)
        for rule in plan.mirrors:
            self._loop.add_mirror(rule.source, rule.filter, rule.directions, rule.target)
        for app in plan.apps:
            if held := app.open(plan, index, pool):
                self._loop.add_app(app.port, held)
        for fd in (self._link.fileno() if self._link else -1, plan.listeners[index].fileno()):
            self._loop.add_event(fd)
        _engine.record_state(record, _engine.PR_WS_RUNNING, os.getpid(), start_time(os.getpid()))
        self.tell(became=index, gen=gen, at=time.monotonic(), found=found if died else {})

    def _add_port(self, port: PlannedPort) -> None:
        rx = [self._ring(port, ring) for ring in port.rx[self._index]]
        tx = port.tx[self._index]
        sender = port.sender if tx is None else NO_WORKSTREAM
        protocols = sum(1 << proto for proto in self.plan.handlers)
        self._loop.add_port(rx, None if tx is None else self._ring(port, tx), sender, port.taking, protocols)

    def _ring(self, port: PlannedPort, index: int) -> Any:
        ring = self.plan.region.view.ring(index)
        ring.bind(port.device.queues[port.queue_of[index]].device)
        ring.burst = BURST
        if (lost := ring.resume()) < 0:
            raise Error("E_LEDGER", f"{port.name}: the books of ring {index} make no sense: stop the engine and start it anew")
        self._found["lost"] += lost
        self._rings.append(ring)
        return ring

    # ---- a worker ----

    def run(self) -> int:
        """Run until the controller asks for the end, or is gone for too long."""
        record = self.plan.memory.record(self._index)
        while True:
            why = self._loop.run(SLICE_NS)
            if why == _engine.PR_WHY_ASKED:
                break
            if why == _engine.PR_WHY_EVENT:
                self._events()
            if self._orphan_since and time.monotonic() - self._orphan_since > self.plan.config.orphan_timeout_s:
                break
        _engine.record_state(record, _engine.PR_WS_STOPPED, os.getpid(), start_time(os.getpid()))
        return 0

    def _events(self) -> None:
        """The controller speaks or is gone, or a new one calls."""
        listener = self.plan.listeners[self._index]
        ready = select.select([listener, *([self._link] if self._link else [])], [], [], 0)[0]
        if self._link in ready and not self.hear():
            self._orphaned()
        if listener in ready:
            self._meet(listener)

    def _orphaned(self) -> None:
        if self._link:
            self._loop.drop_event(self._link.fileno())
            self._link.close()
            self._link = None
        self._orphan_since = time.monotonic()

    def _meet(self, listener: socket.socket) -> None:
        """A new controller: give it what it needs to take the old one's place."""
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        _, uid, _ = _peer(caller)
        if self._link or uid not in (0, os.geteuid()):
            caller.close()
            return
        caller.settimeout(1.0)
        try:
            send(caller, *self.plan.hand_on())
        except OSError:
            caller.close()
            return
        self._link, self._orphan_since = caller, 0.0
        self._loop.add_event(caller.fileno())

    # ---- the controller ----

    def tell(self, **message: Any) -> None:
        """Say something to the controller; it may be gone."""
        if self._link:
            try:
                self._link.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
            except OSError:
                pass

    def hear(self) -> dict[str, Any]:
        """The controller's next message; {} = it is gone."""
        try:
            return json.loads(self._link.recv(65536) or b"{}") if self._link else {}
        except OSError:
            return {}

    def _log(self, line: str) -> None:
        self.tell(log=line)


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    import struct

    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def _title(text: str) -> None:
    from setproctitle import setproctitle

    setproctitle(text)
