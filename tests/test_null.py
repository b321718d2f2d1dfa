"""The null device: nothing comes, or copies of one frame; everything goes."""

import time

import captures
import pytest

from pktring.drivers import null
from pktring.shm.errors import Error


@pytest.fixture
def rings():
    with captures.rings() as rings:
        yield rings


def test_nothing_comes_by_default(rings):
    rings.rx.bind(null.open("", {}).queues[0].device)
    assert rings.rx.sync() == 0 and not rings.rx.device_flags


@pytest.mark.parametrize("length", [1, 14, 60, 1792, 1793, 9000])
def test_so_many_frames_of_a_length_come_and_then_the_end(rings, length):
    before = time.time_ns()
    got = rings.read(null.open("", {"len": str(length), "count": "1000"}).queues[0].device)
    assert [f.data for f in got] == [null.HEADER[:length].ljust(length, b"\0")] * 1000
    assert before <= got[0].ts_ns <= got[-1].ts_ns <= time.time_ns()
    row = rings.received
    assert row["rx_kernel"] == row["rx_frames"] == row["delivered"] == 1000 and row["rx_bytes"] == 1000 * length


def test_without_a_count_there_is_no_end(rings):
    rings.rx.bind(null.open("", {"len": "60"}).queues[0].device)
    for _ in range(50):
        assert rings.rx.sync() == 255 and len(rings.take()) == 255


def test_everything_sent_is_swallowed_and_counted(rings):
    device = null.open("", {}).queues[0].device
    assert rings.write(device, [captures.Frame(bytes(n)) for n in (0, 60, 5000, 60)] * 200) == 800
    assert rings.waiting == 0 and rings.sent["tx_frames"] == 800 and rings.sent["tx_bytes"] == 200 * 5120 and rings.balanced()


def test_its_facts_and_its_refusals():
    port = null.open("", {"len": "60"})
    assert port.facts() == {"driver": "null", "queues": 1, "len": 60, "count": 0} and port.warnings() == []
    port.close()
    for options in ({"len": "65536"}, {"len": "-1"}, {"count": "many"}):
        with pytest.raises(Error) as why:
            null.open("", options)
        assert why.value.code == "E_OPTION"
