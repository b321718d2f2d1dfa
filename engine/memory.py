"""The engine's own memory, which no app maps: `/pktring.engine-NAME.engine` (RunDir.memory).

    header page │ records, one a worker │ handlers' statistics, one table a worker │ apps' records │ netisr: tables, cells, lanes
                │ worker writes         │ worker writes                            │ see border_record.h │ see netisr_memory.h

The lanes are sparse: their pages are allocated when a protocol is registered, so that a full /dev/shm refuses a registration, and
never kills a worker.
"""

from __future__ import annotations

from typing import Any

from pktring.shm import _shm, segment
from pktring.shm.segment import Segment

from . import _engine
from .config import Config
from .handlers import STATS_SIZE, handler_stats
from .netisr import INTERNAL, Handler, Netisr

PART = "engine"


class EngineMemory:
    """Made by the first controller, joined by those that adopt."""

    def __init__(self, mapped: Segment, workers: int, boot: dict[str, Any]):
        self._segment = mapped
        self.workers = workers
        self._places = _places(workers)
        view = memoryview(mapped.map)
        self._view = view
        self.apps = view[self._places["apps"] : self._places["netisr"]]
        self.netisr = Netisr(view[self._places["netisr"] :], reserve=self._reserve)
        self._boot = boot

    @classmethod
    def create(cls, name: str, config: Config, cpus: list[int], generation: int) -> EngineMemory:
        """Make it, with nothing registered. Raises E_SHM_SPACE, E_NAME_BUSY."""
        boot = config.boot()
        limits = {"maxqlimit": int(boot["net.isr.maxqlimit"]), "defaultqlimit": int(boot["net.isr.defaultqlimit"])}
        at = _places(len(cpus))["netisr"]
        size = at + Netisr.size(len(cpus), **limits)
        made = segment.make_segment(name, PART, size, _shm.PR_ENGINE, reserve=at, generation=generation, kept=True)
        try:
            made.reserve_range(at, Netisr.size(len(cpus), **limits) - Netisr.lanes_size(len(cpus), **limits))
            Netisr.make(len(cpus), memoryview(made.map)[at:], bindthreads=bool(boot["net.isr.bindthreads"]), cpus=cpus, **limits)
            memory = cls(made, len(cpus), boot)
            memory.set_gather(_engine.PR_GATHER_NS)
            memory.netisr.open_lanes(INTERNAL)
            made.publish()
        except BaseException:
            made.retire()
            raise
        return memory

    @classmethod
    def join(cls, name: str, config: Config, workers: int) -> EngineMemory:
        """Take over what a dead controller left. Raises E_NO_REGION, E_ABI."""
        joined = segment.join_segment(name, PART)
        joined.take_over()
        return cls(joined, workers, config.boot())

    @classmethod
    def records_of(cls, name: str, workers: int) -> list[dict[str, Any]]:
        """The records of an engine that nobody runs any more. Raises E_NO_REGION, E_ABI."""
        joined = segment.join_segment(name, PART)
        view, size = memoryview(joined.map), _engine.RECORD_SIZE
        return [_engine.record_read(view[at : at + size]) for at in range(_shm.PAGE, _shm.PAGE + workers * size, size)]

    def discard(self) -> None:
        """The end of the engine."""
        self._segment.retire()

    # ---- a worker's ----

    def record(self, index: int) -> memoryview:
        """The record of a worker."""
        at = self._places["records"] + index * _engine.RECORD_SIZE
        return self._view[at : at + _engine.RECORD_SIZE]

    def handler_stats(self, index: int) -> memoryview:
        """Where a worker's handlers count."""
        at = self._places["handlers"] + index * STATS_SIZE
        return self._view[at : at + STATS_SIZE]

    def handler_report(self, handlers: dict[int, Handler]) -> list[dict[str, Any]]:
        """What each handler did, on each worker."""
        return [
            {"protocol": number, "name": handler.name, "worker": i + 1} | handler_stats(self.handler_stats(i), number)
            for number, handler in sorted(handlers.items())
            for i in range(self.workers)
        ]

    def set_gather(self, ns: int) -> None:
        """How long workers may let frames come together under steady driblets."""
        for i in range(self.workers):
            _engine.record_gather(self.record(i), ns)

    # ---- netisr ----

    def _reserve(self, offset: int, size: int) -> None:
        """Allocate the pages of a protocol's lanes. Raises E_SHM_SPACE."""
        self._segment.reserve_range(self._places["netisr"] + offset, size)

    def settings(self) -> dict[str, Any]:
        """netisr's settings, those of boot included."""
        return self.netisr.settings() | {"maxthreads": self._boot["net.isr.maxthreads"]}


def _places(workers: int) -> dict[str, int]:
    """Where each part begins."""
    records = _shm.PAGE
    handlers = _up(records + workers * _engine.RECORD_SIZE, 64)
    apps = _up(handlers + workers * STATS_SIZE, 64)
    return {"records": records, "handlers": handlers, "apps": apps, "netisr": _up(apps + _engine.APP_RECORDS_SIZE, _shm.PAGE)}


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


