"""From a configuration to a plan: ports are opened, rings made and dealt to the workers, rules compiled."""

from __future__ import annotations

import grp
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pktring.shm import _shm
from pktring.shm.device import Device
from pktring.shm.region import RX, TX, Region

from . import _engine
from .config import Config, PortConfig
from .filter import compile as compile_filter
from .memory import EngineMemory
from .plan import Plan, PlannedPort, Rule
from .rundir import RunDir, address

SPARE_BUFFERS = 4096  # of each worker, for frames in hand, in lanes and in queues
APPS, APP_SLOTS = 8, 256  # attached apps that share the region, and the slots of their rings
DIRECTIONS = {"in": _engine.PR_DIR_IN, "out": _engine.PR_DIR_OUT, "inout": _engine.PR_DIR_IN | _engine.PR_DIR_OUT}


class OpenDevice(Protocol):
    """How a port name becomes a device; the front door's."""

    def __call__(
        self, name: str, *, queues: int, tx_queues: int, directions: str, take: bool, port_number: int, yes: bool
    ) -> tuple[Device, Any, str]: ...


@dataclass(frozen=True)
class Wanted:
    """A port of the configuration, and what the rules make of it."""

    name: str
    text: str
    rings: int
    take: bool
    reads: bool


def wanted_ports(config: Config) -> list[Wanted]:
    """Every port that the configuration names, those that only a mirror names included."""
    ways = [way for rule in config.forwards for way in rule.ways()]
    sources = {source for source, _ in ways} | {mirror.from_ for mirror in config.mirrors}
    targets = {target for _, target in ways} | {mirror.to for mirror in config.mirrors}
    found = [
        Wanted(name, port.text, port.rings, _takes(config, port), name in sources or name not in targets)
        for name, port in config.ports.items()
    ]
    extra = dict.fromkeys(mirror.to for mirror in config.mirrors if mirror.to not in config.ports)
    return found + [Wanted(text, text, 1, False, False) for text in extra]


def _takes(config: Config, port: PortConfig) -> bool:
    """Whether a port is opened taking: as it says itself, else if a [[forward]] receives from it."""
    return any(port.name == source for rule in config.forwards for source, _ in rule.ways()) if port.take is None else port.take


