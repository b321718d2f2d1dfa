"""`pktring sysctl`: the knobs of a running engine by the names, ranges and refusals of the BSDs; the engine knows them, we print."""

from __future__ import annotations

import argparse
from typing import Any

from pktring.shm.errors import Error

from . import cli, engines

EXAMPLES = """\
  pktring sysctl                           every knob and its value
  pktring sysctl net.isr                   those below a name
  pktring sysctl -n net.isr.dispatch       the value alone
  pktring sysctl net.isr.dispatch=hybrid   set one, as sysctl(8) does
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME[=VALUE]", help="a knob, all knobs below a name, or a new value; none: all of them")
    add("-a", action="store_true", help="all of them")
    add("-e", action="store_true", help="NAME=VALUE, so that it can be given back")
    add("-n", action="store_true", help="values without names")
    engines.flag(parser)
    cli.common(parser, duration=False)


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Read and write in the order given; the first refusal ends it."""
    wanted = [] if args.a else [read(word) for word in args.names]
    found = engines.pick(args.engine)
    values: dict[str, Any] = {}
    for name, value in wanted or [("", None)]:
        before = engines.call(found, "sysctl", name=name)["values"]
        after = before if value is None else engines.call(found, "sysctl", name=name, value=value)["values"]
        values |= after
        if not args.json:
            print("\n".join(lines(before, after, args)))
    if args.json:
        cli.result(values)
    return 0


def read(word: str) -> tuple[str, str | None]:
    """Take NAME[=VALUE] apart; what the value means is the engine's to say."""
    name, equals, text = (part.strip() for part in word.partition("="))
    if not name or (equals and not text):
        raise Error("E_USAGE", f"{word!r} is no NAME or NAME=VALUE: see `pktring sysctl`")
    return name, text if equals else None


def lines(before: dict[str, Any], after: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Write values as sysctl(8): `name: value`, or `name: old -> new` when they were set."""
    shown = {name: _shown(value) if after is before else f"{before.get(name)} -> {value}" for name, value in after.items()}
    return [value if args.n else f"{name}={value}" if args.e else f"{name}: {value}" for name, value in shown.items()]


def _shown(value: Any) -> str:
    return f"{cli.plural(len(value), 'row')}, drawn by `pktring stat -Q`" if isinstance(value, list) else str(value)
