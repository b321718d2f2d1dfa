"""`pktring capture`: to a pcapng file, or as a line of text per frame, with tcpdump's letters."""

from __future__ import annotations

import argparse
import shlex
import shutil
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from pktring.shm.errors import Error

from . import cli

if TYPE_CHECKING:
    from pktring.engine.port import Port

EXAMPLES = """\
  pktring capture -i eth0 -n                             a line per frame
  pktring capture -i eth0 -w out.pcapng tcp port 80      to a file, filtered
  pktring capture -i eth0 -i eth1 -w both.pcapng         two interfaces, one file
  pktring capture -i eth0 -w - | wireshark -k -i -       live into Wireshark
  pktring capture -i eth0 -w %H%M.pcapng -G 60 -z gzip   a file a minute, compressed
  pktring capture -r out.pcapng -w dns.pcapng port 53    filter a file
"""
SMALLEST_FILE = 1000
EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, 262144)  # the program of no filter: ret #262144


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("-i", "--interface", dest="ports", action="append", default=[], metavar="PORT", help="a port; repeatable (`pktring help ports`)")
    add("-w", dest="write", metavar="FILE", help="write pcapng to FILE, or - for stdout; without it a line per frame is printed")
    add("-r", dest="read", metavar="FILE", help="read frames from a pcap or pcapng file, or - for stdin")
    add("-f", "--filter", metavar="FILTER", help="pcap-filter(7); or say it in the words behind the flags")
    add("words", nargs="*", metavar="FILTER", help=argparse.SUPPRESS)
    add("-c", "--count", type=cli.positive, metavar="N", help="end after N frames")
    add("-s", "--snaplen", type=cli.number, default=0, metavar="N", help="keep N bytes of each frame (0: all)")
    add("-G", dest="rotate_s", type=cli.positive, metavar="SEC", help="a new file every SEC seconds; its name goes through strftime(3)")
    add("-C", dest="rotate_mb", type=_megabytes, metavar="MB", help="a new file before one grows past MB million bytes")
    add("-W", dest="keep", type=cli.positive, metavar="FILES", help="-C: reuse the oldest of FILES; -G: end after them; both: remove")
    add("-z", dest="after", metavar="CMD", help="run CMD FILE on each finished file")
    add("-Q", "--direction", choices=("in", "out", "inout"), help="frames received, sent, or both (lo: in)")
    add("-p", "--no-promiscuous-mode", dest="modest", action="store_true", help="only frames that are for this interface")
    add("-n", action="count", default=0, help="numbers, not names of services")
    add("-e", action="store_true", help="show MAC addresses")
    add("-q", action="store_true", help="shorter lines; no progress")
    add("-U", "-l", action="store_true", help="nothing is held back: so it always is")
    add("--yes", action="store_true", help="with ?take=1: take a port even if this host is reached through it")
    add("-D", "--list-interfaces", action="store_true", help="list interfaces, and end")
    add("-d", action="count", default=0, help="print the compiled filter, and end (-dd as C, -ddd as numbers)")
    cli.common(parser)


def _megabytes(text: str) -> int:
    size = cli.number(text) if text[-1:].isalpha() else round(cli.scaled(text) * 10**6)
    if size < SMALLEST_FILE:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {SMALLEST_FILE} bytes")
    return size


