"""`pktring up CONFIG.toml`: run an engine in the foreground until a signal or `pktring down` ends it; or only look at its configuration.

The engine itself says on stderr what happens to it, "ready" first, and tells systemd (sd_notify). SIGHUP reads the configuration anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pktring.shm.errors import Error

from . import cli, down, metrics

if TYPE_CHECKING:
    import subprocess

    from pktring.engine.config import Config

EXAMPLES = """\
  pktring up edge.toml                  until Ctrl-C, SIGTERM or `pktring down`; SIGHUP reloads
  pktring up edge.toml --check          is the file right? Nothing is opened
  pktring up edge.toml --print-config   every key, with its value and what it is for
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("config", metavar="CONFIG.toml", help="the engine's configuration; [engine] name = its name")
    add("--check", action="store_true", help="only read it, and say all that is wrong with it")
    add("--print-config", action="store_true", help="only read it, and print it with every key that it leaves out")
    add("--yes", action="store_true", help="take a port even if this host is reached through it")
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Run it, or look at it."""
    if args.check:
        return _check(args)
    config = load(args.config)
    if args.print_config:
        return _print(args, config)
    return _run(args, config, stop)


def load(path: str, *, handlers: bool = False) -> Config:
    """Read a configuration, down to its port names and handlers, and open nothing. Raises E_CONFIG and what those are refused with."""
    from pktring.engine import config

    # Not by whom the engine is started: its workers import what is there when they are forked, after a reload too.
    return config.load(path, check_port=_check_port, check_handler=_handler_check(path) if handlers else None)


def _handler_check(path: str) -> Callable[[str], object]:
    """Import what a configuration names, from its own folder too, as the workers will."""
    from pktring.engine import handlers

    if (folder := os.path.dirname(os.path.abspath(path))) not in sys.path:
        sys.path.append(folder)
    return handlers.imported


def _check_port(name: str) -> None:
    """Refuse a driver that there is not. An interface may come later, or be another machine's."""
    from pktring import ports

    def find(base: str, _netns: str | None) -> None:
        if ":" in base:
            raise Error("E_NO_INTERFACE", f"{base}: no such interface: see `ip link`")

    ports.parse(name, find)


def _check(args: argparse.Namespace) -> int:
    """Every problem is a line on stdout, the first one also the error."""
    from pktring.engine.config import ConfigError

    try:
        config = load(args.config, handlers=True)
    except ConfigError as error:
        _tell_check(args, ok=False, problems=list(error.problems), warnings=[])
        raise
    _tell_check(args, ok=True, problems=[], warnings=list(config.warnings))
    return 0


def _tell_check(args: argparse.Namespace, **found: Any) -> None:
    if args.json:
        cli.result(found)
    else:
        print("\n".join([*found["problems"], *found["warnings"]] or [f"{args.config}: nothing is wrong"]), flush=True)


def _print(args: argparse.Namespace, config: Config) -> int:
    from pktring.engine.config import render

    text = render(config)
    if args.json:
        import tomllib

        cli.result(tomllib.loads(text))
    else:
        print(text.rstrip("\n"))
    return 0


def _run(args: argparse.Namespace, config: Config, stop: cli.Stop) -> int:
    """Be the engine's supervisor until its end, and say what it carried if its controller could tell."""
    import pktring

    engine = pktring.Engine(args.config)
    if args.yes:
        engine.config = replace(engine.config, yes=True)
    with _Life(args, config, stop) as life:
        status = engine.run(life.hear)
    if life.refused:
        raise life.refused
    if args.json:
        cli.result(life.carried or {"name": config.name})
    elif life.carried:
        print("\n".join(down.lines(life.carried)))
    return status


class _Life:
    """What the supervisor hears of its controllers, each of which says when it is ready; and the metrics, while it lives."""

    def __init__(self, args: argparse.Namespace, config: Config, stop: cli.Stop):
        self.refused: Error | None = None
        self.carried: dict[str, Any] | None = None
        self._args, self._listen, self._stop = args, config.metrics.listen, stop
        self._metrics: subprocess.Popen[str] | None = None
        self._ready = False

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a message. Called in the supervisor's loop."""
        if "error" in message:
            self.refused = Error(*message["error"])
        if "carried" in message:
            self.carried = down.carried(message["carried"])
        if "ready" in message and not self._ready:
            self._ready = True
            self._begin(message["ready"]["control"])

    def _begin(self, control: str) -> None:
        try:
            self._metrics = metrics.start(self._listen, control) if self._listen else None
        except Error as error:  # an engine whose metrics nobody can read is not what was asked for
            self.refused = error
        if self._stop or self.refused:  # the end was asked for before the supervisor listened
            _end()
        elif self._args.duration:
            signal.signal(signal.SIGALRM, lambda *_: _end())
            signal.setitimer(signal.ITIMER_REAL, self._args.duration)

    def __enter__(self) -> _Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self._metrics:
            self._metrics.terminate()
            self._metrics.wait()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
