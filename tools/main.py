"""The `pktring` command: `pktring VERB ...`. A verb is a module of this folder, imported only when it is used.

Each has `EXAMPLES` (what its help begins with), `arguments(parser)`, which declares its flags, and `run(args, stop) -> int`, which does it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from pktring.shm.errors import Error

from . import cli

VERBS = {
    "doctor": "what this machine and this user can do, and how to mend the rest",
    "capture": "capture to pcapng, or print a line per frame; tcpdump's letters",
    "bridge": "join two ports: frames are forwarded both ways, byte for byte",
    "up": "run an engine from a configuration, in the foreground",
    "down": "stop an engine, and say what it carried",
    "ps": "the engines of this machine, their workers and apps",
    "stat": "counters of an engine by port, worker and drop reason; -Q as netstat -Q",
    "top": "an engine live: rates, drops, queues, CPU of each worker",
    "sysctl": "read and write an engine's knobs, by the BSDs' names",
    "bench": "our figures beside those of the programs people use now, in one run",
    "demo": "two hosts joined by an engine: a TCP transfer, netisr, a capture, an attached process",
    "help": "what port names, their keys, and the counters mean",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    with cli.Stop() as stop:
        return cli.guarded(lambda: _do(words, stop))


def _do(words: list[str], stop: cli.Stop) -> int:
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(_usage())
        return 0
    if first == "--version":
        return _version()
    if first not in VERBS:
        what = f"no verb {first!r}" if first else "no verb given"
        raise Error("E_USAGE", f"{what}: {cli.near(first, list(VERBS))} (`pktring --help`)")
    return _verb(first, words[1:], stop)


def _verb(verb: str, words: list[str], stop: cli.Stop) -> int:
    module = import_module(f"pktring.tools.{verb}")
    parser = cli.Parser(prog=f"pktring {verb}", description=f"{VERBS[verb]}\n\nexamples:\n{module.EXAMPLES}")
    module.arguments(parser)
    try:
        args = parser.parse_intermixed_args(words)
    except SystemExit:  # --help
        return 0
    return module.run(args, stop)


def _usage() -> str:
    lines = [f"  {verb:10} {line}" for verb, line in VERBS.items()]
    return "\n".join(["usage: pktring VERB [flags]     (pktring VERB --help: its flags and examples)", "", *lines])


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"pktring {version('pktring')}")
    except PackageNotFoundError:
        print("pktring, not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
