"""What a configuration is, once it is read and checked: values, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass, field
from urllib.parse import quote

from . import sysctl as rules
from .sysctl import Value


@dataclass(frozen=True)
class PortConfig:
    """A port of the engine. `base`: its port name without options; `interface`: nothing but an interface; `take` None: the rules decide."""

    name: str
    base: str
    interface: bool = False
    rings: int = 1
    take: bool | None = None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Its port name, without what `rings` and `take` say."""
        return self._name(self.options)

    @property
    def port(self) -> str:
        """Its full port name, as pktring.open takes it."""
        queues = {"queues": str(self.rings)} if self.rings != 1 else {}
        return self._name(queues | ({} if self.take is None else {"take": str(int(self.take))}) | self.options)

    def _name(self, options: dict[str, str]) -> str:
        query = "&".join(f"{key}={quote(value, safe='/:,@^*{}')}" for key, value in options.items())
        return f"{self.base}?{query}" if query else self.base


@dataclass(frozen=True)
class ForwardConfig:
    """Frames from one port to another."""

    from_: str
    to: str
    both: bool = False
    filter: str = ""

    def ways(self) -> list[tuple[str, str]]:
        """(from, to) of each direction."""
        return [(self.from_, self.to), (self.to, self.from_)][: 1 + self.both]


@dataclass(frozen=True)
class MirrorConfig:
    """Copies of a port's frames. `to`: a [port], else a port name for the engine to open."""

    from_: str
    to: str
    direction: str = "inout"
    filter: str = ""


@dataclass(frozen=True)
class ProtocolConfig:
    """netisr_handler's fields. `handler`: module:function or a built-in; the callbacks module:function or ""."""

    name: str
    handler: str
    policy: str
    proto: int
    qlimit: int = 0
    dispatch: str = "default"
    m2flow: str = ""
    m2cpuid: str = ""
    drainedcpu: str = ""


@dataclass(frozen=True)
class MetricsConfig:
    """Where Prometheus asks; "" nowhere."""

    listen: str = ""


@dataclass(frozen=True)
class Config:
    """What an engine is to be. `warnings`: what it can do without. The fields of [engine] come first; config_keys.py explains them."""

    name: str = "default"
    workers: tuple[int, ...] | int | str = "auto"
    dispatch: str = "direct"
    strict_affinity: bool = False
    orphan_timeout_s: float = 30.0
    burst: int = 64
    slots: int = 1024
    buffers: int = 0
    stride: int = 2048
    group: str = "pktring"
    rss_key: str = "microsoft"
    guests: bool = False
    yes: bool = False
    ports: dict[str, PortConfig] = field(default_factory=dict)
    forwards: tuple[ForwardConfig, ...] = ()
    mirrors: tuple[MirrorConfig, ...] = ()
    protocols: tuple[ProtocolConfig, ...] = ()
    sysctl: dict[str, Value] = field(default_factory=dict)
    metrics: MetricsConfig = MetricsConfig()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    path: str = field(default="", compare=False)

    def boot(self, allowed: Set[int] | None = None) -> dict[str, Value]:
        """Every knob that is set when the engine starts, settled."""
        return self.settled(cpus_of(allowed))[0]

    def worker_cpus(self, allowed: Set[int] | None = None) -> tuple[int, ...]:
        """The CPU that each worker is to run on, in order; `allowed` are those that this process may use, by default asked for."""
        cpus = cpus_of(allowed)
        return self.wanted_cpus(cpus)[: int(self.settled(cpus)[0]["net.isr.maxthreads"])]

    @property
    def maxthreads(self) -> int:
        """net.isr.maxthreads, settled for this machine."""
        return int(self.boot()["net.isr.maxthreads"])

    @property
    def bindthreads(self) -> bool:
        """net.isr.bindthreads: whether each worker is bound to its CPU."""
        return bool(self.boot()["net.isr.bindthreads"])

    def wanted_cpus(self, cpus: list[int]) -> tuple[int, ...]:
        """The CPU of each worker as [engine] says; where there are fewer than workers, some get two."""
        if isinstance(self.workers, tuple):
            return self.workers
        return tuple(cpus[i % len(cpus)] for i in range(self.workers if isinstance(self.workers, int) else len(cpus)))

    def settled(self, cpus: list[int]) -> tuple[dict[str, Value], list[str]]:
        """The knobs that are set at boot, and what had to be forced. See sysctl.boot."""
        return rules.boot(self.sysctl | {"net.isr.dispatch": self.dispatch}, len(cpus), len(self.wanted_cpus(cpus)))


def cpus_of(allowed: Set[int] | None) -> list[int]:
    """The CPUs that workers may use, in order; None: those of this process."""
    return sorted(os.sched_getaffinity(0) if allowed is None else allowed)
