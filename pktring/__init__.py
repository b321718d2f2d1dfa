"""pktring: a multiprocess shared-memory packet engine for Linux.

    with pktring.open("eth0") as port:
        for batch in port.batches(timeout=1.0):
            print(batch.lengths.sum())

The names are loaded when they are first used, so that `import pktring` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pktring.engine.batch import Batch
    from pktring.engine.compiled import compiled
    from pktring.engine.flow import flow_hash
    from pktring.engine.handlers import DONE, per_frame
    from pktring.engine.jenkins import jenkins_hash32
    from pktring.engine.netisr_rules import Handler
    from pktring.engine.port import Port
    from pktring.engine.rps import rps_hash
    from pktring.engine.toeplitz import toeplitz
    from pktring.engines import Engine
    from pktring.ports import open
    from pktring.shm.errors import Error
    from pktring.shm.pktqueue import PktQueue
    from pktring.shm.region import Region

_HOMES = {
    "DONE": "pktring.engine.handlers",
    "compiled": "pktring.engine.compiled",
    "per_frame": "pktring.engine.handlers",
    "Engine": "pktring.engines",
    "Handler": "pktring.engine.netisr_rules",
    "open": "pktring.ports",
    "Port": "pktring.engine.port",
    "Batch": "pktring.engine.batch",
    "Region": "pktring.shm.region",
    "PktQueue": "pktring.shm.pktqueue",
    "Error": "pktring.shm.errors",
    "toeplitz": "pktring.engine.toeplitz",
    "flow_hash": "pktring.engine.flow",
    "rps_hash": "pktring.engine.rps",
    "jenkins_hash32": "pktring.engine.jenkins",
}
__all__ = [
    "DONE",
    "Batch",
    "Engine",
    "Error",
    "Handler",
    "PktQueue",
    "Port",
    "Region",
    "compiled",
    "flow_hash",
    "get_include",
    "jenkins_hash32",
    "open",
    "per_frame",
    "rps_hash",
    "toeplitz",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pktring' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def get_include() -> str:
    """The folder of the C headers: apps (pktring.h), handlers (pktring_handler.h), the region's layout (layout.h, ring.h)."""
    import os

    import pktring.shm

    return os.path.dirname(pktring.shm.__file__ or "")
