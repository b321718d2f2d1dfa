"""Attached apps, as the controller keeps them: who they are, where their rings lie, and how they come and go. The border itself,
and the states of a record, are border.h and border_record.h.

    attach ▸ record filled ▸ rings made, buffers lent ▸ LIVE ▸ (plan with the app: workers serve it)
    detach ▸ LEAVING ▸ every living worker has let go ▸ what was lent goes home by its words ▸ rings dropped ▸ NONE

Apps of the engine's user and of its group share the region's memory; for everybody else a sealed memory of their own is made.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from pktring.shm import memfd_region
from pktring.shm.errors import Error
from pktring.shm.pool import STATE_NAMES, Pool
from pktring.shm.region import PREFIX, RX, TX, Region

from . import _engine

COUNTERS = tuple(name for name, _ in _engine.APP_COUNTERS)
MODES = {"copy": _engine.PR_APP_COPY, "consume": _engine.PR_APP_CONSUME}
STATES = {
    _engine.PR_APP_NONE: "none",
    _engine.PR_APP_LIVE: "live",
    _engine.PR_APP_LEAVING: "leaving",
    _engine.PR_APP_QUARANTINED: "quarantined",
}
FIELDS = {_engine.PR_APP_HEAD: "head", _engine.PR_APP_CUR: "cur"}
FACTS = ("state", "generation", "id", "mode", "trusted", "port", "sides", "pid", "uid", "slots")
LET_GO_S = 0.02  # workers look at the record every turn, and their bells are rung


class Named(Protocol):
    """A port of the engine."""

    number: int
    name: str


class _ByWord:
    """Stands for the pool when the rings of an app are dropped: what lies in them is believed by its words, not by its slots."""

    def give(self, bufs: Iterable[int]) -> int:
        return 0


@dataclass
class PlannedApp:
    """One app in a plan: what each worker needs to serve its pair of rings."""

    place: int  # of its record
    id: int  # in owner words
    generation: int
    port: int
    port_name: str
    mode: str
    filter: bytes
    whole: bool
    trusted: bool
    why: str
    slots: int
    pid: int
    uid: int
    rings: list[tuple[int, int]]  # of each worker: numbers of the receive and the transmit ring, in its memory
    bells: list[int]  # of each worker: this end of the socket to the app
    records: memoryview = field(repr=False)
    memory: Region | None = field(default=None, repr=False)  # its own; None: the engine's region
    memory_fds: list[int] = field(default_factory=list, repr=False)
    told: int = 0  # faults that were logged

    def open(self, plan: Any, index: int, pool: Pool) -> Any:
        """Worker `index`'s hold on it, mended. None: it is not to be served, it left since the plan was made."""
        return self.hold(plan.region, index, pool)

    def hold(self, region: Region, index: int, pool: Pool) -> Any:
        """As `open`, without a plan."""
        view = (self.memory or region).view
        try:
            rx, tx = (view.ring(ring) for ring in self.rings[index])
            args = (self.place, index, region.view, rx, tx, self.bells[index], self.filter, self.generation, self.whole)
            app = _engine.App(self.records, *args)
        except (ValueError, IndexError):  # its rings are gone, or somebody else's
            return None
        return app if app.begin(pool) else None

    def close(self) -> None:
        """Let go of its descriptors."""
        for fd in (*self.bells, *self.memory_fds):
            os.close(fd)
        self.bells, self.memory_fds, self.memory = [], [], None

    def hung_up(self) -> bool:
        """Has it closed its ends of the bells? Tells of an app's death where there is no connection that does."""
        poll = select.poll()
        for fd in self.bells:
            poll.register(fd, 0)
        return any(what & select.POLLHUP for _, what in poll.poll(0))

    # ---- from controller to controller ----

    def hand_on(self) -> tuple[dict[str, Any], list[int]]:
        """What a new controller needs to keep this app, and the descriptors for it."""
        keep = ("place", "id", "generation", "port", "port_name", "mode", "whole", "trusted", "why", "slots", "pid", "uid", "rings")
        state = {name: getattr(self, name) for name in keep} | {"filter": self.filter.hex(), "n_bells": len(self.bells)}
        return state, [*self.bells, *self.memory_fds]

    @classmethod
    def adopt(cls, state: dict[str, Any], fds: list[int], records: memoryview) -> PlannedApp:
        """The app that another controller handed on. Raises E_REGION."""
        keep = {name: value for name, value in state.items() if name != "n_bells"}
        keep |= {"filter": bytes.fromhex(state["filter"]), "rings": [(int(rx), int(tx)) for rx, tx in state["rings"]]}
        n = state["n_bells"]
        memory = None if state["trusted"] else memfd_region.join(f"app{state['id']}", fds[n:])
        return cls(**keep, bells=fds[:n], records=records, memory=memory, memory_fds=fds[n:])


