"""`pktring top`: the screen drawn from statuses, at 80x24 and smaller; keys and ends in a real terminal."""

import io
import re

import pytest
import statuses

from pktring.shm.errors import Error
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
    import os

    r, w = os.pipe()
    try:
        for sent, key in ((b"q", "q"), (b"p", "p"), (b"\x1b[A", ""), (b"\x1b", "\x1b")):
            os.write(w, sent)
            assert top._key(r, 1.0) == key
        assert top._key(r, 0.0) == ""
    finally:
        os.close(r)
        os.close(w)


def test_an_unknown_engine_is_refused(monkeypatch, tmp_path):
    from pktring.tools import engines

    monkeypatch.setenv("PKTRING_RUNDIR", str(tmp_path))
    with pytest.raises(Error, match="E_NO_ENGINE no engine named 'x' runs: start one"):
        engines.pick("x")
