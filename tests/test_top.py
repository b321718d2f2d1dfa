"""`pktring top`: the screen drawn from statuses, at 80x24 and smaller; keys and ends in a real terminal."""

import fcntl
import functools
import io
import json
import os
import pty
import re
import select
import subprocess
import termios
import time

import pytest
import statuses
from command import COMMAND, pktring
from posing import posing

from pktring.tools import rates, top


def view(before=None, **what):
    """What there is to draw after one interval."""
    before = before or statuses.status()
    made = top.View(rates.Sample(before, 10.0))
    made.take(rates.Sample(statuses.later(before, **what), 11.0))
    return made


def plain(lines):
    return [line.plain.rstrip() for line in lines]


def row(lines, first, nth=0):
    return [line.split() for line in plain(lines) if line.split()[:1] == [first]][nth]


def test_a_screen_fits_80x24_and_everything_is_on_it():
    lines = top.screen(view())
    assert len(lines) <= 24 and all(line.cell_len <= 80 for line in lines)
    heads = ("edge", "Port", "Drops", "Worker", "Queues", "Frames/s", "Events")
    assert [line.split()[0] for line in plain(lines) if line.startswith(heads)] == list(heads)


def test_ports_have_rates_and_a_sum():
    lines = top.screen(view(frames=1000, lost=50))
    assert row(lines, "left") == ["left", "1", "k", "512", "k", "1", "k", "512", "k", "50"]
    assert row(lines, "all") == ["all", "2", "k", "1.02", "M", "2", "k", "1.02", "M", "50"]


def test_a_port_that_is_down_is_red():
    (line,) = [line for line in top.screen(view()) if line.plain.startswith("right ") and "DOWN" in line.plain]
    assert str(line.style) == "red"


def test_what_is_dropped_now_comes_first():
    lines = top.screen(view(reason="drop_tx_full", lost=5))
    (head,) = [i for i, line in enumerate(plain(lines)) if line.startswith("Drops")]
    assert [line.split()[:4] for line in plain(lines)[head + 1 : head + 3]] == [
        ["left", "drop_tx_full", "5", "5.0"],
        ["left", "drop_filter", "10", "0"],
    ]


def test_a_workers_bar_is_its_share():
    assert row(top.screen(view(cpu_s=0.5)), "1")[:4] == ["1", "0", "█" * 10 + "·" * 10, "50"]
    assert row(top.screen(view(cpu_s=0.0)), "1")[2] == "·" * 20
    assert row(top.screen(view(cpu_s=9.0)), "1")[2] == "█" * 20


def test_queues_by_protocol_and_workstream():
    lines = top.screen(view())
    assert row(lines, "epair") == ["epair", "418", "12/2100", "0/640"] and row(lines, "arp") == ["arp", "0", "0/1", "-"]


def test_a_terminal_without_utf8_gets_ascii():
    drawn = view()
    drawn.minute.extend([1, 5, 9])
    assert all(line.plain.isascii() for line in top.screen(drawn, bars=top.ASCII_BARS))


def test_a_sparkline_is_scaled_to_the_highest():
    assert top.sparkline([0, 1, 4, 8], 4) == " ▂▅█"
    assert top.sparkline([0, 0], 4) == "    "
    assert top.sparkline(range(1, 100), 3) == "███"


def test_the_last_minute_is_kept():
    drawn = view()
    for _ in range(100):
        drawn.take(rates.Sample(drawn.status, 12.0))
    assert len(drawn.minute) == 60


@pytest.mark.parametrize("height", range(1, 25))
def test_a_low_terminal_keeps_what_matters(height):
    lines = top.screen(view(), 80, height)
    assert len(lines) <= height and lines[0].plain.startswith("edge")
    assert height < 3 or lines[1].plain.startswith("Port")


@pytest.mark.parametrize("width", [1, 10, 40, 200])
def test_a_line_is_never_wider_than_the_terminal(width):
    assert all(line.cell_len <= width for line in top.screen(view(), width))


def test_what_does_not_fit_is_told():
    many = statuses.status()
    for i in range(40):
        many["ports"][f"port{i}"] = statuses.right()
    lines = plain(top.screen(view(many)))
    assert len(lines) == 24 and any(line.startswith("Worker") for line in lines)
    assert any(re.match(r"  \.\.\. \d+ more", line) for line in lines)


def test_an_idle_engine_without_ports_is_drawn():
    nothing = statuses.status() | {"ports": {}, "workers": [], "events": [], "netisr": statuses.netisr() | {"workstreams": []}}
    lines = plain(top.screen(view_of(nothing)))
    assert lines[0].startswith("edge") and lines[1].startswith("Frames/s")


def view_of(status):
    made = top.View(rates.Sample(status, 1.0))
    made.take(rates.Sample(status, 2.0))
    return made


def test_no_answer_is_told_and_the_last_screen_stays():
    drawn = view()
    drawn.take(None)
    lines = top.screen(drawn)
    assert "no answer" in lines[0].plain and row(lines, "left")[1] == "1"


def test_rich_draws_it_in_colours():
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system="standard", legacy_windows=False)
    console.print(top.drawn(view(), console), end="")
    text = console.file.getvalue()
    assert "\x1b[7m" in text and "\x1b[31m" in text and len(text.splitlines()) <= 24


