"""What the verbs share: numbers with suffixes, common flags, signals as a clean end, one line for an error, exit statuses.

Status 0 done, 1 failed at run time, 2 bad usage or bad input. Progress and messages go to stderr, what was asked for to stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from pktring.shm.errors import Error

# The codes that blame what the user typed or gave us; every other one is a failure at run time.
BAD_INPUT = {
    *("E_USAGE", "E_PORT", "E_OPTION", "E_DRIVER", "E_DIRECTION", "E_WOULD_CUT_HOST", "E_WORKERS", "E_CONFIG", "E_HANDLER"),
    *("E_NO_INTERFACE", "E_NO_NETNS", "E_NO_FILE", "E_FILTER", "E_PCAP", "E_SYSCTL"),
}
SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
SLICE_S = 0.1  # how long a loop runs before it looks whether it was asked to end
ABORTED = 130


# ---- numbers ----


def number(text: str) -> int:
    """Read a count with an optional suffix: 500, 1.5M, 64Ki. For argparse's `type`."""
    return round(scaled(text))


def scaled(text: str) -> float:
    """Read a number that may have a fraction and a suffix."""
    return _scaled(text, SCALE, "a number such as 500, 1.5M or 64Ki")


def positive(text: str) -> int:
    """Read a count of at least one."""
    value = number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return value


def seconds(text: str) -> float:
    """Read a time in seconds, or with a unit: 2, 0.5, 200ms, 5m."""
    value = _scaled(text, SECONDS, "a time such as 2, 0.5, 200ms or 5m")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0")
    return value


def _scaled(text: str, units: dict[str, Any], wanted: str) -> float:
    unit = text.lstrip("0123456789.")
    digits = text[: len(text) - len(unit)]
    try:
        value = float(digits) * units[unit]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
    if not math.isfinite(value) or value >= 2**63:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is too much")
    return value


def si(value: float, unit: str = "") -> str:
    """Write a quantity as people read it: 1234567 -> '1.23 M'."""
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{unit}" if value / scale < 999.5 else f"{value / scale:.0f} {letter}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def plural(n: int, thing: str) -> str:
    """Count things: '1 frame', '2 frames'."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


# ---- flags ----


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is our one line, and that knows no abbreviations (they would freeze every future name)."""

    def __init__(self, **how: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        raise Error("E_USAGE", f"{message}: see `{self.prog} --help`")


def common(parser: argparse.ArgumentParser, *, duration: bool = True) -> None:
    """Add the flags that every verb has."""
    parser.add_argument("--json", action="store_true", help="print one JSON object when the command ends")
    if duration:
        parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="end after this long (until Ctrl-C)")


# ---- the end ----


class Stop:
    """True once SIGINT, SIGTERM or SIGHUP asked for the end; a second SIGINT does not wait (KeyboardInterrupt). A context manager.

    SIGUSR1 asks for the counts so far, as with tcpdump: see Progress.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = False
        self.tell = False
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> Stop:
        for number_ in self.SIGNALS:
            before = signal.getsignal(number_)
            if number_ != signal.SIGHUP or before != signal.SIG_IGN:  # nohup(1) means what it says
                self._before[number_] = signal.signal(number_, self._ask)
        self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        for number_, before in self._before.items():
            signal.signal(number_, before)

    def _ask(self, number_: int, _frame: FrameType | None) -> None:
        if self.asked and number_ == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        self.tell = True

    def slices(self, duration: float | None, slice_s: float = SLICE_S) -> Iterator[float]:
        """Yield how long to go on next, until asked to end or `duration` seconds are over."""
        end = time.monotonic() + (math.inf if duration is None else duration)
        while not self.asked and (left := end - time.monotonic()) > 0:
            yield min(left, slice_s)


def tell_events(ports: Iterable[Any]) -> None:
    """Say what happened to the links of these ports; the ports look after themselves."""
    for port in ports:
        for event in port.events():
            say(event.line)


class Progress:
    """A line each second on a terminal, and one whenever SIGUSR1 asks for it; nothing else."""

    def __init__(self, stop: Stop, *, quiet: bool = False):
        self._stop = stop
        self._live = sys.stderr.isatty() and not quiet
        self._next = time.monotonic() + 1
        self._shown = False

    def due(self) -> bool:
        """Whether to `show` something now."""
        return self._stop.tell or (self._live and time.monotonic() >= self._next)

    def show(self, line: str) -> None:
        """Show it: over the line before, or as one that stays when it was asked for."""
        if self._stop.tell:
            self._stop.tell = False
            say(line)
        if self._live:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._next, self._shown = time.monotonic() + 1, True

    def end(self) -> None:
        """Leave the line that was shown last."""
        if self._shown:
            print(file=sys.stderr)
            self._shown = False


def guarded(run: Callable[[], int]) -> int:
    """Run a command to its exit status; whatever goes wrong becomes one line on stderr. PKTRING_DEBUG=1 shows where it came from."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except Error as error:
        _trace()
        complain(error.code, error.text)
        return 2 if error.code in BAD_INPUT else 1
    except BrokenPipeError:  # whoever read us has seen enough
        _mute(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return ABORTED
    except OSError as error:
        _trace()
        complain("E_OS", f"{error.filename or 'the kernel'}: {error.strerror or error}: see errno {error.errno} in errno(3)")
        return 1
    except Exception as error:  # a defect of ours: still one line
        _trace()
        complain("E_INTERNAL", f"{type(error).__name__}: {error} ({_place(error)}): a defect of pktring, PKTRING_DEBUG=1 shows more")
        return 1


def complain(code: str, text: str) -> None:
    """Write the one line of an error."""
    say(f"{code} {' '.join(text.split())}")


def say(line: str) -> None:
    """Write a message for a person to stderr."""
    try:
        print(f"pktring: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _mute(sys.stderr)


def result(value: dict[str, Any], file: TextIO | None = None) -> None:
    """Print the one JSON object of `--json`."""
    print(json.dumps(value), file=file or sys.stdout, flush=True)


def _mute(stream: TextIO) -> None:
    """Send what is still buffered, and all that follows, nowhere: or the interpreter complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _trace() -> None:
    if os.environ.get("PKTRING_DEBUG"):
        import traceback

        traceback.print_exc()


def _place(error: Exception) -> str:
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    return f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at else "?"


def near(word: str, known: Sequence[str]) -> str:
    """Advise the nearest of the known words, or list them all."""
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
