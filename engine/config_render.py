"""A configuration as TOML: every key, its value, and beside it what it is for. Reading it gives the same configuration again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .config_keys import REQUIRED, TABLES, Key
from .config_types import Config, PortConfig

COLUMN = 40


def render(config: Config) -> str:
    """Write a configuration as TOML with comments."""
    return "\n".join(_lines(config)) + "\n"


def _lines(config: Config) -> Iterator[str]:
    yield from _table("[engine]", TABLES["engine"], config)
    for port in config.ports.values():
        yield from ("", f"[port.{_key(port.name)}]", *_port(port))
    if not config.ports:
        yield from _template("[port.NAME]", "port")
    for name, rules in (("forward", config.forwards), ("mirror", config.mirrors), ("protocol", config.protocols)):
        for rule in rules:
            yield from ("", *_table(f"[[{name}]]", TABLES[name], rule))
        if not rules:
            yield from _template(f"[[{name}]]", name)
    yield from ("", "[sysctl]" + " " * (COLUMN - 8) + "# names and values of `pktring sysctl`")
    yield from (f"{json.dumps(name)} = {_value(value)}" for name, value in config.sysctl.items())
    yield from ("", *_table("[metrics]", TABLES["metrics"], config.metrics))


def _template(head: str, table: str) -> Iterator[str]:
    """A table that is not there, for whoever wants one: comments."""
    yield from ("", f"# {head}")
    for key in TABLES[table]:
        said = "..." if key.default is REQUIRED else "" if key.default is None else _value(key.default)
        yield f"{f'# {key.name} = {said}':{COLUMN}}# {key.text}"


def _table(head: str, keys: tuple[Key, ...], values: Any) -> Iterator[str]:
    yield head
    for key in keys:
        yield _line(key, getattr(values, key.field or key.name))


def _port(port: PortConfig) -> Iterator[str]:
    said = {"interface" if port.interface else "port": port.base, "rings": port.rings, "take": port.take, "options": port.options}
    yield from (_line(key, said[key.name]) for key in TABLES["port"] if key.name in said)


def _line(key: Key, value: Any) -> str:
    """A key and its comment; one that has no value is a comment as a whole."""
    said = f"{key.name} = {_value(value)}" if value is not None else f"# {key.name} ="
    return f"{said:{COLUMN}}# {key.text}"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f" {key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return str(value)
