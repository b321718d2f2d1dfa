"""What the controller answers on its control socket: one function a verb. Who may ask what is in `verbs`."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from . import config as configs
from . import opening
from .apps import AppTable
from .config import Config
from .control import Answer, Peer, Verb
from .filter import compile as compile_filter
from .knobs import Knobs
from .netisr import NO_PORT, Handler
from .sysctl import Sysctl

if TYPE_CHECKING:
    from .controller import Controller


class Answers:
    """The verbs, over the controller that they ask."""

    def __init__(self, controller: Controller):
        self._c = controller
        plan = controller.plan
        self.apps = AppTable(
            plan.memory.apps,
            plan.region,
            plan.region.pool_of(len(plan.cpus) + 1),
            living=controller.crew.living,
            kick=controller.crew.kick_all,
            group=controller.config.group,
        )
        for line in self.apps.adopt(controller.adopted_apps):
            controller.log(line)
        plan.apps[:] = self.apps.apps.values()
        self._peers: dict[int, int] = {}  # by connection: the app
        self._orphans = set(self.apps.apps)  # whose connection ended with an earlier controller
        self._on_the_way: list[int] = []  # descriptors that an app is about to get
        self._sysctl = Sysctl(Knobs(controller))

    def verbs(self) -> dict[str, Verb]:
        """Public: who may connect may read, and attach with memory of its own. The others change something."""
        return {
            "ping": Verb(lambda peer, body, fds: {}, public=True),
            "status": Verb(lambda peer, body, fds: self._c.status(), public=True),
            "ports": Verb(self.ports, public=True),
            "attach": Verb(self.attach, public=True),
            "down": Verb(self.down),
            "reload": Verb(lambda peer, body, fds: self._c.reload()),
            "sysctl": Verb(self.sysctl, public=True),
            "register": Verb(self.register),
            "unregister": Verb(self.unregister),
            "queue": Verb(self.offer),
            "dispatch": Verb(self.offer_dispatch),
            "qlimit": Verb(self.qlimit),
            "qdrops": Verb(self.qdrops),
            "vnet": Verb(self.vnet),
        }

    # ---- the engine ----

    def ports(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """What this engine owns."""
        facts = {port.name: port.device.facts() for port in self._c.plan.ports}
        return {"ports": [{"name": n, "interface": f.get("interface", ""), "ifindex": f.get("ifindex", 0)} for n, f in facts.items()]}

    def down(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Stop; the answer is what was carried."""
        self._c.stop()
        return self._c.status()

    def sysctl(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """{"name": ..., "value": ...}: read what begins with the name, or write it."""
        name = str(body.get("name", ""))
        if "value" not in body:
            return {"values": self._sysctl.read(name)}
        peer.require_trust("writing a sysctl")
        old, new = self._sysctl.set(name, body["value"])
        return {"values": {name: new}, "old": old}

    def reconfigure(self, config: Config, handlers: Sequence[Handler]) -> dict[str, Any]:
        """Go over to another configuration. Raises E_CONFIG where that needs a restart; nothing has changed then."""
        c = self._c
        change = configs.difference(c.config, config)
        if change.ports_added or change.ports_removed or change.ports_changed:
            names = ", ".join((*change.ports_added, *change.ports_removed, *change.ports_changed))
            raise Error("E_CONFIG", f"[port] {names}: ports cannot change while the engine runs: restart it")
        opened = {want.name: want for want in opening.wanted_ports(c.config)}
        if other := [want.name for want in opening.wanted_ports(config) if want != opened.get(want.name, want)]:
            raise Error("E_CONFIG", f"[port] {', '.join(other)}: whether they receive and take cannot change: restart the engine")
        if {m.to for m in config.mirrors} - {port.name for port in c.plan.ports}:
            raise Error("E_CONFIG", "[[mirror]]: a new target cannot be opened while the engine runs: restart it")
        wanted = {h.name: h for h in handlers}
        plan = c.plan.changed(config=config, handlers=dict(c.plan.handlers))
        stale = {*change.protocols_removed, *change.protocols_changed}  # not what was registered while the engine ran
        for number, h in plan.handlers.items():
            if h.name in stale and h.name in wanted and _registered_alike(h, wanted[h.name]):
                plan.handlers[number] = wanted[h.name]  # it runs something else: no frame is refused meanwhile
        gone = [number for number, h in plan.handlers.items() if h.name in stale and h is c.plan.handlers[number]]
        plan.forwards, plan.mirrors = opening.rules(config, c.plan.ports)
        for number in gone:
            del plan.handlers[number]
        added: list[int] = []
        try:
            for number in gone:
                c.plan.memory.netisr.unregister(number)
            for handler in wanted.values():
                if handler.name not in {h.name for h in plan.handlers.values()}:
                    number = c.plan.memory.netisr.register(handler)
                    added.append(number)
                    plan.handlers[number] = handler
            c.change(plan)
        except Error:
            for number in added:
                c.plan.memory.netisr.unregister(number)
            for number in gone:
                c.plan.memory.netisr.register(c.plan.handlers[number])
            raise
        c.config = config
        for name, value in change.sysctl:
            self._sysctl.set(name, value)
        return {"changed": bool(change)}

    # ---- netisr ----

    def register(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Every worker runs it when this returns, or nothing has changed."""
        c = self._c
        handler = Handler(**body["handler"])
        number = c.plan.memory.netisr.register(handler)
        plan = c.plan.changed(handlers={**c.plan.handlers, number: handler})
        try:
            c.change(plan)
        except Error:
            c.plan.memory.netisr.unregister(number)
            raise
        return {"proto": number}

    def unregister(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The workers forget it; what was queued is purged."""
        c = self._c
        number = self._proto(body)
        c.plan.memory.netisr.unregister(number)
        c.change(c.plan.changed(handlers={n: h for n, h in c.plan.handlers.items() if n != number}))
        return {}

    def offer(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """netisr_queue_src of a frame in base64."""
        end, frame = self._c.end, base64.b64decode(str(body["frame"]))
        return {"errno": end.queue_src(self._proto(body), int(body["source"]), end.make(frame, NO_PORT, None))}

    def offer_dispatch(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """netisr_dispatch_src; the controller runs no handlers, so that DIRECT queues here as well."""
        return self.offer(peer, body, fds)

    def qlimit(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Get it, or set it."""
        number = self._proto(body)
        if "qlimit" in body:
            self._c.plan.memory.netisr.setqlimit(number, int(body["qlimit"]))
        return {"qlimit": self._c.plan.memory.netisr.getqlimit(number)}

    def qdrops(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Get them, or clear them."""
        number = self._proto(body)
        found = self._c.plan.memory.netisr.getqdrops(number)
        if body.get("clear"):
            self._c.plan.memory.netisr.clearqdrops(number)
        return {"qdrops": found}

    def vnet(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Let a vnet's frames in, or keep them out."""
        netisr = self._c.plan.memory.netisr
        (netisr.register_vnet if body["on"] else netisr.unregister_vnet)(self._proto(body), int(body["vnet"]))
        return {}

    def _proto(self, body: dict[str, Any]) -> int:
        return int(self._c.plan.memory.netisr.number_of(body["proto"]))

    # ---- apps ----

    def attach(self, peer: Peer, body: dict[str, Any], fds: list[int]) -> Answer:
        """Give an app rings of its own on a port; every worker serves it when this returns."""
        c = self._c
        port = c.plan.port(str(body["port"]))
        if port is None:
            names = ", ".join(p.name for p in c.plan.ports)
            raise Error("E_NO_PORT", f"engine {c.config.name} has no port {body['port']!r}: it has {names}")
        peer.require_layout()
        mode, slots, text = str(body.get("mode", "copy")), int(body.get("slots", 256)), str(body.get("filter", ""))
        if mode != "copy" or not c.config.guests:
            peer.require_trust(f"attaching to {port.name} (mode {mode})")
        program = compile_filter(text) if text else b""
        app, theirs, reply = self.apps.attach(
            peer.uid, peer.gid, peer.pid, port, mode=mode, filter=program, slots=slots, workers=len(c.plan.cpus)
        )
        try:
            peer.attach(0 if app.memory is None else len(app.memory.mem))
            self._on_the_way = theirs
            c.change(c.plan.changed(apps=[*c.plan.apps, app]))
        except BaseException:
            self._let_go(app.id)
            for fd in theirs:
                os.close(fd)
            raise
        finally:
            self._on_the_way = []
        self._peers[peer.id] = app.id
        return Answer(reply, theirs, close=True)

    def release_in_child(self) -> None:
        """Let go of an app's own descriptors in a worker that is forked for it: else its death does not close them."""
        for fd in self._on_the_way:
            os.close(fd)

    def gone(self, peer: Peer) -> None:
        """An app's connection ended: the workers take their hands off, and its buffers come home."""
        if (app_id := self._peers.pop(peer.id, None)) is not None:
            self._let_go(app_id)

    def _let_go(self, app_id: int) -> None:
        c = self._c
        if line := self.apps.detach(app_id):
            c.log(line)
        c.renew(c.plan.changed(apps=[app for app in c.plan.apps if app.id != app_id]))

    def tick(self) -> None:
        """Several times a second: apps in quarantine are told of, and what waited for a worker is finished."""
        for line in self.apps.tick():
            self._c.log(line)
        for app_id in [i for i in self._orphans if i in self.apps.apps and self.apps.apps[i].hung_up()]:
            self._orphans.remove(app_id)
            self._let_go(app_id)


def _registered_alike(old: Handler, new: Handler) -> bool:
    """Is all of a registration the same that netisr's tables have of it?"""
    facts = ("name", "proto", "policy", "qlimit", "dispatch")
    calls = ("m2flow", "m2cpuid", "drainedcpu")
    return all(getattr(old, f) == getattr(new, f) for f in facts) and all(bool(getattr(old, c)) == bool(getattr(new, c)) for c in calls)
