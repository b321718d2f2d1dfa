"""What has to be done to go over from one configuration to another while the engine runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from . import sysctl
from .config_keys import TABLES
from .config_toml import ConfigError
from .config_types import Config

LIVE = ("dispatch", "strict_affinity", "orphan_timeout_s", "yes")  # of [engine]; all else is built into memory and processes


@dataclass(frozen=True)
class Change:
    """False when there is nothing to do. `sysctl`: the values to set, the BSD's default for what is said no more. The names are those of
    ports and protocols; a changed port is to be opened anew. `engine`: the keys of [engine] that changed.
    """

    ports_added: tuple[str, ...] = ()
    ports_removed: tuple[str, ...] = ()
    ports_changed: tuple[str, ...] = ()
    forwards: bool = False
    mirrors: bool = False
    protocols_added: tuple[str, ...] = ()
    protocols_removed: tuple[str, ...] = ()
    protocols_changed: tuple[str, ...] = ()
    sysctl: tuple[tuple[str, sysctl.Value], ...] = ()
    engine: tuple[str, ...] = ()
    metrics: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))


def difference(old: Config, new: Config) -> Change:
    """Find what a reload changes. Raises E_CONFIG, a line each, for what only a restart can."""
    changed = {key.name: key for key in TABLES["engine"] if getattr(old, key.field or key.name) != getattr(new, key.field or key.name)}
    knobs = [name for name in {**old.sysctl, **new.sysctl} if old.sysctl.get(name) != new.sysctl.get(name)]
    frozen = [f"[engine] {name}" for name in changed if name not in LIVE]
    frozen += [f"[sysctl] {name}" for name in knobs if _knob(name).access == "boot"]
    if frozen:
        where = f"{new.path}: " if new.path else ""
        raise ConfigError(f"{where}{each}: cannot change while the engine runs: restart it" for each in frozen)
    return Change(
        *_names(old.ports, new.ports),
        forwards=old.forwards != new.forwards,
        mirrors=old.mirrors != new.mirrors,
        **dict(zip(("protocols_added", "protocols_removed", "protocols_changed"), _names(_named(old), _named(new)), strict=True)),
        sysctl=tuple((name, new.sysctl.get(name, _default(name))) for name in knobs),
        engine=tuple(changed),
        metrics=old.metrics != new.metrics,
    )


def _names(old: dict[str, Any], new: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Names that were added, removed, changed."""
    added = tuple(name for name in new if name not in old)
    removed = tuple(name for name in old if name not in new)
    return added, removed, tuple(name for name in new if name in old and old[name] != new[name])


def _named(config: Config) -> dict[str, Any]:
    return {protocol.name: protocol for protocol in config.protocols}


def _knob(name: str) -> sysctl.Knob:
    return sysctl.find(name, [name.removeprefix(sysctl.QUEUE).rpartition(".")[0]])


def _default(name: str) -> sysctl.Value:
    default = _knob(name).default
    assert default is not None, name
    return default
