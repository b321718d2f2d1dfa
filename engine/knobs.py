"""The values behind `pktring sysctl`: where each knob of a running engine is kept. What may be written is decided in sysctl.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _engine, rps
from .sysctl import KNOBS, QUEUE, Value

if TYPE_CHECKING:
    from .controller import Controller

NETISR = {
    "net.isr.dispatch": "dispatch",
    "net.isr.maxthreads": "maxthreads",
    "net.isr.bindthreads": "bindthreads",
    "net.isr.maxqlimit": "maxqlimit",
    "net.isr.defaultqlimit": "defaultqlimit",
    "net.isr.numthreads": "numthreads",
}
RPS_HASH = "net.pktqueue.rps_hash"
TABLES = {"net.isr.proto": "protocol", "net.isr.workstream": "workstream", "net.isr.work": "work"}


class Knobs:
    """A Backend of sysctl.py. Values that only say how later things are opened are kept here; the others where they act."""

    def __init__(self, controller: Controller):
        self._c = controller
        self._kept: dict[str, Value] = {}

    def get(self, name: str) -> Any:
        """The value now."""
        netisr = self._c.plan.memory.netisr
        if name in NETISR:
            value = self._c.plan.memory.settings()[NETISR[name]]
            return int(value) if isinstance(value, bool) else value
        if name in TABLES:
            return netisr.tables()[TABLES[name]]
        if name == "dev.pktring.workers":
            return netisr.active
        if name == RPS_HASH:
            return rps.ROUTINES[netisr.rps]
        if name == "dev.netmap.generic_mit":
            return _engine.record_read(self._c.plan.memory.record(0))["gather_ns"]
        if name.startswith(QUEUE):
            return self._of_queue(*name.removeprefix(QUEUE).rpartition(".")[::2])
        if name.startswith("dev.netmap.") and "_curr_" in name:
            return self._size(name)
        return self._kept.get(name, KNOBS[name].default)

    def set(self, name: str, value: Value) -> None:
        """Write what sysctl.py let through."""
        netisr = self._c.plan.memory.netisr
        if name == "net.isr.dispatch":
            netisr.set_dispatch(str(value))
        elif name == "net.isr.defaultqlimit":
            netisr.set_defaultqlimit(int(value))
        elif name == "dev.pktring.workers":
            netisr.set_active(int(value))
        elif name == RPS_HASH:
            netisr.set_rps_hash(str(value))
        elif name == "dev.netmap.generic_mit":
            self._c.plan.memory.set_gather(int(value))
        elif name.startswith(QUEUE):
            netisr.setqlimit(name.removeprefix(QUEUE).rpartition(".")[0], int(value))
        else:
            self._kept[name] = value

    def queues(self) -> Sequence[str]:
        """The input queues of an engine are its protocols'; pktqueues of programs are their own."""
        return list(self._c.plan.memory.netisr.registered().values())

    def _of_queue(self, protocol: str, leaf: str) -> int:
        netisr = self._c.plan.memory.netisr
        if leaf == "maxlen":
            return netisr.getqlimit(protocol)
        number = netisr.number_of(protocol)
        key = {"len": "len", "drops": "qdrops"}[leaf]
        return sum(netisr.work(number, ws)[key] for ws in range(netisr.workstreams))

    def _size(self, name: str) -> int:
        g = self._c.plan.region.geometry
        thing, _, what = name.removeprefix("dev.netmap.").split("_")
        return int(g[f"{thing}_num" if what == "num" else "buf_stride" if thing == "buf" else f"{thing}_size"])
