"""A plan: everything that a worker needs to know, made by the controller before it forks one. A plan never changes; a worker that is to
do something else is replaced by one that was forked from another plan.

    region ── rings ──▶ ports ──▶ rules: mirrors, forwards      engine memory ── records, netisr      handlers by protocol      apps

Whoever holds a plan holds its descriptors too: a worker can hand them to a controller that takes the place of a dead one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pktring.shm.device import Device
from pktring.shm.errors import Error
from pktring.shm.region import Region

from .config import Config, render
from .handlers import importable_name
from .memory import EngineMemory
from .netisr import Handler

NO_WORKSTREAM = -1
FDS_A_MESSAGE = 250  # SCM_MAX_FD is 253


@dataclass
class PlannedPort:
    """A port of the engine: its device, and which worker has which of its rings (by their numbers in the region)."""

    number: int
    name: str
    text: str  # the port name it was opened by
    device: Device
    watch: Any
    why: str
    taking: bool
    rx: list[list[int]]  # of each worker
    tx: list[int | None]  # of each worker
    queue_of: dict[int, int]  # which queue of the device serves a ring

    @property
    def sender(self) -> int:
        """The workstream that sends for workers without a transmit ring."""
        return next((i for i, ring in enumerate(self.tx) if ring is not None), NO_WORKSTREAM)

    @property
    def rings(self) -> list[int]:
        """Numbers of all its rings."""
        return [ring for rings in self.rx for ring in rings] + [ring for ring in self.tx if ring is not None]


@dataclass(frozen=True)
class Rule:
    """Frames of port number `source` that match go to port number `target`; `directions`: PR_DIR_ bits."""

    source: int
    target: int
    filter: bytes
    directions: int


@dataclass
class Plan:
    """See above. `handlers`: by protocol number, what was registered; `bells`: one eventfd a workstream."""

    config: Config
    generation: int
    region: Region
    memory: EngineMemory
    cpus: list[int]  # of each worker
    ports: list[PlannedPort]
    forwards: list[Rule]
    mirrors: list[Rule]
    bells: list[int]
    listeners: list[socket.socket]  # of each worker: where a new controller finds it
    handlers: dict[int, Handler] = field(default_factory=dict)
    apps: list[Any] = field(default_factory=list)

    def changed(self, **what: Any) -> Plan:
        """The same plan, but for `what`."""
        return dataclasses.replace(self, **what)

    def port(self, name: str) -> PlannedPort | None:
        """A port by its name in the configuration, or by the interface's."""
        return next((p for p in self.ports if name in (p.name, p.text, p.device.facts().get("interface"))), None)

    # ---- from process to process ----

    def hand_on(self) -> tuple[dict[str, Any], list[int]]:
        """What a new controller needs to go on, and the descriptors it needs for that, in order."""
        fds = [*self.bells, *(listener.fileno() for listener in self.listeners)]
        ports = []
        for port in self.ports:
            state, more = port.device.hand_on()
            facts = {k: getattr(port, k) for k in ("number", "name", "text", "why", "taking", "rx", "tx")}
            ports.append(facts | {"queue_of": list(port.queue_of.items()), "device": state, "n_fds": len(more)})
            fds += more
        apps = []
        for app in self.apps:
            state, more = app.hand_on()
            apps.append((state, len(more)))
            fds += more
        handlers = [described(handler) for handler in self.handlers.values()]
        rules = [[rule.source, rule.target, rule.filter.hex(), rule.directions] for rule in (*self.forwards, *self.mirrors)]
        state = {
            "config": render(self.config),
            "generation": self.generation,
            "cpus": self.cpus,
            "ports": ports,
            "rules": rules,
            "n_forwards": len(self.forwards),
            "handlers": handlers,
            "apps": apps,
        }
        return state, fds


def send(sock: socket.socket, state: dict[str, Any], fds: Sequence[int]) -> None:
    """Send a state and its descriptors, over a seqpacket socket: a length, then pieces, each with its share of the descriptors."""
    text = json.dumps(state).encode()
    pieces = max(-(-len(text) // 32768), -(-len(fds) // FDS_A_MESSAGE))
    sock.send(json.dumps({"pieces": pieces, "pid": os.getpid()}).encode())
    for i in range(pieces):
        part = list(fds[i * FDS_A_MESSAGE : (i + 1) * FDS_A_MESSAGE])
        socket.send_fds(sock, [b"." + text[i * 32768 : (i + 1) * 32768]], part)


def receive(sock: socket.socket) -> tuple[int, dict[str, Any], list[int]]:
    """What `send` sent: the sender's pid, the state, the descriptors (close-on-exec). Raises OSError, ValueError on nonsense."""
    head = json.loads(sock.recv(4096) or b"{}")
    text, fds = b"", []
    for _ in range(int(head["pieces"])):
        part, more, _, _ = socket.recv_fds(sock, 65536, FDS_A_MESSAGE, socket.MSG_CMSG_CLOEXEC)
        if not part:
            raise OSError("the worker went away while it was handing on")
        text += part[1:]
        fds += more
    return int(head["pid"]), json.loads(text), fds


def described(handler: Handler) -> dict[str, Any]:
    """A registration as it may be sent: functions by the names under which they can be imported, "" where they cannot."""
    facts = {f.name: getattr(handler, f.name) for f in dataclasses.fields(handler)}
    for which in ("handler", "m2flow", "m2cpuid", "drainedcpu"):
        if callable(facts[which]):
            try:
                facts[which] = importable_name(facts[which])
            except Error:
                facts[which] = ""
    return facts


AdoptDevice = Callable[[dict[str, Any], list[int]], tuple[Device, Any]]


def adopted_ports(state: dict[str, Any], fds: list[int], adopt_device: AdoptDevice) -> list[PlannedPort]:
    """Rebuild the ports from what a worker handed on; `fds` are those of the devices."""
    ports = []
    for port in state["ports"]:
        mine, fds = fds[: port["n_fds"]], fds[port["n_fds"] :]
        device, watch = adopt_device(port["device"], mine)
        keep = {k: port[k] for k in ("number", "name", "text", "why", "taking", "rx", "tx")}
        ports.append(PlannedPort(**keep, device=device, watch=watch, queue_of={int(r): q for r, q in port["queue_of"]}))
    return ports
