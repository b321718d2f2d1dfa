"""`capture` without -w: a line of text per frame, dissected by scapy, which is imported when a `Describer` is made (0.3 s), not before."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from pktring.drivers.pcap import open_reader
from pktring.engine.batch import Batch
from pktring.engine.port import Port
from pktring.shm.region import DEFAULT_SLOTS, Region

from . import capture_file, cli
from .capture import Outcome

WAIT_S = 0.2


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
        return f"{self._time(ts_ns)} {where} {'Out' if outgoing else 'In '} {text}, length {wire_len}"

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
    """Print a line per frame until the end; with --json to stderr, because stdout is for the one object.

    It is `capture -w - | decode` within one process: a thread captures into a pipe, and we read that. So filters, directions and limits
    are those of the C core, and frames wait in the kernel's ring, not in Python, while scapy is at work.
    """
    describer = Describer(numeric=bool(args.n), ethernet=args.e, quick=args.q)
    out = sys.stderr if args.json else sys.stdout
    read, write = os.pipe()
    with open(read, "rb", buffering=0), ThreadPoolExecutor(1) as captures:
        capture = captures.submit(_capture, args, ports, stop, outcome, write)
        try:
            _print(read, describer, out)
        finally:
            stop.asked = True  # if whoever reads our lines went away, let the capture end too
            capture.result()
    outcome.files, outcome.written_bytes = [], 0


def _capture(args: argparse.Namespace, ports: Sequence[Port], stop: cli.Stop, outcome: Outcome, write: int) -> None:
    with open(write, "wb", buffering=0):
        capture_file.run(args, ports, stop, outcome, write)


def _print(pipe: int, describer: Describer, out: TextIO) -> None:
    reader = open_reader(pipe)
    names: list[str] = []
    with contextlib.ExitStack() as undo:
        region = undo.enter_context(Region.create(f"{os.getpid()}-text", rings=1))
        port = undo.enter_context(Port("text", region, reader, None, slots=DEFAULT_SLOTS, directions="rx"))
        while not port.ended:
            with port.recv(256, WAIT_S) as batch:
                names = names or [block["name"] for block in reader.interfaces]
                out.writelines(_lines(batch, describer, names))
            out.flush()


def _lines(batch: Batch, describer: Describer, names: Sequence[str]) -> Iterator[str]:
    interfaces = batch.ports
    columns = (batch.timestamps, interfaces, batch.outgoing, batch.wire_lengths)
    for frame, ts_ns, interface, outgoing, wire_len in zip(batch, *(column.tolist() for column in columns), strict=True):
        yield describer.line(bytes(frame), ts_ns, names[interface], outgoing, wire_len) + "\n"
