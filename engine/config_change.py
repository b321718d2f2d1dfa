"""What has to be done to go over from one configuration to another while the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .config_keys import TABLES
from .config_toml import ConfigError
from .config_types import Config
from .sysctl import QUEUE, Knob, Value, find

LIVE = ("dispatch", "strict_affinity", "orphan_timeout_s", "yes")  # of [engine]; all else is built into memory and processes


@dataclass(frozen=True)
class Change:
    """False when there is nothing to do. Ports and protocols by name; a changed port is to be opened anew.

    `sysctl`: what to set; what is said no more goes back to its default. `engine`: the keys of [engine] that changed.
    """

    ports_added: tuple[str, ...] = ()
    ports_removed: tuple[str, ...] = ()
    ports_changed: tuple[str, ...] = ()
    protocols_added: tuple[str, ...] = ()
    protocols_removed: tuple[str, ...] = ()
    protocols_changed: tuple[str, ...] = ()
    forwards: bool = False
    mirrors: bool = False
    sysctl: tuple[tuple[str, Value], ...] = ()
    engine: tuple[str, ...] = ()
    metrics: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))


def difference(old: Config, new: Config) -> Change:
    """Find what a reload changes. Raises E_CONFIG, a line each, for what only a restart can."""
    engine = [key for key in TABLES["engine"] if getattr(old, key.field or key.name) != getattr(new, key.field or key.name)]
    before, after = _knobs(old), _knobs(new)
    knobs = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    frozen = [f"[engine] {key.name}" for key in engine if key.name not in LIVE]
    frozen += [f"[sysctl] {name}" for name in knobs if _knob(name).access == "boot"]
    if frozen:
        where = f"{new.path}: " if new.path else ""
        raise ConfigError(f"{where}{each}: cannot change while the engine runs: restart it" for each in frozen)
    ports, protocols = _names(old.ports, new.ports), _names(_named(old), _named(new))
    return Change(
        **{f"ports_{what}": names for what, names in ports.items()},
        **{f"protocols_{what}": names for what, names in protocols.items()},
        forwards=old.forwards != new.forwards,
        mirrors=old.mirrors != new.mirrors,
        sysctl=tuple((name, after.get(name, _default(name, new))) for name in knobs),
        engine=tuple(key.name for key in engine),
        metrics=old.metrics != new.metrics,
    )


def _knobs(config: Config) -> dict[str, Value]:
    return {**config.sysctl, "net.isr.dispatch": config.dispatch}


def _names(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, Any]:
    return {
        "added": tuple(name for name in new if name not in old),
        "removed": tuple(name for name in old if name not in new),
        "changed": tuple(name for name in new if name in old and old[name] != new[name]),
    }


def _named(config: Config) -> dict[str, object]:
    return {protocol.name: protocol for protocol in config.protocols}


def _knob(name: str) -> Knob:
    return find(name, [_queue(name)])


def _queue(name: str) -> str:
    return name.removeprefix(QUEUE).rpartition(".")[0]


def _default(name: str, config: Config) -> Value:
    """The value of a knob that a configuration does not mention: what the engine would start with."""
    settled = config.boot()
    if name in settled:
        return settled[name]
    said = [protocol.qlimit for protocol in config.protocols if protocol.name == _queue(name) and protocol.qlimit]
    own = settled["net.link.epair.netisr_maxqlen"] if _queue(name) == "epair" else settled["net.isr.defaultqlimit"]
    return min(int(said[0] if said else own), int(settled["net.isr.maxqlimit"]))
