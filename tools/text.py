"""`capture` without -w: a line of text per frame, dissected by scapy, which is imported when a `Describer` is made (0.3 s), not before."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pktring.engine import filter as pcap_filter
from pktring.engine.port import Port

from . import cli, sources
from .capture import Outcome


class Describer:
    """Turns frames into lines. `numeric`: ports as numbers; `ethernet`: with the MAC addresses; `quick`: addresses and protocol only."""

    def __init__(self, *, numeric: bool = False, ethernet: bool = False, quick: bool = False):
        logging.getLogger("scapy").setLevel(logging.ERROR)  # it warns of the host's routes, which are not what is asked
        import scapy.layers.dhcp
        import scapy.layers.dns
        import scapy.layers.inet6
        from scapy.config import conf
        from scapy.layers.inet import IP, TCP, UDP
        from scapy.layers.l2 import Ether

        if numeric:
            for field in (TCP.sport, TCP.dport, UDP.sport, UDP.dport):
                conf.noenum.add(field)
        self._ether: Any = Ether
        self._ip = (IP, scapy.layers.inet6.IPv6)
        self._show_ethernet, self._quick = ethernet, quick
        self._second, self._clock = -1, ""

    def line(self, frame: bytes, ts_ns: int, where: str, outgoing: bool, wire_len: int) -> str:
        """Describe one frame: time, interface, direction, layers, length."""
        try:
            text = self._layers(self._ether(frame))
        except Exception as why:  # scapy's dissectors meet whatever the network holds
            text = f"not dissected ({type(why).__name__}) {frame[:14].hex()}"
        return f"{self._time(ts_ns)} {where}{'Out' if outgoing else 'In '} {text}, length {wire_len}"

    def _layers(self, packet: Any) -> str:
        text = self._brief(packet) if self._quick else packet.summary().removeprefix("Ether / ")
        text = text.removesuffix(" / Raw").removesuffix(" / Padding")
        if not self._show_ethernet or not hasattr(packet, "type"):
            return text
        return f"{packet.src} > {packet.dst}, ethertype 0x{packet.type:04x}: {text}"

    def _brief(self, packet: Any) -> str:
        for layer in self._ip:
            if (ip := packet.getlayer(layer)) is not None:
                return f"{ip.name} {ip.src} > {ip.dst} {ip.payload.name.lower()}"
        return str(packet.payload.name or "")

    def _time(self, ts_ns: int) -> str:
        second, ns = divmod(ts_ns, 10**9)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        return f"{self._clock}.{ns:09d}"


def run(args: argparse.Namespace, ports: Sequence[Port], stop: cli.Stop, outcome: Outcome) -> None:
    """Print a line per frame until the end; with --json to stderr, because stdout is for the one object."""
    program = sources.program(args)
    describer = Describer(numeric=bool(args.n), ethernet=args.e, quick=args.q)
    out = sys.stderr if args.json else sys.stdout
    sources.announce(args, ports)
    left = args.count or sys.maxsize
    for span in stop.slices(args.duration):
        for port in ports:
            lines = list(itertools.islice(_lines(args, port, program, describer, span / len(ports), outcome), left))
            outcome.captured += len(lines)
            left -= len(lines)
            out.write("".join(lines))
        out.flush()
        if left == 0 or all(port.ended for port in ports):
            break
    sources.check(ports)


def _lines(
    args: argparse.Namespace, port: Port, program: bytes | None, describer: Describer, wait_s: float, outcome: Outcome
) -> Iterator[str]:
    wanted = {"in": False, "out": True}.get(sources.direction(args, port))
    where = "" if args.read else port.facts().get("interface", port.name) + " "
    snaplen = args.snaplen or sources.FULL_FRAME
    with port.recv(256, wait_s) as batch:
        columns = zip(batch, batch.timestamps.tolist(), batch.outgoing.tolist(), batch.wire_lengths.tolist(), strict=True)
        for frame, ts_ns, outgoing, wire_len in columns:
            if wanted not in (None, outgoing) or (program and not pcap_filter.matches(program, frame, wire_len)):
                outcome.received -= 1
            else:
                yield describer.line(bytes(frame[:snaplen]), ts_ns, where, outgoing, wire_len) + "\n"
