"""What every verb shares: numbers, signals, one line an error, exit statuses, a quick start."""

import argparse
import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from command import COMMAND, pktring, refused

from pktring.shm.errors import Error
from pktring.tools import cli
from pktring.tools.main import VERBS

TOP = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "text, value", [("0", 0), ("500", 500), ("1k", 1000), ("1.5M", 1_500_000), ("64Ki", 65536), ("2G", 2 * 10**9), ("3Mi", 3 << 20)]
)
def test_numbers_take_suffixes(text, value):
    assert cli.number(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1x", "1 k", "0x10", "1kk", "nan", "inf", "1e3", "9" * 400, "..", "1KB", "٣"])
def test_garbage_is_no_number(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.number(text)


@pytest.mark.parametrize("text, value", [("2", 2), ("0.5", 0.5), ("200ms", 0.2), ("5m", 300), ("1h", 3600), ("10us", 1e-5)])
def test_times_take_units(text, value):
    assert cli.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0", "-1", "s", "1 s", "5x", "nan"])
def test_garbage_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.seconds(text)


def test_a_count_of_none_is_refused():
    with pytest.raises(argparse.ArgumentTypeError):
        cli.positive("0")


@pytest.mark.parametrize("value, text", [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (1234567, "1.23 MB"), (9_999_999_999, "10 GB")])
def test_quantities_read_well(value, text):
    assert cli.si(value, "B") == text


def test_a_slice_is_never_longer_than_what_is_left():
    with cli.Stop() as stop:
        spans = [span for span in stop.slices(0.05, 0.04) if not time.sleep(span)]
    assert len(spans) == 2 and max(spans) <= 0.04


@pytest.mark.parametrize("number", cli.Stop.SIGNALS)
def test_a_signal_asks_for_the_end(number):
    with cli.Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop
        assert not list(stop.slices(None))


def test_a_second_interrupt_does_not_wait():
    with cli.Stop() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with cli.Stop():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    "error, status, line",
    [
        (Error("E_USAGE", "no such thing: see --help"), 2, "pktring: E_USAGE no such thing: see --help"),
        (Error("E_PORT", "two\nlines: do"), 2, "pktring: E_PORT two lines: do"),
        (Error("E_SHM_SPACE", "need 2 free 1: free some"), 1, "pktring: E_SHM_SPACE need 2 free 1: free some"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "pktring: E_OS /x: No space left on device: see errno 28 in errno(3)"),
    ],
)
def test_an_error_is_one_line(capsys, error, status, line):
    assert cli.guarded(raising(error)) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_a_defect_is_one_line_that_says_where(capsys):
    assert cli.guarded(raising(ZeroDivisionError("division by zero"))) == 1
    assert capsys.readouterr().err.startswith("pktring: E_INTERNAL ZeroDivisionError: division by zero (test_cli.py:")


def test_an_abort_is_130(capsys):
    assert cli.guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


# ---- as a process ----


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb):
    got = pktring(verb, "--help")
    assert got.returncode == 0 and not got.stderr
    assert "examples:" in got.stdout and f"pktring {verb}" in got.stdout.split("examples:")[1]


def test_the_help_lists_every_verb():
    got = pktring("--help")
    assert got.returncode == 0 and all(f"  {verb} " in got.stdout for verb in VERBS)


def test_the_version_is_told():
    assert pktring("--version").stdout.startswith("pktring")


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "no verb given"),
        (["captur"], "did you mean 'capture'?"),
        (["--foo"], "no verb '--foo'"),
        (["capture", "--foo"], "unrecognized arguments: --foo"),
        (["capture", "-c", "many"], "'many' is not a number such as"),
        (["capture", "-c", "0"], "at least 1"),
        (["capture", "-s", "-5"], "-s"),
        (["capture", "-Q", "sideways"], "-Q"),
        (["capture", "--duration", "soon"], "'soon' is not a time such as"),
        (["capture", "-i"], "expected one argument"),
        (["bridge", "only-one"], "required: B"),
        (["bridge", "--workers", "two", "a", "b"], "--workers"),
        (["doctor", "extra"], "unrecognized arguments: extra"),
        (["help", "everything"], "invalid choice"),
    ],
)
def test_a_wrong_flag_is_one_line(words, says):
    assert says in refused(pktring(*words), "E_USAGE", 2)


def commands_of(text):
    """Lines that are commands of ours, as words, without what the shell does with them."""
    lines = [line.strip() for line in text.splitlines() if re.match(r" +pktring ", line)]
    return [shlex.split(re.split(r"  +| \| ", line)[0])[1:] for line in lines]


@pytest.mark.parametrize("page", ["README.md", "tools/README.md", *(f"tools/{verb}.py" for verb in VERBS)])
def test_every_example_is_understood(page):
    examples = commands_of((TOP / page).read_text())
    assert examples
    for verb, *words in examples:
        parser = cli.Parser()
        import_module(f"pktring.tools.{verb}").arguments(parser)
        assert parser.parse_intermixed_args(words)


@pytest.mark.parametrize("topic, word", [("ports", "promisc"), ("counters", "drop_tx_full"), ("verbs", "bridge")])
def test_the_help_topics(topic, word):
    got = pktring("help", topic)
    assert got.returncode == 0 and word in got.stdout


def test_a_closed_pipe_is_quiet():
    got = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | true', "-", *COMMAND, "help", "counters"], capture_output=True, text=True)
    assert (got.returncode, got.stderr) == (0, "")


def test_it_starts_quickly():
    code = "import time; t = time.perf_counter();"
    code += " from pktring.tools.main import main; main(['capture', '--help']); print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1]) for _ in range(5)]
    assert min(times) < 0.1


@pytest.mark.parametrize("verb", VERBS)
def test_help_brings_nothing_heavy(verb):
    code = f"import sys; from pktring.tools.main import main; main([{verb!r}, '--help']);"
    code += " print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1].split())
    assert not loaded & {"numpy", "scapy", "pyroute2", "rich", "psutil", "pcapy"}
