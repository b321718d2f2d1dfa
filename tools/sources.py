"""What `capture` captures from: its ports, opened; its filter, compiled; and what it says of them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence

import pktring
from pktring.engine.port import Port
from pktring.shm.errors import Error

from . import cli

FULL_FRAME = 262144  # what tcpdump keeps of a frame when it keeps all of it
ARPHRD_LOOPBACK = 772


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[list[Port]]:
    """Open every port to receive, watching."""
    names = [f"pcap:{args.read}"] if args.read else args.ports
    promisc = 0 if args.modest and not args.read else None
    with contextlib.ExitStack() as ports:
        yield [ports.enter_context(pktring.open(name, directions="rx", promisc=promisc, yes=args.yes)) for name in names]


def filter_text(args: argparse.Namespace) -> str:
    """The filter as it was typed, "" for none."""
    if args.filter and args.words:
        raise Error("E_USAGE", "a filter behind -f and another in words: say one")
    return args.filter or " ".join(args.words)


def program(args: argparse.Namespace) -> bytes | None:
    """The filter, compiled. Raises E_FILTER."""
    from pktring.engine import filter as pcap_filter

    text = filter_text(args)
    return pcap_filter.compile(text) if text else None


def direction(args: argparse.Namespace, source: Port) -> str:
    """in, out or inout. lo shows each frame twice, going out and coming in: once is enough, as with tcpdump."""
    link = getattr(source.device, "link", None)
    return args.direction or ("in" if link and link.arp_type == ARPHRD_LOOPBACK else "inout")


def announce(args: argparse.Namespace, sources: Sequence[Port]) -> None:
    """Say on stderr what is listened to, how, and what to beware of."""
    for source in sources:
        facts = source.facts()
        how = ", ".join(str(facts[key]) for key in ("driver", "mode") if key in facts)
        what = f"reading {facts['file']}" if args.read else f"capturing on {source.name}"
        cli.say(f"{what} ({how}), link-type EN10MB (Ethernet), snapshot length {args.snaplen or FULL_FRAME} bytes")
        for line in source.warnings():
            cli.say(line)
