"""`pktring bridge A B`: two ports joined, both ways, byte for byte; mirrors get copies. The loop itself is C (engine/forward.h)."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pktring.shm.errors import Error

from . import cli

if TYPE_CHECKING:
    from pktring.engine.port import Port

    from .mirror import Mirror

EXAMPLES = """\
  pktring bridge eth1 eth2                              join two interfaces, until Ctrl-C
  pktring bridge eth1 tap:vm0 --filter 'not port 22'    an interface and a TAP; frames that do not match go nowhere
  pktring bridge eth1 eth2 --mirror pcap:all.pcapng     copies of every frame to a file
  pktring bridge 'eth1?netns=blue' eth2 --json          one end in another network namespace
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("a", metavar="A", help="a port (`pktring help ports`); it is taken: the host no longer receives its frames, unless ?take=0")
    add("b", metavar="B", help="the other one")
    add("-f", "--filter", metavar="FILTER", help="pcap-filter(7): forward only what matches")
    add("--mirror", action="append", default=[], metavar="PORT", help="send a copy of every frame there too; repeatable")
    add("--workers", type=cli.positive, default=1, metavar="N", help="1: more need the engine (`pktring up`), which this version lacks")
    add("--yes", action="store_true", help="take a port even if this host is reached through it")
    add("-q", action="store_true", help="no rates")
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Forward until the end, and report. Status 1 when a mirror fell behind for good: the forwarding itself went on."""
    if args.workers > 1:
        raise Error("E_WORKERS", f"--workers {args.workers}: this version bridges with one worker: leave it out")
    from .mirror import Mirror

    program = _program(args.filter)
    with contextlib.ExitStack() as ports:
        a, b = (ports.enter_context(_end(name, args.yes)) for name in (args.a, args.b))
        _check(a, b)
        mirrors = [ports.enter_context(Mirror(name, (a, b), args.filter or "")) for name in args.mirror]
        bridge = Bridge(a, b, mirrors, program)
        for line in bridge.greeting():
            cli.say(line)
        began = time.monotonic()
        bridge.run(stop, args.duration, quiet=args.q)
        report = bridge.report() | {"seconds": round(time.monotonic() - began, 3)}
    if args.json:
        cli.result(report)
    else:
        print("\n".join(_lines(args, report)))
    return 1 if any(mirror.failed for mirror in mirrors) else 0


def _program(text: str | None) -> bytes | None:
    from pktring.engine import filter as pcap_filter

    return pcap_filter.compile(text) if text else None


def _end(name: str, yes: bool) -> Port:
    import pktring

    if name.startswith("pcap:"):
        raise Error("E_DIRECTION", f"{name} is read or written, not both: `capture -r` reads a file, --mirror {name} writes one")
    asked = "take" in parse_qs(name.partition("?")[2], keep_blank_values=True)
    return pktring.open(name, yes=yes, take=None if asked else 1)


def _check(a: Port, b: Port) -> None:
    """Refuse what would only carry its own frames round and round."""
    ends = [(link, getattr(port.device, "netns", None)) for port in (a, b) if (link := getattr(port.device, "link", None))]
    if len(ends) < 2 or ends[0][1] != ends[1][1]:
        return
    (one, _), (other, _) = ends
    if one.ifindex == other.ifindex:
        raise Error("E_PORT", f"{one.name} twice: a bridge has two ends")
    if one.peer == other.ifindex and one.peer_netnsid is None:
        raise Error("E_PORT", f"{one.name} and {other.name} are the two ends of one veth: frames would go round for ever")


class Bridge:
    """Two paths between two ports, with the same mirrors."""

    def __init__(self, a: Port, b: Port, mirrors: Sequence[Mirror], program: bytes | None):
        from pktring.engine.forward import Forwarder, Path

        self._a, self._b, self._mirrors = a, b, mirrors
        copies = [mirror.port for mirror in mirrors]
        # What the host itself sends out of a port that only watches has gone that way already: "in".
        ways = ((a, b), (b, a))
        self._forwarder = Forwarder([Path(one, other, filter=program, direction="in", mirrors=copies) for one, other in ways])

    def greeting(self) -> list[str]:
        """What is said at the start: the first line means that frames flow."""
        lines = [f"bridging {_about(self._a)} <-> {_about(self._b)}"]
        lines += [line for port in (self._a, self._b) for line in port.warnings()]
        mtus = {port.name: mtu for port in (self._a, self._b) if (mtu := port.facts().get("mtu"))}
        if len(set(mtus.values())) > 1:
            lines.append(f"W_MTU {' '.join(f'{name}={mtu}' for name, mtu in mtus.items())}: longer frames are dropped (drop_mtu)")
        return lines

    def run(self, stop: cli.Stop, duration: float | None, *, quiet: bool = False) -> None:
        """Forward until asked to end."""
        progress = cli.Progress(stop, quiet=quiet)
        rates = Rates()
        for span in stop.slices(duration):
            why = self._forwarder.run(span)
            if why == "event":
                cli.tell_events(self._forwarder.ports)
            for mirror in self._mirrors:
                mirror.tend()
            if progress.due():
                progress.show(rates.line(self.report()))
        progress.end()

    def report(self) -> dict[str, Any]:
        """The keys of --json, but for the time."""
        for port in (self._a, self._b):
            port.read_kernel_drops()
        ways = {"a_to_b": way(self._a, self._b), "b_to_a": way(self._b, self._a)}
        return ways | {"mirrors": [mirror.report() for mirror in self._mirrors]}


def way(source: Port, target: Port) -> dict[str, Any]:
    """What went from one port to another: the target's transmit rings count it, both ports' rings the drops, by reason."""
    received, sent = source.stats("rx"), target.stats("tx")
    names = [name for name in received if name.startswith("drop_") and name != "drop_mirror"]
    reasons = {name: n for name in names if (n := received[name] + sent[name])}
    return {"frames": sent["tx_frames"], "bytes": sent["tx_bytes"], "dropped": sum(reasons.values()), "reasons": reasons}


class Rates:
    """Frames and bits a second since the line before."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._before: dict[str, dict] = {}

    def line(self, report: dict[str, Any]) -> str:
        """One line for both ways."""
        now = time.monotonic()
        parts = [self._part(key, label, report[key], now - self._at) for key, label in (("a_to_b", "A>B"), ("b_to_a", "B>A"))]
        self._at, self._before = now, report
        return "   ".join(parts)

    def _part(self, key: str, label: str, now: dict[str, Any], seconds: float) -> str:
        before = self._before.get(key, {"frames": 0, "bytes": 0})
        frames, bits = (now["frames"] - before["frames"]) / seconds, (now["bytes"] - before["bytes"]) * 8 / seconds
        return f"{label} {cli.si(frames, 'frames/s')} {cli.si(bits, 'bit/s')} dropped {now['dropped']}"


def _about(port: Port) -> str:
    facts = port.facts()
    how = ", ".join(str(facts[key]) for key in ("driver", "mode") if key in facts)
    return f"{port.name} ({how})"


def _lines(args: argparse.Namespace, report: dict[str, Any]) -> Iterator[str]:
    for key, source, target in (("a_to_b", args.a, args.b), ("b_to_a", args.b, args.a)):
        counts = report[key]
        reasons = "".join(f", {name} {n}" for name, n in counts["reasons"].items())
        yield f"{source} > {target}: {cli.plural(counts['frames'], 'frame')}, {counts['bytes']} bytes, {counts['dropped']} dropped{reasons}"
    for mirror in report["mirrors"]:
        yield f"mirror {mirror['port']}: {cli.plural(mirror['frames'], 'frame')}, {mirror['unwritten']} not written"
    yield f"{report['seconds']} seconds"
