"""`pktring help`: the words of port names and of counters, read from where they are defined."""

from __future__ import annotations

import argparse
from importlib import import_module

from . import cli

EXAMPLES = """\
  pktring help ports       drivers, and the keys behind a port's `?`
  pktring help counters    what each counter counts
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("topic", nargs="?", choices=("ports", "counters", "verbs"), default="verbs", help="what to explain")


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Print one page."""
    print("\n".join({"ports": _ports, "counters": _counters, "verbs": _verbs}[args.topic]()))
    return 0


def _ports() -> list[str]:
    from pktring import ports

    lines = ["[driver:]name[?key=value&...]    an existing interface's name always means the interface", "", "drivers:"]
    lines += [f"  {name + ':':12} {driver.about}" for name, driver in ports.DRIVERS.items()]
    lines += ["", "keys of every driver:", *_keys(ports.COMMON)]
    for name in ports.DRIVERS:
        if keys := import_module(f"pktring.drivers.{name}").OPTIONS:
            lines += ["", f"keys of {name}:", *_keys(keys)]
    return lines


def _keys(keys: dict[str, str]) -> list[str]:
    return [f"  {key:12} {text}" for key, text in keys.items()]


def _counters() -> list[str]:
    from pktring.shm import _shm

    return [f"{name:16} {text}" for name, text in _shm.COUNTERS]


def _verbs() -> list[str]:
    from .main import VERBS

    return [f"pktring {verb:10} {line}" for verb, line in VERBS.items()]
