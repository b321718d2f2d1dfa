"""`pktring stat`: pages drawn from a status; rates; netstat -Q's layout, to the column."""

import copy
import re

import pytest
import statuses

from pktring.engine import netisr_tables
from pktring.shm.errors import Error
from pktring.tools import rates, stat
from pktring.tools.table import age, columns


def two(before=None, seconds=1.0, **what):
    """A status and a later one, as samples."""
    before = before or statuses.status()
    return rates.Sample(before, 10.0), rates.Sample(statuses.later(before, **what), 10.0 + seconds)


def rows(page, head):
    """The rows of one table of a page, as words; `head` is what its first line begins with."""
    blocks = [block.splitlines() for block in page.split("\n\n")]
    (found,) = [block for block in blocks if re.sub(" +", " ", block[0]).startswith(head)]
    return [line.split() for line in found[1:]]


# ---- columns ----


def test_numbers_end_in_one_column_and_words_begin_in_one():
    assert columns("Name >Count What", [["a", 5, "x y"], ["long", 12345, "z"]]) == [
        "Name  Count  What",
        "a         5  x y",
        "long  12345  z",
    ]


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (59.9, "59 s"), (60, "1:00"), (185, "3:05"), (3723, "1:02:03"), (86400 * 2 + 3720, "2 d 01:02")]
)
def test_an_age_reads_well(seconds, text):
    assert age(seconds) == text


# ---- the page ----


def test_a_port_has_a_line_for_each_way():
    assert rows(stat.text(statuses.status()), "Port Way") == [
        ["left", "rx", "1500", "96000", "15", "af_packet", "eth1", "taking"],
        ["tx", "999", "63936", "1"],
        ["right", "rx", "1000", "64000", "0", "tap", "vm0", "taking", "DOWN"],
        ["tx", "1490", "95360", "0"],
        ["all", "rx", "2500", "160000", "15"],
        ["tx", "2489", "159296", "1"],
    ]


def test_every_reason_above_zero_is_named_and_no_other():
    found = {(row[0], row[1]): int(row[2]) for row in rows(stat.text(statuses.status()), "Port Reason")}
    assert found == {("left", "drop_filter"): 10, ("left", "drop_kernel"): 5, ("left", "drop_tx_kernel"): 1, ("right", "drop_mirror"): 3}


def test_copies_that_a_mirror_lost_are_no_dropped_frames():
    counters = statuses.status()["ports"]["right"]["counters"]
    assert (rates.dropped(counters), rates.drops(counters)) == (0, {"drop_mirror": 3})


def test_a_worker_has_a_line():
    assert rows(stat.text(statuses.status()), "Worker") == [
        ["1", "0", "4713", "running", "0", "12.5", "s"],
        ["2", "1", "4714", "running", "2", "11.2", "s", "W_AFFINITY", "wanted", "cpu7,", "running", "on", "0-1"],
    ]


def test_queues_are_summed_over_workstreams():
    found = {row[0]: row[1:] for row in rows(stat.text(statuses.status()), "Protocol")}
    assert found["ip"] == ["0", "36053", "10209", "46262", "0", "0"] and found["epair"][-2:] == ["418", "12"]


def test_handlers_apps_buffers_and_remarks_are_there():
    page = stat.text(statuses.status())
    assert "ValueError: no such flow" in page and "uid 1000 is not in group pktring" in page
    assert "Buffers: 4096 = 3800 free + 96 owned" in page
    assert "left: W_OFFLOADS if=eth1" in page and page.endswith("resumed_ms=4.1")


def test_a_page_fits_80_columns():
    """But for what others say, which is not cut."""
    first, last = two()
    last.status["handlers"][1]["last_error"] = last.status["events"][0] = ""
    last.status["ports"]["left"]["warnings"], last.status["workers"][1]["note"] = [], ""
    for page in (stat.text(last.status), stat.text(last.status, rates.between(first, last))):
        assert [line for line in page.splitlines() if len(line) > 80] == []


def test_an_engine_without_anything_is_drawn():
    empty = {"ports": {}, "workers": [], "handlers": [], "apps": [], "pool": {}, "events": []}
    nothing = statuses.status() | empty | {"netisr": statuses.netisr() | {"workstreams": []}}
    assert stat.text(nothing) == "edge: generation 3, pid 4712, up 1:02:03, pktring 0.1.0"


