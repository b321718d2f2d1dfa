"""netisr(9): protocols are registered, frames are handled at once or queued for the worker that their source, flow or CPU names.

    netisr = Netisr.make(workstreams=2)                       the tables; an engine's controller has the only one that writes them
    netisr.register(Handler("ip", "ip", handler, policy="flow"))
    end = End(netisr, pool, region.view, producer=0, workstream=0)      a worker's hold; its loop in C drives it by its capsule
    end.dispatch_src(1, 0, end.make(frame, port, None)); end.serve()

Rules are in netisr_rules.py, tables to be read in netisr_tables.py, what happens to frames in netisr*.h.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import _engine
from .netisr_rules import DISPATCHES, MAXPROT, NO_CPU, POLICIES, PROTOCOLS, Handler, Refused, check, number, word
from .netisr_tables import HAS_WORKER, STRUCTS, Row, Tables, json, libxo, pack, text, unpack
from .rps import ROUTINES

__all__ = [
    "DISPATCHES", "INTERNAL", "MAXPROT", "NO_CPU", "NO_PORT", "POLICIES", "PROTOCOLS",
    "End", "Handler", "Netisr", "Refused", "json", "libxo", "pack", "text", "unpack",
]  # fmt: skip
INTERNAL: int = _engine.PR_NETISR_INTERNAL
NO_PORT: int = _engine.PR_NO_PORT
VNETS: int = _engine.PR_NETISR_VNETS
DEFAULT_VNET = 0
SUM_NAMES = (
    "len", "watermark", "dispatched", "hybrid_dispatched", "qdrops", "queued", "handled",
    "purged", "crashed", "over", "batches", "drained", "noproto", "nobufs", "wakes",
)  # fmt: skip
DID_NAMES = ("dispatched", "hybrid_dispatched", "noproto", "nobufs", "wakes")
PURGE_S = 1.0
RSS_KEYS = {"none": 0, "microsoft": 1, "symmetric": 2}  # what frames without a flow hash are hashed with, for policy FLOW


class Netisr(_engine.Netisr):
    """netisr's tables in `memory`; whoever writes them (the controller) is one process.

    `reserve(offset, size)` allocates the pages of a protocol's lanes in that memory, before they are made. `bells`: an eventfd a
    workstream. `pool` and `view` (of a region): with them the controller frees what was queued for a workstream without worker.
    `log` gets netisr's console lines.
    """

    def __init__(
        self,
        memory: Any,
        *,
        reserve: Callable[[int, int], object] | None = None,
        bells: Sequence[int] = (),
        pool: Any = None,
        view: Any = None,
        log: Callable[[str], object] | None = None,
    ):
        super().__init__(memory)
        self.memory = memory
        self.bells = list(bells) or [-1] * self.workstreams
        self._reserve, self._pool, self._view, self._log = reserve, pool, view, log
        self._ends: weakref.WeakValueDictionary[int, End] = weakref.WeakValueDictionary()

    @staticmethod
    def size(workstreams: int, *, maxqlimit: int = 10240, defaultqlimit: int = 256, first_lane: int = 1) -> int:
        """Bytes of a block; only pages that are used need be there. Raises ValueError."""
        return int(_engine.netisr_size(workstreams, maxqlimit, defaultqlimit, first_lane, False))

    @classmethod
    def make(
        cls,
        workstreams: int,
        memory: Any = None,
        *,
        maxqlimit: int = 10240,
        defaultqlimit: int = 256,
        first_lane: int = 1,
        bindthreads: bool = False,
        cpus: Sequence[int] = (),
        **given: Any,
    ) -> Netisr:
        """Make the tables in zeroed memory, or in new memory shared with children. `cpus`: the workstreams', 0 and up by default.

        `first_lane`: names in owner words, from there on, must be nobody else's: 17 * workstreams * (workstreams + 1) of them.
        """
        if memory is None:
            memory = mmap.mmap(-1, cls.size(workstreams, maxqlimit=maxqlimit, defaultqlimit=defaultqlimit, first_lane=first_lane))
        _engine.netisr_format(workstreams, maxqlimit, defaultqlimit, first_lane, bindthreads, memory)
        netisr = cls(memory, **given)
        for ws, cpu in enumerate(cpus):
            netisr.set_worker(ws, cpu, 0)
        return netisr

    @staticmethod
    def lanes_size(workstreams: int, *, maxqlimit: int = 10240, defaultqlimit: int = 256) -> int:
        """Bytes of a block's lanes, which come last, of all protocols together."""
        return int(_engine.netisr_lanes_size(workstreams, maxqlimit, defaultqlimit, 1, False))

    def connect(self, bells: Sequence[int], pool: Any, view: Any, log: Callable[[str], object] | None = None) -> None:
        """Give it what was not there yet when it was made."""
        self.bells, self._pool, self._view, self._log = list(bells), pool, view, log

    @staticmethod
    def lanes_range_of(geometry: tuple[int, int, int, int, int], proto: int) -> tuple[int, int]:
        """Where the lanes of a protocol will be in a block of netisr_size(*geometry): (offset, size). What lies before 0's is no lane."""
        offset, size = _engine.netisr_lanes_range(geometry, proto)
        return int(offset), int(size)

    # ---- protocols ----

    def register(self, handler: Handler) -> int:
        """netisr_register(9): the protocol's number. Every vnet that exists now lets it in; its counters begin at zero.

        Raises Refused, see netisr_rules.py; nothing has changed then. E_SHM_SPACE when `reserve` finds no room.
        """
        r = check(handler, self.registered(), self.defaultqlimit, self.maxqlimit)
        if r.message:
            self._say(r.message)
        self.open_lanes(r.proto)
        self.add(r.proto, r.name, r.policy, r.dispatch, r.qlimit, r.flags)
        return r.proto

    def open_lanes(self, proto: int) -> None:
        """Make the lanes of a protocol, also of INTERNAL, in memory that is reserved first. Once made they stay."""
        if self._reserve and not self.ready(proto):
            self._reserve(*self.lanes_range(proto))
        super().open_lanes(proto)

    def unregister(self, proto: Any, timeout_s: float = PURGE_S) -> list[int]:
        """netisr_unregister(9): no vnet lets it in any more, and what is queued anywhere is freed. Raises Refused (N-U1).

        Workers free what is queued for them, and are waited for. Returned are workstreams that did not answer in time: what they still
        hold will be freed, never handled, when they come to it.
        """
        n = self._used(proto)
        self.forbid(n)
        late = self.purge(timeout_s)
        self.remove(n)
        return late

    def registered(self) -> dict[int, str]:
        """Names by number."""
        found = {n: self.proto(n) for n in range(MAXPROT)}
        return {n: p[1] for n, p in found.items() if p[0]}

    def number_of(self, proto: Any) -> int:
        """The number that a number, a well-known name or the name of a registration means. Raises Refused."""
        if isinstance(proto, str) and proto not in PROTOCOLS:
            proto = next((n for n, name in self.registered().items() if name == proto), proto)
        return number(proto)

    def _used(self, proto: Any) -> int:
        n = self.number_of(proto)
        if not self.proto(n)[0]:
            raise Refused(errno.EINVAL, f"protocol {proto} is not registered")
        return n

    # ---- limits and drops ----

    def getqlimit(self, proto: Any) -> int:
        """The limit in force: capped, or the default (N-Q1)."""
        return int(self.proto(self._used(proto))[4])

    def setqlimit(self, proto: Any, qlimit: int) -> None:
        """Change how many frames may wait for each workstream. What waits stays, even above it (N-Q3). Raises Refused above the maximum.

        0 is taken at its word, unlike at registration: from then on every frame that would be queued is dropped (N-Q4).
        """
        n = self._used(proto)
        if isinstance(qlimit, bool) or not 0 <= qlimit <= self.maxqlimit:
            raise Refused(errno.EINVAL, f"a queue of {qlimit} frames: net.isr.maxqlimit is {self.maxqlimit}")
        self.set_qlimit(n, qlimit)

    def getqdrops(self, proto: Any) -> int:
        """Frames that full queues dropped, on all workstreams."""
        n = self._used(proto)
        return sum(self.work(n, ws)["qdrops"] for ws in range(self.workstreams))

    def clearqdrops(self, proto: Any) -> None:
        """They count from zero; nothing else does (N-Q6)."""
        self.clear_qdrops(self._used(proto))

    def depth(self, ws: int) -> int:
        """Frames that wait for a workstream, of all protocols."""
        return sum(self.work(n, ws)["len"] for n in self.registered())

    # ---- vnets and ports ----

    def make_vnet(self) -> int:
        """A new vnet, which no protocol is let into yet (N-R11). Raises Refused (ENOSPC)."""
        vnet = next((v for v in range(1, VNETS) if not self.vnets >> v & 1), None)
        if vnet is None:
            raise Refused(errno.ENOSPC, f"there are {VNETS} vnets already")
        self.set_vnet(vnet, True)
        return vnet

    def drop_vnet(self, vnet: int, timeout_s: float = PURGE_S) -> list[int]:
        """It is no more; what is queued of it is freed. Its ports should be gone before. Returns late workstreams as `unregister`."""
        self._vnet(vnet)
        if vnet == DEFAULT_VNET:
            raise Refused(errno.EINVAL, "the default vnet stays")
        self.set_vnet(vnet, False)
        return self.purge(timeout_s)

    def register_vnet(self, proto: Any, vnet: int) -> None:
        """netisr_register_vnet(9): let that vnet's frames in. Raises Refused."""
        n = self._used(proto)
        self.allow(n, self._vnet(vnet), True)

    def unregister_vnet(self, proto: Any, vnet: int, timeout_s: float = PURGE_S) -> list[int]:
        """Keep them out, and free those that are queued: exactly them (N-V2). Returns late workstreams as `unregister`."""
        n = self._used(proto)
        self.allow(n, self._vnet(vnet), False)
        return self.purge(timeout_s)

    def _vnet(self, vnet: int) -> int:
        if not 0 <= vnet < VNETS or not self.vnets >> vnet & 1:
            raise Refused(errno.EINVAL, f"there is no vnet {vnet}")
        return vnet

    def set_port(self, port: int, ifindex: int, vnet: int = DEFAULT_VNET) -> None:
        """A port begins a life: a new one, or the same with another interface or vnet. Frames of its last life are not handled any more."""
        super().set_port(port, ifindex, self._vnet(vnet))

    def drop_port(self, port: int) -> None:
        """It is gone, and so are the frames of it that are still queued (N-W10)."""
        super().set_port(port, 0, DEFAULT_VNET)

    def purge(self, timeout_s: float = PURGE_S) -> list[int]:
        """Have every workstream free what no vnet lets in any more. Returns those whose workers did not answer in time."""
        deadline = time.monotonic() + timeout_s
        tickets = {ws: self.ask_purge(ws, self.bells[ws]) for ws in range(self.workstreams)}
        return [ws for ws, ticket in tickets.items() if not self._purged(ws, ticket, deadline)]

    def _purged(self, ws: int, ticket: int, deadline: float) -> bool:
        nap = 0.0001
        while not self.purge_done(ws, ticket):
            pid = self.workstream(ws)[1]
            if end := self._ends.get(ws) if pid == os.getpid() else None:
                end.purge()
            elif not _lives(pid) and self._pool:
                End(self, self._pool, self._view, producer=ws, workstream=ws).stand_in()
            elif not _lives(pid) and not self.workstream(ws)[4]:
                return True  # nothing waits there
            elif time.monotonic() > deadline:
                return False
            else:
                time.sleep(nap)
                nap = min(2 * nap, 0.005)
        return True

    # ---- settings ----

    def set_dispatch(self, policy: str) -> None:
        """Set the policy of protocols that have none of their own: deferred, hybrid or direct. Raises Refused."""
        if policy not in DISPATCHES or policy == "default":
            raise Refused(errno.EINVAL, f"dispatch {policy!r} is none of deferred, hybrid, direct")
        self.dispatch = DISPATCHES[policy]

    def set_defaultqlimit(self, qlimit: int) -> None:
        """Set the limit of later registrations that name none."""
        if not 0 < qlimit <= self.maxqlimit:
            raise Refused(errno.EINVAL, f"a queue of {qlimit} frames: net.isr.maxqlimit is {self.maxqlimit}")
        self.defaultqlimit = qlimit

    def set_active(self, n: int) -> None:
        """Place frames on the first n workstreams from now on; flows move there one by one and are not reordered. Ours, not the BSD's."""
        if not 0 < n <= self.workstreams:
            raise Refused(errno.EINVAL, f"{n} workstreams: there are {self.workstreams}")
        self.active = n

    def set_rps_hash(self, name: str) -> None:
        """Set how frames are hashed that policy FLOW places and that have no hash: one of rps.ROUTINES. Flows may be reordered by it."""
        self.rps = ROUTINES.index(name)

    def settings(self) -> dict[str, Any]:
        """What netstat -Q calls the configuration."""
        return {
            "numthreads": sum(self.workstream(ws)[1] != 0 for ws in range(self.workstreams)),
            "maxthreads": self.workstreams,
            "defaultqlimit": self.defaultqlimit,
            "maxqlimit": self.maxqlimit,
            "dispatch": word(self.dispatch, DISPATCHES),
            "bindthreads": self.bindthreads,
        }

    # ---- monitoring ----

    def work(self, proto: int, ws: int) -> dict[str, int]:
        """The counters of a protocol on a workstream: SUM_NAMES. The BSD's are the first seven."""
        return dict(zip(SUM_NAMES, self.sums(proto, ws), strict=True))

    def done_by(self, proto: int, producer: int) -> dict[str, int]:
        """What a process did of a protocol by itself: DID_NAMES. The last producer is the controller, which no table lists (N-D7)."""
        return dict(zip(DID_NAMES, self.did(proto, producer), strict=True))

    def tables(self) -> Tables:
        """{"protocol": rows, "workstream": rows, "work": rows}: see netisr_tables.py. Registered protocols, ascending, on every
        workstream that has or had a worker (N-M4)."""
        sizes = {table: layout.size for table, (layout, _) in STRUCTS.items()}
        protocols: list[Row] = []
        for n in self.registered():
            _, name, policy, dispatch, qlimit, flags, _ = self.proto(n)
            row = {"name": name, "proto": n, "qlimit": qlimit, "policy": policy, "flags": flags, "dispatch": dispatch}
            protocols.append({"version": sizes["protocol"]} | row)
        streams: list[Row] = []
        for ws in range(self.workstreams):
            cpu, pid, births, *_ = self.workstream(ws)
            if births:
                streams.append({"version": sizes["workstream"], "flags": HAS_WORKER if pid else 0, "wsid": ws, "cpu": cpu})
        works: list[Row] = []
        for stream in streams:
            for p in protocols:
                row = {"version": sizes["work"], "wsid": stream["wsid"], "proto": p["proto"]}
                works.append(row | self.work(p["proto"], stream["wsid"]))
        return {"protocol": protocols, "workstream": streams, "work": works}

    def _say(self, line: str) -> None:
        (self._log or (lambda text: print(text, file=sys.stderr)))(line)


