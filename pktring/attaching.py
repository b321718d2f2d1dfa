"""Opening what a running engine owns: the app gets rings of its own, fed by the engine's workers (engine/attach.py)."""

from __future__ import annotations

import os
import socket
from typing import Any

from pktring.engine import rundir
from pktring.engine.attach import AppPort, attach
from pktring.engine.control import Client
from pktring.engine.rundir import EngineSeen
from pktring.shm.errors import Error

ASK_S = 1.0
ATTACH_S = 10.0  # every worker is replaced by one that knows the app; a handler may have to be compiled for that
SLOTS = 256


def owner_of(name: str, engine: str | None) -> tuple[EngineSeen, str] | None:
    """The engine that owns this interface or port, and what it calls it; None = nobody. `engine`: ask only that one.

    Raises E_NO_ENGINE, E_NO_PORT where `engine` is given and is not there or has no such port.
    """
    base = name.partition("?")[0]
    candidates = [rundir.find(engine)] if engine else [seen for seen in rundir.engines() if seen.alive]
    for seen in candidates:
        for port in _ports(seen, asked=engine is not None):
            if base == port["name"] and engine or base.removeprefix("af_packet:") == port["interface"] and _same(port):
                return seen, port["name"]
    if engine:
        raise Error("E_NO_PORT", f"engine {engine} has no port {base!r}: see `pktring stat --engine {engine}`")
    return None


def _ports(seen: EngineSeen, *, asked: bool) -> list[dict[str, Any]]:
    try:
        with Client(seen.control, ASK_S) as client:
            return list(client.call("ports")[0]["ports"])
    except Error:
        if asked:
            raise
        return []  # it is starting, stopping, or not for us: then the interface is opened as any other


def _same(port: dict[str, Any]) -> bool:
    """Is the engine's interface the one that has this name here, and not in another network namespace?"""
    try:
        return socket.if_nametoindex(port["interface"]) == port["ifindex"]
    except OSError:
        return False


def open_attached(seen: EngineSeen, port: str, options: dict[str, str], filter: str) -> AppPort:
    """Attach to a port of an engine: copies of what matches `filter`, with take=1 the frames themselves. Raises E_DENIED, E_QUOTA, ..."""
    client = Client(seen.control, ATTACH_S)
    mode = "consume" if options.get("take") == "1" else "copy"
    try:
        reply, fds = client.call("attach", port=port, mode=mode, filter=filter, slots=int(options.get("slots", SLOTS)))
        try:
            return attach(reply, fds, client.close)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
    except BaseException:
        client.close()
        raise