def test_a_worker_that_is_held_off_has_no_process():
    held = statuses.status()
    held["workers"][1] |= {"pid": None, "cpu_s": None, "state": "held_off"}
    assert rows(stat.text(held), "Worker")[1][:6] == ["2", "1", "-", "held_off", "2", "-"]


def test_ports_can_be_picked():
    picked = stat.chosen(statuses.status(), ["right"])
    assert list(picked["ports"]) == ["right"] and [row[0] for row in rows(stat.text(picked), "Port Way")] == ["right", "tx"]


def test_a_port_that_is_not_there_is_refused():
    with pytest.raises(Error, match="E_PORT edge has no port 'rigth': did you mean 'right'"):
        stat.chosen(statuses.status(), ["rigth"])


# ---- rates ----


def test_rates_are_differences_over_the_time_between():
    got = rates.between(*two(frames=1000, lost=50, seconds=2.0))
    left = {"rx_pps": 500, "rx_bps": 256_000, "tx_pps": 500, "tx_bps": 256_000, "drops_pps": 25, "reasons": {"drop_tx_full": 25}}
    assert got["interval_s"] == 2 and got["ports"]["left"] == left
    assert got["total"]["rx_pps"] == 1000 and got["total"]["drops_pps"] == 25


def test_the_cpu_of_a_worker_is_its_share_of_one():
    assert rates.between(*two(cpu_s=0.5))["workers"] == {"1": {"cpu_percent": 50.0}, "2": {"cpu_percent": 50.0}}


def test_a_replaced_worker_counts_from_nothing():
    first, last = two(cpu_s=1.0)
    last.status["workers"][0]["cpu_s"] = 0.25
    assert rates.between(first, last)["workers"]["1"] == {"cpu_percent": 25.0}


def test_a_new_engine_of_the_name_is_never_negative():
    first, last = two(frames=0, lost=0)
    fresh = copy.deepcopy(last)
    for port in fresh.status["ports"].values():
        port["counters"] = statuses.counters(rx_frames=7)
    fresh.status["generation"] = 4
    assert rates.between(first, fresh)["ports"]["left"]["rx_pps"] == 7
    fresh.status["generation"] = 3
    assert rates.between(first, fresh)["ports"]["left"]["rx_pps"] == 7


def test_a_port_that_is_new_counts_from_nothing():
    first, last = two()
    last.status["ports"]["third"] = statuses.port(2, {}, [{"row": "third rx0", "worker": 1, **statuses.counters(rx_frames=3)}])
    assert rates.between(first, last)["ports"]["third"]["rx_pps"] == 3


def test_the_page_has_the_rates():
    first, last = two()
    assert rows(stat.text(last.status, rates.between(first, last)), "Port Way")[0][-4:] == ["1", "k", "512", "k"]


def test_a_line_a_port_where_nothing_can_be_drawn_over():
    left, right = rates.lines(rates.between(*two()), "13:02:01")
    assert left == "13:02:01 left       rx     1 k/s  512 kbit/s  tx     1 k/s  512 kbit/s  dropped 50/s"
    assert right.endswith("dropped 0/s")


@pytest.mark.parametrize("value, text", [(0, "0"), (0.5, "0.5"), (9.9, "9.9"), (10, "10"), (999, "999"), (1234567, "1.23 M")])
def test_a_rate_reads_well(value, text):
    assert rates.pps(value) == text


def test_a_handler_is_summed_over_the_workers():
    (line,) = rows(stat.text(statuses.status()), "Handler")
    assert line == ["ip", "1", "46262", "2000", "1", "4.0", "181.0", "ValueError:", "no", "such", "flow"]


# ---- netstat -Q: drawn by engine/netisr_tables.py from the knobs, as netstat does it ----


def knobs():
    values = {f"net.isr.{name}": value for name, value in (statuses.SETTINGS | {"maxprot": 16}).items()}
    found = statuses.tables()
    return values | {"net.isr.proto": found["protocol"], "net.isr.workstream": found["workstream"], "net.isr.work": found["work"]}


def test_N_M6_the_tables_come_from_the_knobs_of_net_isr():
    assert netisr_tables.text(*stat.netisr(knobs())) == statuses.NETSTAT_Q