class Opening:
    """Opens everything or nothing."""

    def __init__(self, config: Config, rundir: RunDir, open_device: OpenDevice, cpus: list[int], generation: int, yes: bool = False):
        self.config = config
        self.yes = yes  # take interfaces even if this host is reached through them
        self.rundir = rundir
        self.cpus = cpus
        self.generation = generation
        self._open_device = open_device
        self._undo: list[Callable[[], None]] = []

    def plan(self) -> Plan:
        """Open, and return the plan. Raises what cannot be had; then nothing is left."""
        try:
            return self._plan()
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise

    def _plan(self) -> Plan:
        wanted = wanted_ports(self.config)
        devices = [(want, *self._device(number, want)) for number, want in enumerate(wanted)]
        region = self._region([device for _, device, _, _ in devices])
        memory = EngineMemory.create(self.rundir.memory, self.config, self.cpus, self.generation)
        self._undo.append(memory.discard)
        ports = [self._port(region, n, want, device, watch, why) for n, (want, device, watch, why) in enumerate(devices)]
        bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in self.cpus]
        plan = Plan(self.config, self.generation, region, memory, self.cpus, ports, [], [], bells, self._listeners())
        plan.forwards, plan.mirrors = rules(self.config, ports)
        return plan

    def _device(self, number: int, want: Wanted) -> tuple[Device, Any, str]:
        directions = "rxtx" if want.reads else "tx"
        device, watch, why = self._open_device(
            want.text, queues=want.rings, tx_queues=len(self.cpus), directions=directions, take=want.take, port_number=number, yes=self.yes
        )
        self._undo.append(device.close)
        return device, watch, why

    def _region(self, devices: list[Device]) -> Region:
        owners, slots = len(self.cpus) + 1, self.config.slots
        n = len(self.cpus)
        of_ports = sum(2 * max(len(device.queues), 1) for device in devices)
        rings = of_ports + 2 * APPS * n
        home = -(-of_ports // n) * slots + 2 * APPS * APP_SLOTS + SPARE_BUFFERS
        group = existing(self.config.group)
        region = Region.create(
            self.rundir.memory,
            rings=rings,
            slots=slots,
            buffers=max(home * owners + 2, self.config.buffers),
            stride=self.config.stride,
            owners=owners,
            kept=True,
            mode=0o660 if group else 0o600,
            group=group or None,
            generation=self.generation,
        )
        self._undo.append(region.close)
        return region

    def _port(self, region: Region, number: int, want: Wanted, device: Device, watch: Any, why: str) -> PlannedPort:
        """Deal the queues of a device to the workers, round robin."""
        n = len(self.cpus)
        rx: list[list[int]] = [[] for _ in range(n)]
        tx: list[int | None] = [None] * n
        queue_of: dict[int, int] = {}
        for q, queue in enumerate(device.queues):
            worker = q % n
            pool = region.pool_of(worker + 1)
            if want.reads and getattr(queue, "receives", True):
                index, _ = region.make_ring(RX, self.config.slots, f"{want.name[-32:]} rx{q}", q, pool=pool)
                rx[worker].append(index)
                queue_of[index] = q
            if tx[worker] is None and getattr(queue, "sends", True):
                tx[worker], _ = region.make_ring(TX, self.config.slots, f"{want.name[-32:]} tx{q}", q, pool=pool)
                queue_of[tx[worker]] = q  # type: ignore[index]
        taking = device.facts().get("mode") == "taking"
        return PlannedPort(number, want.name, want.text, device, watch, why, taking, rx, tx, queue_of)

    def _listeners(self) -> list[socket.socket]:
        found = []
        for i in range(len(self.cpus)):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            with address(self.rundir.worker(i + 1)) as short:
                listener.bind(short)
            os.chmod(self.rundir.worker(i + 1), 0o600)
            listener.listen(2)
            found.append(listener)
        return found


def rules(config: Config, ports: list[PlannedPort]) -> tuple[list[Rule], list[Rule]]:
    """Compile the forwards and mirrors, in the order of the configuration. Raises E_FILTER."""
    number = {port.name: port.number for port in ports}
    forwards, mirrors = [], []
    for f in config.forwards:
        program = compile_filter(f.filter) if f.filter else b""
        forwards += [Rule(number[a], number[b], program, DIRECTIONS["in"]) for a, b in f.ways()]
    for m in config.mirrors:
        program = compile_filter(m.filter) if m.filter else b""
        mirrors.append(Rule(number[m.from_], number[m.to], program, DIRECTIONS[m.direction]))
    return forwards, mirrors


def carry_whole(plan: Plan, port: PlannedPort) -> None:
    """Super-frames stay whole where every target of the port's rules takes them whole; what goes to handlers, mirrors and apps is cut."""
    targets = [plan.ports[rule.target] for rule in plan.forwards if rule.source == port.number]
    whole = bool(targets) and all(_carries(plan, target) for target in targets)
    for rings in port.rx:
        for index in rings:
            ring = plan.region.view.ring(index)
            ring.bind(port.device.queues[port.queue_of[index]].device)
            flags = ring.device_flags & ~_shm.PR_DEV_WHOLE
            ring.device_flags = flags | _shm.PR_DEV_WHOLE if whole else flags


def _carries(plan: Plan, port: PlannedPort) -> bool:
    rings = [index for index in port.tx if index is not None]
    for index in rings:
        ring = plan.region.view.ring(index)
        ring.bind(port.device.queues[port.queue_of[index]].device)
        if not ring.device_flags & _shm.PR_DEV_CARRIES_GSO:
            return False
    return bool(rings)


def existing(group: str) -> str:
    """The group, if there is such a one; else "", nobody's."""
    try:
        return grp.getgrnam(group).gr_name
    except KeyError:
        return ""