def trust(uid: int, gid: int, group: str = "pktring") -> tuple[bool, str]:
    """Whether a process of this user may share the engine's memory, and why."""
    if uid in (0, os.geteuid()):
        return True, "same user" if uid == os.geteuid() else "root"
    try:
        wanted = grp.getgrnam(group).gr_gid
    except KeyError:
        return False, f"there is no group {group}: its members would share the engine's memory"
    user = ""
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid).pw_name
    if wanted == gid or (user and wanted in os.getgrouplist(user, gid)):
        return True, f"member of group {group}"
    return False, f"uid {uid} is not in group {group}"


class AppTable:
    """The apps of one engine. `memory`: APP_RECORDS_SIZE bytes of the engine's; `pool`: the controller's own buffers in `region`.

    `living`: numbers (from 0) of the workers that run now, which must let go before memory is taken back; `kick` wakes them all.
    """

    def __init__(
        self,
        memory: memoryview,
        region: Region,
        pool: Pool,
        *,
        living: Callable[[], Iterable[int]],
        kick: Callable[[], object] = lambda: None,
        group: str = "pktring",
    ):
        self.apps: dict[int, PlannedApp] = {}  # by id
        self._memory = memory
        self._records = _engine.AppRecords(memory)
        self._region, self._pool = region, pool
        self._living, self._kick = living, kick
        self._group = group

    # ---- coming ----

    def attach(
        self,
        peer_uid: int,
        peer_gid: int,
        pid: int,
        port: Named,
        *,
        mode: str = "copy",
        filter: bytes = b"",
        slots: int = 256,
        workers: int = 1,
        whole: bool = False,
    ) -> tuple[PlannedApp, list[int], dict[str, Any]]:
        """Make what an app needs. -> (the app, for plans; descriptors to be sent to it, then closed; the reply that goes with them).

        `filter`: a program of `filter.compile`. Raises E_QUOTA, E_ATTACH, E_REGION_FULL, E_SHM_SPACE; nothing is left then.
        """
        if mode not in MODES:
            raise Error("E_ATTACH", f"mode {mode!r}: give {' or '.join(MODES)}")
        if not 2 <= slots <= self._region.slots or not 1 <= workers <= _engine.PR_APP_SIDES:
            raise Error("E_ATTACH", f"{slots} slots for {workers} workers: rings here have 2 to {self._region.slots} slots")
        place = next((i for i in range(_engine.PR_MAX_APPS) if i + 1 not in self.apps), None)
        if place is None:
            raise Error("E_QUOTA", f"{_engine.PR_MAX_APPS} apps are attached, the most there can be: detach one")
        trusted, why = trust(peer_uid, peer_gid, self._group)
        generation = self._records.fill(
            place, place + 1, MODES[mode], trusted, port.number, workers, pid & 0xFFFFFFFF, peer_uid & 0xFFFFFFFF, slots
        )
        who = (port.number, port.name, mode, filter, whole, trusted, why, slots, pid, peer_uid)
        app = PlannedApp(place, place + 1, generation, *who, [], [], self._memory)
        theirs: list[int] = []
        try:
            theirs.append(self._share(app, workers) if trusted else self._seal(app, workers))
            for _ in range(workers):
                here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                app.bells.append(here.detach())
                theirs.append(there.detach())
        except BaseException:
            for fd in theirs:
                os.close(fd)
            self._take_apart(app)
            raise
        self.apps[app.id] = app
        self._records.set_state(place, _engine.PR_APP_LIVE)
        return app, theirs, self._reply(app)

    def _share(self, app: PlannedApp, workers: int) -> int:
        for _ in range(workers):
            pair = [self._lent_ring(app, direction) for direction in (RX, TX)]
            app.rings.append((pair[0], pair[1]))
        return os.open(f"/dev/shm/{PREFIX}{self._region.name}.mem", os.O_RDWR | os.O_CLOEXEC)

    def _lent_ring(self, app: PlannedApp, direction: int) -> int:
        index, ring = self._region.make_ring(direction, app.slots, _label(app, direction), len(app.rings), self._pool)
        app.rings.append((index, index))  # until the pair is complete: _take_apart must know it
        for i in range(app.slots):
            self._pool.lend(ring.slot(i)[0], app.id)
        app.rings.pop()
        return index

    def _seal(self, app: PlannedApp, workers: int) -> int:
        stride = self._region.geometry["buf_stride"]  # the same: a slot here is a buffer there
        app.memory, app.memory_fds = memfd_region.create(f"app{app.id}", rings=2 * workers, slots=app.slots, stride=stride)
        for _ in range(workers):
            rx, tx = (app.memory.make_ring(d, app.slots, _label(app, d), len(app.rings))[0] for d in (RX, TX))
            app.rings.append((rx, tx))
        return os.dup(app.memory_fds[0])

    def _reply(self, app: PlannedApp) -> dict[str, Any]:
        return {
            "app": app.id,
            "port": app.port_name,
            "number": app.port,
            "mode": app.mode,
            "memory": "shared" if app.trusted else "sealed",
            "why": app.why,
            "slots": app.slots,
            "rx": [rx for rx, _ in app.rings],
            "tx": [tx for _, tx in app.rings],
        }

    # ---- going ----

    def detach(self, app_id: int, wait_s: float = LET_GO_S) -> str:
        """Take an app apart whose process is gone or has closed the port. The line for the log; "" = a worker has yet to let go: `tick`."""
        app = self.apps[app_id]
        self._records.set_state(app.place, _engine.PR_APP_LEAVING)
        self._kick()
        deadline = time.monotonic() + wait_s
        while not (line := self._finish(app)) and time.monotonic() < deadline:
            time.sleep(0.0002)
        return line

    def _finish(self, app: PlannedApp) -> str:
        if not all(self._records.seen(app.place, worker) for worker in self._living() if worker < len(app.rings)):
            return ""
        lent = 2 * app.slots * len(app.rings) if app.trusted else 0
        returned = self._take_apart(app)
        del self.apps[app.id]
        return f"W_APP_GONE app={app.id} pid={app.pid} port={app.port_name} lent={lent} returned={returned}"

    def _take_apart(self, app: PlannedApp) -> int:
        """Buffers by their words, then the rings, then the descriptors."""
        returned = self._pool.reclaim_app(app.id) if app.trusted else 0
        for ring in dict.fromkeys(ring for pair in app.rings for ring in pair) if app.trusted else ():
            self._region.drop_ring(ring, cast(Pool, _ByWord()))
        app.rings = []
        app.close()
        self._records.set_state(app.place, _engine.PR_APP_NONE)
        return returned

    def tick(self) -> list[str]:
        """What is to be logged since the last call: apps in quarantine, and those that could be taken apart at last."""
        lines = []
        for app in list(self.apps.values()):
            facts, _, faults = self._read(app)
            lines += [_fault_line(app, *fault) for fault in faults[app.told :]]
            app.told = len(faults)
            if facts["state"] == _engine.PR_APP_LEAVING and (line := self._finish(app)):
                lines.append(line)
        return lines

    # ---- facts ----

    def _read(self, app: PlannedApp) -> tuple[dict[str, int], dict[str, int], list[tuple[int, int, int, int, int]]]:
        *facts, counters, faults = self._records.read(app.place)
        return dict(zip(FACTS, facts, strict=True)), dict(zip(COUNTERS, counters, strict=True)), faults

    def describe(self) -> list[dict[str, Any]]:
        """The apps as status shows them."""
        return [self._describe(app) for app in self.apps.values()]

    def _describe(self, app: PlannedApp) -> dict[str, Any]:
        facts, counters, _ = self._read(app)
        return {
            "id": app.id,
            "pid": app.pid,
            "uid": app.uid,
            "port": app.port_name,
            "mode": app.mode,
            "state": STATES.get(facts["state"], "?"),
            "memory": "shared" if app.trusted else "sealed",
            "why": app.why,
            "lent": 2 * app.slots * len(app.rings) if app.trusted else 0,
            "counters": counters,
        }

    # ---- a new controller ----

    def adopt(self, states: Sequence[tuple[dict[str, Any], list[int]]]) -> list[str]:
        """Take over what the workers handed on, and clear away what a dead controller had only begun. Lines for the log."""
        lines = []
        for state, fds in states:
            app = PlannedApp.adopt(state, fds, self._memory)
            facts, _, _ = self._read(app)
            if facts["generation"] == app.generation and facts["state"] != _engine.PR_APP_NONE:
                self.apps[app.id] = app
            else:
                app.rings = []
                app.close()
        for place in range(_engine.PR_MAX_APPS):
            if place + 1 not in self.apps and (returned := self._pool.reclaim_app(place + 1)):
                self._records.set_state(place, _engine.PR_APP_NONE)
                lines.append(f"I_STALE_STATE app={place + 1} was being attached: returned={returned}")
        return lines


def _label(app: PlannedApp, direction: int) -> str:
    return f"app{app.id} {'rx' if direction == RX else 'tx'}{len(app.rings)}"


def _fault_line(app: PlannedApp, worker: int, field: int, direction: int, value: int, limit: int) -> str:
    ring = f"{'rx' if direction == RX else 'tx'}{worker}"
    who = f"app={app.id} pid={app.pid} ring={ring}"
    if field in FIELDS:
        return f"E_RING_PROTO {who} field={FIELDS[field]} val={value} limit={limit}: it is in quarantine until it is opened again"
    return f"E_BUF_OWNER {who} idx={value} owner={_owner(limit)}: it is in quarantine until it is opened again"


def _owner(word: int) -> str:
    state, owner = word >> 56, word >> 40 & 0xFFFF
    if not word:
        return "none"
    name = STATE_NAMES[state] if state < len(STATE_NAMES) else "broken"
    return {"lent": f"app:{owner}", "owned": f"worker:{owner}", "free": f"free:{owner}"}.get(name, f"{name}:{owner}")