@dataclass
class Outcome:
    """What is reported at the end; the first six are the keys of --json."""

    captured: int = 0
    dropped_kernel: int = 0
    dropped_engine: int = 0
    written_bytes: int = 0
    files: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    received: int = 0
    error: Error | None = None

    def count(self, ports: Sequence[Port]) -> None:
        """Take what the sources counted."""
        from .recording import UNWANTED, lost

        for source in ports:
            stats = source.stats()
            self.dropped_kernel += stats["drop_kernel"]
            self.received += stats["rx_frames"] - sum(stats[name] for name in UNWANTED)
            for name, n in lost(source).items():
                self.reasons[name] = self.reasons.get(name, 0) + n

    def json(self) -> dict[str, object]:
        """The keys of the contract."""
        keys = ("captured", "dropped_kernel", "dropped_engine", "written_bytes", "files", "seconds", "reasons")
        return {key: getattr(self, key) for key in keys}


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Capture until the end, and report."""
    from . import sources

    if args.list_interfaces:
        return _listed(args.json)
    args.program = sources.program(args)
    if args.d:
        return _disassembled(args.program or EVERYTHING, args)
    _check(args)
    outcome = Outcome()
    with sources.opened(args) as ports:
        began = time.monotonic()
        module = import_module(f"pktring.tools.{'capture_file' if args.write else 'text'}")
        module.run(args, ports, stop, outcome)
        outcome.seconds = round(time.monotonic() - began, 3)
        outcome.count(ports)
    outcome.dropped_engine = sum(outcome.reasons.values())
    _report(args, outcome)
    if outcome.error:
        raise outcome.error
    return 0


def _disassembled(program: bytes, args: argparse.Namespace) -> int:
    from pktring.engine import filter as pcap_filter

    instructions = list(pcap_filter.INSTRUCTION.iter_unpack(program))
    if args.json:
        cli.result({"instructions": instructions})
    elif args.d == 2:
        print("\n".join(f"{{ 0x{code:x}, {jt}, {jf}, 0x{k:08x} }}," for code, jt, jf, k in instructions))
    else:
        print("\n".join(pcap_filter.disassemble(program) if args.d == 1 else pcap_filter.decimal(program)))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot mean anything, before a socket or a file is opened."""
    names = args.ports
    if bool(names) == bool(args.read):
        what = "both -i and -r" if names else "neither -i PORT nor -r FILE"
        raise Error("E_USAGE", f"{what}: say one (`pktring capture -D` lists interfaces)")
    if "any" in names:
        raise Error("E_PORT", "any is no port: name the interfaces, -i eth0 -i eth1 (`pktring capture -D` lists them)")
    if len(set(names)) < len(names):
        raise Error("E_USAGE", "the same port twice: name it once")
    if any(name.startswith("pcap:") for name in names):
        raise Error("E_USAGE", "a file is no interface: read it with -r FILE")
    if not args.write and (args.rotate_s or args.rotate_mb or args.keep or args.after):
        raise Error("E_USAGE", "-G, -C, -W and -z are about files: name one with -w")
    if args.write == "-" and (args.rotate_s or args.rotate_mb or args.after):
        raise Error("E_USAGE", "-G, -C and -z need a file, and -w - is none: name one")
    if args.keep and not (args.rotate_s or args.rotate_mb):
        raise Error("E_USAGE", "-W counts the files of a rotation: add -C MB or -G SEC")
    if args.after and not shutil.which(shlex.split(args.after)[0]):
        raise Error("E_USAGE", f"-z {args.after}: no such command: see your PATH")
    if args.write == "-" and sys.stdout.isatty():
        raise Error("E_USAGE", "-w - would write binary to this terminal: pipe it, or name a file")


# ---- the end, and what needs no capture ----


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    if args.json:
        cli.result(outcome.json(), sys.stderr if args.write == "-" else sys.stdout)
        return
    if args.read and args.write is None:
        return
    reasons = ", ".join(f"{name} {n}" for name, n in outcome.reasons.items())
    lines = [
        f"{cli.plural(outcome.captured, 'packet')} captured",
        f"{cli.plural(outcome.received, 'packet')} received by filter",
        f"{cli.plural(outcome.dropped_kernel, 'packet')} dropped by kernel",
        f"{cli.plural(outcome.dropped_engine, 'packet')} dropped by pktring" + (f": {reasons}" if reasons else ""),
    ]
    print("\n".join(lines), file=sys.stderr)


def _listed(as_json: bool) -> int:
    """-D: the interfaces of this network namespace, numbered as tcpdump does."""
    from pktring.drivers.link import interfaces

    from .sources import ARPHRD_LOOPBACK

    found = interfaces()
    if as_json:
        keys = ("name", "ifindex", "kind", "driver", "mtu", "up", "carrier")
        cli.result({"interfaces": [{key: getattr(link, key) for key in keys} for link in found]})
        return 0
    for n, link in enumerate(found, 1):
        state = [word for word, on in (("Up", link.up), ("Running", link.carrier), ("Loopback", link.arp_type == ARPHRD_LOOPBACK)) if on]
        print(f"{n}.{link.name} [{', '.join(state) or 'Down'}] {link.kind or link.driver} mtu {link.mtu}")
    return 0