class End(_engine.NetisrEnd):
    """One process's hold on netisr: producer `producer`, and with `workstream` (the same number) that workstream's worker.

    From C come, on descriptors: `make read free`, `queue_src dispatch_src put`, `serve ready wait leave purge`, the callbacks `handle
    m2flow m2cpuid drained` (door_netisr_end.c says how they are called), `budget`, `moving`, `found`, `capsule`.
    A row or workstream has one holder. Whoever held it before is dead or has left; if it died, `Netisr.bury` comes first.
    """

    def __init__(
        self,
        netisr: Netisr,
        pool: Any,
        view: Any,
        *,
        producer: int,
        workstream: int | None = None,
        bells: Sequence[int] = (),
        rss_key: str = "microsoft",
    ):
        ws = -1 if workstream is None or workstream < 0 else workstream
        super().__init__(netisr, pool, view, producer, ws, list(bells) or netisr.bells, RSS_KEYS[rss_key])
        if ws >= 0:
            netisr._ends[ws] = self

    def adopt(self) -> dict[str, int]:
        """What the workstream's last holder left: frames that it had taken and not handled."""
        return {"netisr_crashed": self.found}

    def stand_in(self) -> None:
        """In place of a worker that is not there: free what no vnet lets in, and let go."""
        self.purge()
        self.leave()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid > 0
