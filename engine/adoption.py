"""Adoption: a new controller finds the workers of a dead one, and takes over what they hold. No frame is lost by it; they do not even stop.

    worker-N.sock ◀── connect ── new controller
          └── plan.hand_on(): state and descriptors ──▶ devices, bells and sockets as they were
    region, engine memory: attached by name, taken over by this process
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from pktring.shm.errors import Error
from pktring.shm.region import Region

from . import _engine, opening
from .config import Config, from_text
from .memory import EngineMemory
from .netisr import Handler
from .pidfd import PidFd
from .plan import AdoptDevice, Plan, Rule, adopted_ports, receive
from .rundir import RunDir, address

ANSWER_S = 1.0
Running = dict[int, tuple[int, socket.socket, int]]  # by worker: pid, link, generation


def call(path: str) -> tuple[int, dict[str, Any], list[int], socket.socket] | None:
    """What the worker that listens there hands on, and the link to it; None when nobody does."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(ANSWER_S)
    try:
        with address(path) as short:
            link.connect(short)
        pid, state, fds = receive(link)
    except (OSError, ValueError, KeyError):
        link.close()
        return None
    link.settimeout(None)
    return pid, state, fds, link


def adopt(
    rundir: RunDir, adopt_device: AdoptDevice, handlers: Sequence[Handler]
) -> tuple[Plan, Running, list[tuple[dict[str, Any], list[int]]]] | None:
    """The plan by which workers of a dead controller run, and those workers; None when there are none. Raises what a device refuses."""
    answers = {n - 1: found for n in rundir.workers() if (found := call(rundir.worker(n)))}
    if not answers:
        return None
    _, state, fds, _ = next(iter(answers.values()))
    for _, _, more, _ in list(answers.values())[1:]:
        _close(more)
    try:
        apps = _apps(state, fds)
        plan = _plan(rundir.memory, from_text(state["config"]), state, fds, adopt_device, handlers)
    except Error:
        _close(fds)
        raise
    records = {i: _engine.record_read(plan.memory.record(i)) for i in answers}
    return plan, {i: (pid, link, records[i]["gen"]) for i, (pid, _, _, link) in answers.items()}, apps


def _apps(state: dict[str, Any], fds: list[int]) -> list[tuple[dict[str, Any], list[int]]]:
    """The attached apps, whose descriptors come last."""
    found = []
    for app, n in reversed(state["apps"]):
        found.append((app, fds[len(fds) - n :]))
        del fds[len(fds) - n :]
    return found


def _plan(
    name: str, config: Config, state: dict[str, Any], fds: list[int], adopt_device: AdoptDevice, handlers: Sequence[Handler]
) -> Plan:
    region = Region.attach(name, generation=state["generation"])
    region.take_over()
    n = len(state["cpus"])
    memory = EngineMemory.join(name, config, n)
    bells, fds = fds[:n], fds[n:]
    listeners, fds = [socket.socket(fileno=fd) for fd in fds[:n]], fds[n:]
    ports = adopted_ports(state, fds, adopt_device)
    rules = [Rule(source, target, bytes.fromhex(filter), directions) for source, target, filter, directions in state["rules"]]
    n_forwards = state["n_forwards"]
    forwards, mirrors = rules[:n_forwards], rules[n_forwards:]
    plan = Plan(config, state["generation"], region, memory, state["cpus"], ports, forwards, mirrors, bells, listeners)
    by_proto = {memory.netisr.number_of(handler.proto): handler for handler in handlers}
    for told in state["handlers"]:
        plan.handlers[told["proto"]] = by_proto.get(told["proto"]) or Handler(**told)
    for port in ports:
        opening.carry_whole(plan, port)
    return plan


def end_strays(rundir: RunDir) -> int:
    """Kill workers of a dead engine that nobody could adopt: two engines must not drive one interface. How many there were."""
    numbers = rundir.workers()
    if not numbers:
        return 0
    try:
        records = EngineMemory.records_of(rundir.memory, max(numbers))
    except Error:
        return 0
    strays = [PidFd.open(record["pid"], record["start"]) for record in records if record["pid"]]
    killed = [stray.kill() for stray in strays if stray]
    return len(killed)


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
