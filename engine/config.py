"""An engine's configuration: a TOML file, or a dict of the same shape, checked before anything is opened.

    config = load("edge.toml")          # a Config; everything that is wrong is said at once, with its line
    print(render(config))               # as TOML again, every key with its default and what it is for
    change = difference(config, load("edge.toml"))      # what a reload has to do

The keys and what they may be are one table in config_keys.py.
"""

from __future__ import annotations

import os
from collections.abc import Set
from typing import Any

from .config_change import Change, difference
from .config_reader import Check, Reader
from .config_render import render
from .config_toml import ConfigError, bytes_of, parsed, text_of
from .config_types import Config, ForwardConfig, MetricsConfig, MirrorConfig, PortConfig, ProtocolConfig

__all__ = [
    "Change",
    "Config",
    "ConfigError",
    "ForwardConfig",
    "MetricsConfig",
    "MirrorConfig",
    "PortConfig",
    "ProtocolConfig",
    "difference",
    "from_dict",
    "from_text",
    "load",
    "render",
]


def load(
    path: str | os.PathLike[str], *, cpus: Set[int] | None = None, check_port: Check | None = None, check_handler: Check | None = None
) -> Config:
    """Read a file. `cpus`: those that workers may use, by default this process's own.

    The checks are called with each full port name and each module:function, and refuse by raising. Raises E_CONFIG (a ConfigError: its
    `problems` are `FILE line N: ...` each), E_NO_FILE, E_PERM.
    """
    name = os.fspath(path)
    text = text_of(bytes_of(name), name)
    return Reader(parsed(text, name), name, text, cpus, check_port, check_handler).config()


def from_text(text: str, source: str = "config", *, cpus: Set[int] | None = None) -> Config:
    """Read TOML that is at hand."""
    text = text_of(text.encode(errors="surrogatepass"), source)
    return Reader(parsed(text, source), source, text, cpus).config()


def from_dict(
    given: dict[str, Any], *, cpus: Set[int] | None = None, check_port: Check | None = None, check_handler: Check | None = None
) -> Config:
    """Read a dict of the shape of the file, which has no lines to tell."""
    return Reader(given, "config", None, cpus, check_port, check_handler).config()
