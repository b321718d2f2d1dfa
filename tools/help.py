"""`pktring help`: the words of port names, counters and configurations, read from where they are defined; the service of systemd."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from . import cli

EXAMPLES = """\
  pktring help ports       drivers, and the keys behind a port's `?`
  pktring help counters    what each counter counts
  pktring help config      a configuration with every key and its default
  pktring help systemd     the unit of a service, for /etc/systemd/system/pktring@.service
"""
TOPICS = ("ports", "counters", "verbs", "config", "systemd")
UNIT = Path(__file__).parent / "systemd" / "pktring@.service"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("topic", nargs="?", choices=TOPICS, default="verbs", help="what to explain")


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Print one page."""
    pages = {"ports": _ports, "counters": _counters, "verbs": _verbs, "config": _config, "systemd": _systemd}
    print("\n".join(pages[args.topic]()))
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


def _config() -> list[str]:
    from pktring.engine import config

    return config.render(config.Config()).splitlines()


def _systemd() -> list[str]:
    """Print the unit with the path of the `pktring` that runs, and where its drop-ins are."""
    command = Path(sys.executable).parent / "pktring"
    found = str(command) if os.access(command, os.X_OK) else f"{sys.executable} -m pktring.tools.main"
    others = sorted(path.name for path in UNIT.parent.iterdir() if path != UNIT)
    unit = UNIT.read_text().replace("/usr/local/bin/pktring", found)
    return [f"# In {UNIT.parent}: {', '.join(others)}", *unit.splitlines()]