def test_keys_are_read_one_at_a_time():
    r, w = os.pipe()
    try:
        for sent, key in ((b"q", "q"), (b"p", "p"), (b"\x1b[A", ""), (b"\x1b", "\x1b")):
            os.write(w, sent)
            assert top._key(r, 1.0) == key
        assert top._key(r, 0.0) == ""
    finally:
        os.close(r)
        os.close(w)


# ---- in a terminal ----


class Screen:
    """A command on a terminal of 80x24; `text` is all that it wrote there."""

    def __init__(self, pose, *words):
        self.fd, self.end = pty.openpty()  # an end of our own: else reading fails with EIO once the command is gone
        termios.tcsetwinsize(self.end, (24, 80))
        self.before = termios.tcgetattr(self.end)
        env = pose.env | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "PYTHONIOENCODING": "utf-8"}
        std = dict.fromkeys(("stdin", "stdout", "stderr"), self.end)
        its_terminal = functools.partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)  # Ctrl-C and window sizes are told by signals
        self.child = subprocess.Popen([*COMMAND, *words], **std, env=env, start_new_session=True, preexec_fn=its_terminal)
        self.text = ""

    def seen(self, pattern, timeout_s=15):
        """Read until it was written, since this was asked last."""
        begin, deadline = len(self.text), time.monotonic() + timeout_s
        while not re.search(pattern, self.text[begin:]):
            assert select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0], f"no {pattern!r} in {self.text[begin:]!r}"
            self.text += os.read(self.fd, 65536).decode(errors="replace")
        return self.text[begin:]

    def rests(self, quiet_s=0.3, timeout_s=5):
        """Read what was drawn before, until nothing comes any more."""
        deadline = time.monotonic() + timeout_s
        while select.select([self.fd], [], [], quiet_s)[0]:
            assert time.monotonic() < deadline, "it goes on drawing"
            self.text += os.read(self.fd, 65536).decode(errors="replace")

    def press(self, key):
        os.write(self.fd, key.encode())

    def ended(self, timeout_s=10):
        """Its exit status; the terminal is as it was, and not on the alternate screen."""
        deadline = time.monotonic() + timeout_s
        while self.child.poll() is None:  # it ends when what it wrote is read
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self.fd], [], [], 0.05)[0]:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        while select.select([self.fd], [], [], 0)[0]:
            self.text += os.read(self.fd, 65536).decode(errors="replace")
        assert termios.tcgetattr(self.end) == self.before
        assert self.text.rfind("\x1b[?1049l") > self.text.rfind("\x1b[?1049h") >= 0
        return self.child.returncode


@pytest.fixture
def pose(tmp_path):
    with posing(tmp_path) as made:
        yield made


@pytest.fixture
def on(pose):
    screens = []

    def start(*words):
        screens.append(Screen(pose, *words))
        return screens[-1]

    yield start
    for screen in screens:
        screen.child.kill()
        screen.child.wait()
        os.close(screen.fd)
        os.close(screen.end)


def test_it_draws_until_q(on):
    screen = on("top", "--every", "0.2")
    assert "dropped/s" in screen.seen("Events")
    screen.seen("1:02:1[0-9]")  # it goes on
    screen.press("q")
    assert screen.ended() == 0


def test_p_pauses_and_goes_on(on):
    screen = on("top", "--every", "0.2")
    screen.seen("Events")
    screen.press("p")
    screen.seen("paused")
    screen.rests()
    time.sleep(0.6)  # three intervals in which nothing may be drawn
    assert not select.select([screen.fd], [], [], 0)[0]
    screen.press("p")
    screen.seen(r"\d\d:\d\d:\d\d  q quit")
    screen.press("q")
    assert screen.ended() == 0


def test_ctrl_c_is_a_clean_end(on):
    screen = on("top")
    screen.seen("Events")
    screen.press("\x03")
    assert screen.ended() == 0


def test_a_smaller_terminal_is_drawn_for(on):
    screen = on("top", "--every", "0.2")
    screen.seen("Events")
    termios.tcsetwinsize(screen.fd, (8, 40))
    begin, deadline = len(screen.text), time.monotonic() + 10
    while True:
        screen.seen(r"\x1b\[H")
        whole = screen.text[begin:].split("\x1b[H")[1:-1]  # the last one may still be being drawn
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", whole[-1]).splitlines() if whole else []
        if lines and len(lines) <= 9 and max(map(len, lines)) <= 40:
            break
        assert time.monotonic() < deadline, lines
    screen.press("q")
    assert screen.ended() == 0


def test_an_engine_that_ends_ends_it(on, pose):
    screen = on("top", "--every", "0.2")
    screen.seen("Events")
    pose.kill()
    screen.seen("E_NO_ENGINE")
    assert screen.ended() == 1


def test_a_duration_ends_it(on):
    screen = on("top", "--every", "0.2", "--duration", "1")
    screen.seen("Events")
    assert screen.ended() == 0


def test_where_stdout_is_no_terminal_it_prints_lines(pose):
    got = pktring("top", "--every", "0.2", "--duration", "0.9", env=pose.env)
    lines = got.stdout.splitlines()
    assert got.returncode == 0 and len(lines) in (4, 6, 8) and "\x1b" not in got.stdout
    assert all(re.match(r"\d\d:\d\d:\d\d (left|right) +rx .* dropped \d+/s", line) for line in lines)


def test_as_json_it_is_the_last_status_with_rates(pose):
    got = pktring("top", "--json", "--every", "0.2", "--duration", "0.7", env=pose.env)
    assert json.loads(got.stdout)["rates"]["ports"]["left"]["rx_pps"] > 0 and "dropped" in got.stderr
