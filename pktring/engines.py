"""An engine: a controller, and pinned workers that forward, classify and hand frames to protocols (engine/README.md has the picture).

    with pktring.Engine("edge.toml") as engine:          # or a dict of the same shape
        engine.status()["ports"]["left"]["counters"]
"""

from __future__ import annotations

import base64
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pktring.engine import config as configs
from pktring.engine import rundir
from pktring.engine.config import Config
from pktring.engine.control import Client
from pktring.engine.controller import Controller
from pktring.engine.handlers import importable_name
from pktring.engine.netisr import Handler
from pktring.engine.plan import described
from pktring.engine.supervisor import Supervisor
from pktring.shm.errors import Error

CALLABLES = ("handler", "m2flow", "m2cpuid", "drainedcpu")
DRIVERS = ["pktring.ports", *(f"pktring.drivers.{name}" for name in ("af_packet", "link", "null", "pcap", "taking", "tap"))]
START_S = 60.0
STOP_S = 10.0


class Engine:
    """An engine of this program: `start()` and `stop()`, or a `with`. It ends with this process, whatever happens to that.

    `config` is the name of a TOML file, or a dict of the same shape (`pktring up --print-config` shows it). Raises E_CONFIG.
    """

    def __init__(self, config: str | Mapping[str, Any]):
        self._file = config if isinstance(config, str) else None
        self.config: Config = configs.load(config) if isinstance(config, str) else configs.from_dict(dict(config))
        self.netisr = Netisr(self)
        self._handlers: list[Handler] = []
        self._pid = 0
        self._owner = -1

    # ---- life ----

    def start(self) -> Engine:
        """Start it; returns when frames flow. Raises what could not be had: E_NAME_BUSY, E_PERM, E_NO_INTERFACE, E_HANDLER, ..."""
        said_r, said_w = os.pipe2(os.O_CLOEXEC)
        owner_r, self._owner = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                os.close(said_r)
                os.close(self._owner)
                os.setsid()  # Ctrl-C is this program's to handle, and it ends us by `stop`
                status = self.run(lambda message: _write(said_w, message), owner=owner_r)
            finally:
                os._exit(status)
        os.close(said_w)
        os.close(owner_r)
        try:
            self._expect_ready(said_r)
        except BaseException:
            self._bury()
            raise
        finally:
            os.close(said_r)
        return self

    def run(self, tell: Callable[[dict[str, Any]], None], owner: int = -1) -> int:
        """Run it in this process, until it is told to stop. `tell` hears {"ready": ...} or {"error": [code, text]}. The exit status."""
        if self._file and (folder := os.path.dirname(os.path.abspath(self._file))) not in sys.path:
            sys.path.append(folder)  # where its handlers may lie
        for module in DRIVERS:  # a controller that takes a dead one's place has no time for imports
            import_module(module)
        return Supervisor(self.config.name, self._control, tell, owner).run()

    def stop(self) -> None:
        """Stop it: frames in hand are sent on, the interfaces given back."""
        if self._pid:
            try:
                self.call("down")
            except Error:
                pass
            self._bury()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _control(self, adopt: bool, tell: Callable[[dict[str, Any]], None]) -> int:
        from pktring.ports import adopt_device, open_device

        reload = self._reload if self._file else None
        return Controller(self.config, open_device, adopt_device, self._all_handlers(), reload).run(adopt, tell)

    def _all_handlers(self) -> list[Handler]:
        return [handler_of(p) for p in self.config.protocols] + self._handlers

    def _reload(self) -> tuple[Config, list[Handler]]:
        assert self._file
        config = configs.load(self._file)
        return config, [handler_of(p) for p in config.protocols] + self._handlers

    def _expect_ready(self, said: int) -> None:
        deadline = time.monotonic() + START_S
        text = b""
        while not text.endswith(b"\n"):
            if not select.select([said], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Error("E_START", f"engine {self.config.name} was not ready within {START_S:g} s: see its messages on stderr")
            more = os.read(said, 65536)
            if not more:
                raise Error("E_START", f"engine {self.config.name} ended while it started: see its messages on stderr")
            text += more
        for line in text.splitlines():
            if "error" in (message := json.loads(line)):
                raise Error(*message["error"])

    def _bury(self) -> None:
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1
        deadline = time.monotonic() + STOP_S
        while self._pid and time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
                return
            time.sleep(0.002)
        if self._pid:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
            self._pid = 0

    # ---- questions ----

    def call(self, verb: str, /, **body: Any) -> dict[str, Any]:
        """Ask the running engine. Raises E_NO_CONTROLLER, and what it refuses with."""
        return call(self.config.name, verb, **body)

    def status(self) -> dict[str, Any]:
        """Counters of ports, rings, workers, protocols, apps; what `pktring stat --json` prints."""
        return self.call("status")

    def sysctl(self, name: str, value: Any = None) -> Any:
        """Read a knob, or write it. Raises E_SYSCTL."""
        answer = self.call("sysctl", name=name) if value is None else self.call("sysctl", name=name, value=value)
        return answer["values"][name]


class Netisr:
    """netisr(9) of an engine. Before `start()` handlers may be any callable; afterwards `module:qualname`, a built-in or a .so function."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def register(self, handler: Handler) -> None:
        """Register a protocol: every worker acknowledges it, or nothing has changed. Raises E_NETISR, E_HANDLER."""
        if self._engine._pid:
            for which in CALLABLES:
                if callable(function := getattr(handler, which)):
                    importable_name(function)  # raises E_HANDLER for what running workers cannot import
            self._engine.call("register", handler=described(handler))
        else:
            self._engine._handlers.append(handler)

    def unregister(self, handler: Handler | str | int) -> None:
        """Unregister it; what was queued is purged."""
        self._engine.call("unregister", proto=_proto(handler))

    def queue_src(self, proto: Handler | str | int, source: int, frame: bytes) -> int:
        """Queue a frame; 0, or -errno: ENOBUFS full, ENOPROTOOPT no such protocol here."""
        return self._offer("queue", proto, source, frame)

    def dispatch_src(self, proto: Handler | str | int, source: int, frame: bytes) -> int:
        """Dispatch a frame by the protocol's policy; this program has no workstream, so that HYBRID and DIRECT queue, too."""
        return self._offer("dispatch", proto, source, frame)

    def queue(self, proto: Handler | str | int, frame: bytes) -> int:
        """`queue_src` with source 0."""
        return self.queue_src(proto, 0, frame)

    def dispatch(self, proto: Handler | str | int, frame: bytes) -> int:
        """`dispatch_src` with source 0."""
        return self.dispatch_src(proto, 0, frame)

    def _offer(self, verb: str, proto: Handler | str | int, source: int, frame: bytes) -> int:
        text = base64.b64encode(frame).decode()
        return int(self._engine.call(verb, proto=_proto(proto), source=source, frame=text)["errno"])

    def getqlimit(self, proto: Handler | str | int) -> int:
        """Frames that each workstream queues at most."""
        return int(self._engine.call("qlimit", proto=_proto(proto))["qlimit"])

    def setqlimit(self, proto: Handler | str | int, qlimit: int) -> None:
        """Change it. Raises E_NETISR (EINVAL) above net.isr.maxqlimit."""
        self._engine.call("qlimit", proto=_proto(proto), qlimit=qlimit)

    def getqdrops(self, proto: Handler | str | int) -> int:
        """Frames that found the queue full, over all workstreams."""
        return int(self._engine.call("qdrops", proto=_proto(proto))["qdrops"])

    def clearqdrops(self, proto: Handler | str | int) -> None:
        """Begin counting them anew."""
        self._engine.call("qdrops", proto=_proto(proto), clear=True)

    def register_vnet(self, proto: Handler | str | int, vnet: int) -> None:
        """Let a vnet's frames in."""
        self._engine.call("vnet", proto=_proto(proto), vnet=vnet, on=True)

    def unregister_vnet(self, proto: Handler | str | int, vnet: int) -> None:
        """Keep them out, and purge those that are queued."""
        self._engine.call("vnet", proto=_proto(proto), vnet=vnet, on=False)


def call(name: str, verb: str, /, timeout_s: float = 5.0, **body: Any) -> dict[str, Any]:
    """Ask the engine of that name. Raises E_NO_ENGINE, E_NO_CONTROLLER, and what it refuses with."""
    with Client(rundir.find(name).control, timeout_s) as client:
        answer, fds = client.call(verb, **body)
    for fd in fds:
        os.close(fd)
    return answer


def handler_of(protocol: configs.ProtocolConfig) -> Handler:
    """A [[protocol]] of a configuration as what is registered."""
    return Handler(
        name=protocol.name,
        proto=protocol.name if protocol.proto is None else protocol.proto,
        handler=protocol.handler,
        policy=protocol.policy,
        m2flow=protocol.m2flow or None,
        m2cpuid=protocol.m2cpuid or None,
        drainedcpu=protocol.drainedcpu or None,
        qlimit=protocol.qlimit,
        dispatch=protocol.dispatch,
    )


def _proto(of: Handler | str | int) -> str | int:
    return of.proto if isinstance(of, Handler) else of


def _write(fd: int, message: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:  # only the first is waited for
        if error := message.get("error"):
            print(f"pktring: {error[0]} {error[1]}", file=sys.stderr, flush=True)


