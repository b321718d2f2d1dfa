"""`pktring top`: a running engine, live: rates, drops by reason, queues, CPU of each worker, the last minute. q quits, p pauses.

`screen` draws a status as lines of rich text, purely; the rest is a terminal and a clock. Where stdout is no terminal: lines of text.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import cli, engines
from .rates import Sample, Status, between, drops, lines, pps
from .table import age, columns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EXAMPLES = """\
  pktring top                        until q or Ctrl-C; p pauses
  pktring top --engine edge
  pktring top --duration 10 | cat    a line each second for each port
"""
MINUTE = 60
HEAD = "reverse"
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.:-=+*#"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--every", type=cli.seconds, default=1.0, metavar="SECONDS", help="how often it looks (1)")
    engines.flag(parser)
    cli.common(parser)


def run(args: argparse.Namespace, stop: cli.Stop) -> int:
    """Show until the end."""
    engine = engines.Watched(args.engine)
    view = View(Sample(engine.status()))
    if sys.stdout.isatty() and not args.json:
        _live(args, stop, engine, view)
    else:
        _plain(args, stop, engine, view)
    return 0


def _plain(args: argparse.Namespace, stop: cli.Stop, engine: engines.Watched, view: View) -> None:
    for sample in engine.samples(stop, args.every, args.duration):
        view.take(sample)
        print("\n".join(lines(view.rates)), file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.json:
        cli.result(view.status | {"rates": view.rates})


class View:
    """What is known to draw: the last status, the rates since the one before, and a minute of frames a second."""

    def __init__(self, sample: Sample):
        self._sample = sample
        self.rates = between(sample, sample)
        self.minute: deque[float] = deque(maxlen=MINUTE)
        self.silent = self.paused = False

    @property
    def status(self) -> Status:
        """The last status."""
        return self._sample.status

    def take(self, sample: Sample | None) -> None:
        """Take the next one; None: nobody answered."""
        self.silent = sample is None
        if sample:
            self.rates, self._sample = between(self._sample, sample), sample
            self.minute.append(self.rates["total"]["rx_pps"] + self.rates["total"]["tx_pps"])


# ---- the terminal ----


def _live(args: argparse.Namespace, stop: cli.Stop, engine: engines.Watched, view: View) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    end = time.monotonic() + args.duration if args.duration else None
    due = time.monotonic()
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        size = None
        while not stop and (end is None or time.monotonic() < end):
            key = pressed(min(0.1, max(0.0, due - time.monotonic())))
            if key in ("q", "Q", "\x1b"):
                return
            if key in ("p", "P", " "):
                view.paused = not view.paused
            fresh = time.monotonic() >= due
            if fresh:
                view.take(engine.sample())
                due = max(due + args.every, time.monotonic())
            if key or console.size != size or (fresh and not view.paused):
                size = console.size
                live.update(drawn(view, console), refresh=True)


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Read keys as they are pressed, where there are any: `pressed(timeout_s)` is a key or ''. The terminal is given back as it was."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _no_key
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda timeout_s: _key(fd, timeout_s)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _no_key(timeout_s: float) -> str:
    time.sleep(timeout_s)
    return ""


def _key(fd: int, timeout_s: float) -> str:
    if not select.select([fd], [], [], timeout_s)[0]:
        return ""
    read = os.read(fd, 64).decode(errors="replace")
    return "q" if not read else read[0] if read[0] != "\x1b" or len(read) == 1 else ""  # arrows begin with an escape and mean nothing here


# ---- the drawing ----


def drawn(view: View, console: Console) -> Text:
    """Draw for the size of a console."""
    from rich.text import Text

    plain = console.encoding.lower().startswith("utf")
    bars = BARS if plain else ASCII_BARS
    return Text("\n").join(screen(view, console.size.width, console.size.height, bars))


def screen(view: View, width: int = 80, height: int = 24, bars: str = BARS) -> list[Text]:
    """Draw the lines of a screen; what does not fit is left out, the least important parts first, and never the title."""
    parts = [_ports(view), _drops(view), _workers(view, bars), _queues(view), _history(view, width, bars), _events(view)]
    shown = [_title(view, width)]
    for part, room in zip(parts, _rooms([len(part) for part in parts], height - 1), strict=True):
        shown += _cut(part, room)
    for line in shown:
        line.truncate(width, overflow="ellipsis" if bars is BARS else "crop")
        if line.style == HEAD:
            line.set_length(width)
    return shown[:height]


def _rooms(wanted: Sequence[int], height: int) -> list[int]:
    """Deal out lines: each part gets what it wants while there is room, but leaves three for each that comes after."""
    rooms = []
    for i, n in enumerate(wanted):
        later = sum(min(3, m) for m in wanted[i + 1 :])
        rooms.append(max(0, min(n, max(height - later, min(3, height)))))
        height -= rooms[-1]
    return rooms


def _cut(part: list[Text], room: int) -> list[Text]:
    from rich.text import Text

    if len(part) <= room:
        return part
    return [*part[: room - 1], Text(f"  ... {len(part) - room + 1} more", style="dim")] if room > 2 else part[:room]


def _title(view: View, width: int) -> Text:
    from rich.text import Text

    status = view.status
    state = "no answer" if view.silent else "paused" if view.paused else time.strftime("%H:%M:%S")
    left = f"{status['name']}  up {age(status['uptime_s'])}  generation {status['generation']}  {cli.plural(len(status['apps']), 'app')}"
    right = f"{state}  q quit  p pause"
    return Text(f"{left}{right:>{max(width - len(left), len(right) + 2)}}", style="bold red" if view.silent else "bold")


def _table(head: str, rows: list[list[Any]], styles: Sequence[str] = ()) -> list[Text]:
    from rich.text import Text

    if not rows:
        return []
    first, *rest = columns(head, rows)
    styles = [*styles, *[""] * (len(rest) - len(styles))]
    return [Text(first, style=HEAD), *(Text(line, style=style) for line, style in zip(rest, styles, strict=True))]


def _ports(view: View) -> list[Text]:
    rows, styles = [], []
    for name, rate in [*view.rates["ports"].items(), *([("all", view.rates["total"])] if len(view.rates["ports"]) > 1 else [])]:
        up = name not in view.status["ports"] or view.status["ports"][name]["facts"].get("up", True)
        speeds = [pps(rate[key]) for key in ("rx_pps", "rx_bps", "tx_pps", "tx_bps", "drops_pps")]
        rows.append([name, *speeds, "" if up else "DOWN"])
        styles.append("red" if rate["drops_pps"] or not up else "")
    return _table("Port >____rx_fr/s >____bit/s >____tx_fr/s >____bit/s >__dropped/s State", rows, styles)


def _drops(view: View) -> list[Text]:
    """Only what is dropped now, or ever was: by port and reason."""
    rows, styles = [], []
    for name, port in view.status["ports"].items():
        now = view.rates["ports"].get(name, {}).get("reasons", {})
        for reason, n in drops(port["counters"]).items():
            rows.append([name, reason, n, pps(now.get(reason, 0))])
            styles.append("red" if now.get(reason) else "")
    order = sorted(range(len(rows)), key=lambda i: (not styles[i], -rows[i][2]))
    return _table("Drops Reason >__________Count >______now/s", [rows[i] for i in order], [styles[i] for i in order])


def _workers(view: View, bars: str) -> list[Text]:
    rows, styles = [], []
    for worker in view.status["workers"]:
        share = view.rates["workers"].get(str(worker["id"]), {"cpu_percent": 0.0})["cpu_percent"]
        busy = f"{_bar(share / 100, 20, bars)} {share:3.0f} %"
        cpu = "-" if worker["cpu"] is None else worker["cpu"]
        rows.append([worker["id"], cpu, busy, worker["state"], worker["restarts"], worker.get("note") or ""])
        styles.append("" if worker["state"] == "running" else "red")
    return _table("Worker >CPU Busy State >Restarts Note", rows, styles)


def _bar(share: float, width: int, bars: str) -> str:
    full = round(max(0.0, min(share, 1.0)) * width)
    return bars[-1] * full + ("·" if bars is BARS else ".") * (width - full)


def _queues(view: View) -> list[Text]:
    """A row for each protocol, a column for each workstream: frames waiting now, and the most that ever waited."""
    streams = view.status["netisr"]["workstreams"]
    names = list(dict.fromkeys(work["name"] for stream in streams for work in stream["work"]))
    cells = {(stream["workstream"], work["name"]): work for stream in streams for work in stream["work"]}
    rows = []
    for name in names:
        works = [cells.get((stream["workstream"], name)) for stream in streams]
        lost = sum(work["queue-drops"] for work in works if work)
        rows.append([name, lost, *(f"{work['length']}/{work['watermark']}" if work else "-" for work in works)])
    head = " ".join(f">ws{stream['workstream']}_len/max" for stream in streams)
    return _table(f"Queues >dropped {head}", rows)


def _history(view: View, width: int, bars: str) -> list[Text]:
    from rich.text import Text

    told = f"Frames/s of all ports, both ways, the last minute; at most {pps(max(view.minute, default=0))}"
    return [Text(told, style=HEAD), Text(sparkline(view.minute, min(MINUTE, width), bars))]


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """Draw the newest values, the latest at the right end; the highest is a whole bar, none is a blank."""
    shown = list(values)[-width:]
    top = max(shown, default=0) or 1
    return "".join(" " if v <= 0 else bars[min(len(bars) - 1, int(v / top * len(bars)))] for v in shown).rjust(width)


def _events(view: View) -> list[Text]:
    from rich.text import Text

    return [Text("Events", style=HEAD), *(Text(line) for line in view.status["events"][-3:])] if view.status["events"] else []
