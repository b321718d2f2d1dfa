"""The values behind `pktring sysctl`: where each knob of a running engine is kept. What may be written is decided in sysctl.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import rps
from .sysctl import KNOBS, Value

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
TABLES = {"net.isr.proto": "protocol", "net.isr.workstream": "workstream", "net.isr.work": "work"}


class Knobs:
    """A Backend of sysctl.py. Values that only say how later things are opened are kept here; the others where they act."""

    def __init__(self, controller: Controller):
        self._c = controller
        self._kept: dict[str, Value] = {"net.pktqueue.rps_hash": rps.DEFAULT}

    def get(self, name: str) -> Any:
        """The value now."""
        netisr = self._c.plan.memory.netisr
        if name in NETISR:
            return self._c.plan.memory.settings()[NETISR[name]]
        if name in TABLES:
            return netisr.tables()[TABLES[name]]
        if name == "dev.pktring.workers":
            return netisr.active
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
        else:
            self._kept[name] = value

    def queues(self) -> Sequence[str]:
        """An engine's own queues are netisr's; pktqueues belong to the programs that make them."""
        return ()

    def _size(self, name: str) -> int:
        g = self._c.plan.region.geometry
        thing, _, what = name.removeprefix("dev.netmap.").split("_")
        return int(g[f"{thing}_num" if what == "num" else "buf_stride" if thing == "buf" else f"{thing}_size"])
