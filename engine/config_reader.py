"""From a dict of TOML's values to a Config: each key by the table in config_keys.py, then what they are together by config_rules.py."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Set
from functools import cache
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from pktring.shm.errors import Error

from . import config_rules, sysctl
from . import filter as filters
from .config_keys import (
    ARRAYS,
    BUILT_IN,
    EVERY,
    MAX_PORTS,
    MAX_PROTO,
    MAX_RULES,
    NAMES,
    REQUIRED,
    TABLES,
    WITH_PORT,
    Bad,
    Key,
    port_name,
    shown,
)
from .config_keys import options as read_options
from .config_toml import ConfigError, Path, line_of, lines
from .config_types import Config, ForwardConfig, MetricsConfig, MirrorConfig, PortConfig, ProtocolConfig, cpus_of

MAX_PROBLEMS = 20
ENOUGH = 200  # problems: whatever this is, it is no configuration
MOST = {"port": MAX_PORTS, "forward": MAX_PORTS * MAX_RULES, "mirror": MAX_PORTS * MAX_RULES, "protocol": MAX_PROTO + 1}
MOST_KNOBS = 256
DISPATCH = "net.isr.dispatch"  # [engine] dispatch is the same
Check = Callable[[str], object]  # raises when the port, or the handler, of this name cannot be


class Reader:
    """Reads one configuration and collects what is wrong with it."""

    def __init__(
        self,
        given: Any,
        source: str,
        text: str | None,
        cpus: Set[int] | None,
        check_port: Check | None = None,
        check_handler: Check | None = None,
    ):
        self._given = given
        self._source, self._toml = source, text
        self._cpus = cpus_of(cpus)
        self._check_port, self._check_handler = check_port, check_handler
        self._problems: list[tuple[Path, str]] = []
        self._compiles = cache(filters.compile)

    def config(self) -> Config:
        if not isinstance(self._given, dict):
            raise ConfigError([f"{self._source}: {shown(self._given)} is not a table of tables: see `pktring up --print-config`"])
        self._known_tables()
        engine = self._keys(("engine",), "engine", self._table("engine"))
        ports = self._ports()
        protocols = tuple(self._protocol(path, said, ports) for path, said in self._array("protocol"))
        knobs = self._sysctl([p.name for p in protocols if p])
        if DISPATCH in knobs:
            engine["dispatch"] = knobs.pop(DISPATCH)
        config = Config(
            **engine,
            ports=ports,
            forwards=tuple(f for f in (self._forward(path, said, ports) for path, said in self._array("forward")) if f),
            mirrors=tuple(m for m in (self._mirror(path, said, ports) for path, said in self._array("mirror")) if m),
            protocols=tuple(p for p in protocols if p),
            sysctl=knobs,
            metrics=MetricsConfig(**self._keys(("metrics",), "metrics", self._table("metrics"))),
            path=self._source if self._toml is not None else "",
        )
        self._problems += config_rules.problems(config)
        warnings, lacking = config_rules.placement(config, self._cpus)
        self._problems += [(("engine", "workers"), why) for why in lacking]
        if self._problems:
            raise ConfigError(self._lines())
        return dataclasses.replace(config, warnings=(*config_rules.warnings(config), *warnings))

    # ---- what is wrong ----

    def _bad(self, path: Path, why: str) -> None:
        self._problems.append((path, why))
        if len(self._problems) > ENOUGH:
            raise ConfigError(self._lines())

    def _lines(self) -> list[str]:
        known = lines(self._toml) if self._toml is not None else None
        told = [(line_of(path, known) if known else 0, path, why) for path, why in self._problems]
        told.sort(key=lambda each: each[0])
        said = [f"{self._source}{f' line {line}' if line else ''}: {_place(path)}{why}" for line, path, why in told[:MAX_PROBLEMS]]
        return said + ([f"{self._source}: {len(told) - MAX_PROBLEMS} more"] if len(told) > MAX_PROBLEMS else [])

    # ---- tables and keys ----

    def _known_tables(self) -> None:
        for name in self._given:
            if name not in EVERY:
                self._bad((name,) if isinstance(name, str) else (), f"no such table: {_near(name, EVERY)}")

    def _table(self, name: str) -> dict[str, Any]:
        said = self._given.get(name, {})
        if isinstance(said, dict):
            return said
        if not any(path == (name,) for path, _ in self._problems):
            self._bad((name,), f"{shown(said)} is not a table: write [{name}{'.NAME' if name == 'port' else ''}]")
        return {}

    def _array(self, name: str) -> list[tuple[Path, dict[str, Any]]]:
        said = self._given.get(name, [])
        if not isinstance(said, list | tuple) or not all(isinstance(each, dict) for each in said):
            self._bad((name,), f"{shown(said)} is not an array of tables: write [[{name}]]")
            return []
        self._few(name, len(said))
        return [((name, i), each) for i, each in enumerate(said[: MOST[name]])]

    def _few(self, name: str, n: int) -> None:
        """More than can be are not looked at: it would take long."""
        if n > MOST[name]:
            self._bad((name,), f"{n} of them, {MOST[name]} are the most: use a second engine")

    def _keys(self, path: Path, table: str, said: dict[str, Any]) -> dict[str, Any]:
        """Read the keys of a table; one that is wrong has its default (REQUIRED: is None) afterwards, and is a problem."""
        keys = TABLES[table]
        for name in said:
            if name not in [key.name for key in keys]:
                hint = "; keys of drivers go into options = { ... }" if table == "port" else ""
                self._bad((*path, name) if isinstance(name, str) else path, f"no such key: {_near(name, [key.name for key in keys])}{hint}")
        return {key.field or key.name: self._value((*path, key.name), key, said) for key in keys}

    def _value(self, path: Path, key: Key, said: dict[str, Any]) -> Any:
        if key.name in said:
            try:
                return key.read(said[key.name])
            except Bad as why:
                self._bad(path, f"{why}: {key.text}")
        elif key.default is REQUIRED:
            self._bad(path, f"missing: {key.text}")
        return None if key.default is REQUIRED else key.default

    # ---- ports ----

    def _ports(self) -> dict[str, PortConfig]:
        ports: dict[str, PortConfig] = {}
        self._few("port", len(self._table("port")))
        for name, said in islice(self._table("port").items(), MAX_PORTS):
            try:
                port_name(name)
            except Bad as why:
                self._bad(("port", name) if isinstance(name, str) else ("port",), f"{why}: rename it")
                continue
            if not isinstance(said, dict):
                self._bad(("port", name), f"{shown(said)} is not a table: write [port.NAME], and the interface in it")
            else:
                ports[name] = self._port(name, said)
        return ports

    def _port(self, name: str, said: dict[str, Any]) -> PortConfig:
        path: Path = ("port", name)
        keys = self._keys(path, "port", said)
        base, _, query = keys["port"].partition("?")
        if bool(keys["interface"]) == bool(base.strip()):
            if not any(at[:2] == path for at, _ in self._problems):
                self._bad(path, "give one of interface and port: what is it to open?")
            return PortConfig(name, name)
        rings, take, options = keys["rings"], keys["take"], dict(keys["options"])
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key in options or (key == "queues" and "rings" in said) or (key == "take" and "take" in said):
                self._bad((*path, "port"), f"{key} is said twice: once is enough")
            elif key == "queues":
                rings = self._number_in(path, value)
            elif key == "take" and value in ("0", "1"):
                take = value == "1"
            elif key == "take":
                self._bad((*path, "port"), f"take={value}: 0 or 1")
            else:
                options |= self._option(path, key, value)
        port = PortConfig(name, keys["interface"] or base, bool(keys["interface"]), rings, take, options)
        self._ask(self._check_port, (*path, "interface" if port.interface else "port"), port.port)
        return port

    def _option(self, path: Path, key: str, value: str) -> dict[str, str]:
        try:
            return read_options({key: value})
        except Bad as why:
            self._bad((*path, "port"), str(why))
            return {}

    def _number_in(self, path: Path, value: str) -> int:
        if not re.fullmatch("[0-9]{1,2}", value, re.ASCII) or not 1 <= int(value) <= 64:
            self._bad((*path, "port"), f"queues={value[:20]}: a number from 1 to 64")
            return 1
        return int(value)

    def _ask(self, check: Check | None, path: Path, name: str) -> None:
        """Have somebody else judge a name; whatever is raised there is a problem here (a handler's module may raise anything)."""
        if not check:
            return
        try:
            check(name)
        except Error as why:
            self._bad(path, why.text)
        except Exception as why:
            self._bad(path, f"{name}: {type(why).__name__}: {why}"[:400])

    # ---- rules ----

    def _forward(self, path: Path, said: dict[str, Any], ports: dict[str, PortConfig]) -> ForwardConfig | None:
        keys = self._keys(path, "forward", said)
        self._filter(path, keys["filter"])
        known = [self._is_port(path, "from", keys["from_"], ports), self._is_port(path, "to", keys["to"], ports)]
        if not all(known):
            return None
        if keys["from_"] == keys["to"]:
            self._bad((*path, "to"), f"{keys['to']} would get back what it received: name another port")
        return ForwardConfig(**keys)

    def _mirror(self, path: Path, said: dict[str, Any], ports: dict[str, PortConfig]) -> MirrorConfig | None:
        keys = self._keys(path, "mirror", said)
        to = keys["to"]
        known = self._is_port(path, "from", keys["from_"], ports)
        if to is None or to in ports:
            if to is not None and to == keys["from_"]:
                self._bad((*path, "to"), f"{to} would get copies of its own frames: name another port")
        elif same := [port.name for port in ports.values() if port.base == to.partition("?")[0]]:
            self._bad((*path, "to"), f"{shown(to)} is [port.{same[0]}]: write to = {same[0]!r}")
        elif ":" not in to or to.startswith((":", "?")):
            self._bad((*path, "to"), f"no [port] {shown(to)}: {_near(to, ports)}, or give a port name such as pcap:FILE")
        else:
            self._ask(self._check_port, (*path, "to"), to)
        self._filter(path, keys["filter"])
        return MirrorConfig(**keys) if known and to is not None else None

    def _is_port(self, path: Path, key: str, name: str | None, ports: dict[str, PortConfig]) -> bool:
        if name is not None and name not in ports:
            self._bad((*path, key), f"no [port.{name}]: {_near(name, ports)}")
        return name in ports

    def _filter(self, path: Path, expression: str) -> None:
        try:
            self._compiles(expression)
        except Error as why:
            self._bad((*path, "filter"), why.text)

    def _protocol(self, path: Path, said: dict[str, Any], ports: dict[str, PortConfig]) -> ProtocolConfig | None:
        keys = self._keys(path, "protocol", said)
        if keys["policy"] == "cpu" and not said.get("m2cpuid"):
            self._bad((*path, "policy"), "policy cpu needs m2cpuid: name the function that chooses")
        for callback, policy in (("m2flow", "flow"), ("m2cpuid", "cpu")):
            if keys[callback] and keys["policy"] not in (policy, None):
                self._bad((*path, callback), f"{callback} is for policy {policy}, and this is {keys['policy']}: remove it")
        kind, _, target = (keys["handler"] or "").partition(":")
        if kind in WITH_PORT and target and target not in ports:
            self._bad((*path, "handler"), f"no [port.{target}]: {_near(target, ports)}")
        for callback in ("handler", "m2flow", "m2cpuid", "drainedcpu"):
            if keys[callback] and not (callback == "handler" and kind in BUILT_IN):
                self._ask(self._check_handler, (*path, callback), keys[callback])
        if keys["proto"] is None and keys["name"] is not None and "proto" not in said:
            keys["proto"] = NAMES.get(keys["name"])
            if keys["proto"] is None:
                self._bad((*path, "name"), f"{keys['name']} has no number of its own: give proto = 0 to {MAX_PROTO}")
        return None if None in keys.values() else ProtocolConfig(**keys)

    # ---- sysctl, CPUs ----

    def _sysctl(self, protocols: list[str]) -> dict[str, sysctl.Value]:
        knobs: dict[str, sysctl.Value] = {}
        leaves = _leaves(self._table("sysctl"))
        if len(leaves) > MOST_KNOBS:
            self._bad(("sysctl",), f"{len(leaves)} knobs, {MOST_KNOBS} are the most: see `pktring sysctl`")
        for path, value in leaves[:MOST_KNOBS]:
            name = ".".join(each for each in path if isinstance(each, str))
            try:
                if not all(isinstance(each, str) for each in path):
                    raise Bad("a name that is no text: see `pktring sysctl`")
                if name in knobs:
                    raise Bad(f"{name} is said twice: once is enough")
                knobs[name] = sysctl.boot_value(name, value, [*protocols, *NAMES])
                if name == DISPATCH and (said := self._table("engine").get("dispatch", value)) != value:
                    raise Bad(f"{name} is {value} here and {shown(said)} in [engine]: say it once")
            except (Bad, Error) as why:
                self._bad(("sysctl", *path), why.text if isinstance(why, Error) else str(why))
        return knobs


def _leaves(table: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Every value of a table and of those inside it: net.isr.dispatch may be written with quotes or without."""
    found: list[tuple[Path, Any]] = []
    left: list[tuple[Path, Any, int]] = [((), table, 0)]
    while left:
        path, value, depth = left.pop()
        if isinstance(value, dict) and depth < 8:
            left += [((*path, key), inner, depth + 1) for key, inner in reversed(value.items())]
        else:
            found.append((path, value))
    return found


def _near(name: object, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name[:64], known, 1, 0.5) if isinstance(name, str) else []
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(known[:20])}" if known else "there are none"


def _place(path: Path) -> str:
    """Name a place as the file has it: `[port.left] rings: `."""
    if not path or path[0] == "sysctl":
        return "[sysctl] " if path else ""
    head, inner = str(path[0]), [str(each) for each in path[1:]]
    if head in ARRAYS:
        head = f"[[{head}]]" + (f" {int(inner.pop(0)) + 1}" if inner else "")
    elif head == "port" and inner:
        head = f"[port.{inner.pop(0)}]"
    else:
        head = f"[{head}]"
    return " ".join([head, *inner])[:80] + ": "
