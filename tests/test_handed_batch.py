"""The batch that a handler is called with: columns against Python slices, views that end, verdicts."""

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inhand import ROOM, Bench

from pktring.shm import _shm
from pktring.shm.errors import Error

some_frames = st.lists(st.binary(max_size=2 * ROOM + 7), min_size=1, max_size=12)
steady = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


@pytest.fixture(scope="module")
def shared():
    with Bench() as bench:
        yield bench


@steady
@given(frames=some_frames, data=st.data())
def test_columns_are_what_python_slices_say(shared, frames, data):
    n = len(frames)
    facts = {
        "timestamp": data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)),
        "wire_length": data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n)),
        "hash": data.draw(st.lists(st.none() | st.integers(0, 2**32 - 1), min_size=n, max_size=n)),
        "port": data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=n, max_size=n)),
        "flags": data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)),
    }
    width = data.draw(st.integers(0, 2 * ROOM))

    def look(batch):
        assert len(batch) == n
        assert [bytes(frame) for frame in batch] == frames
        assert [bytes(batch[i - n]) for i in range(n)] == frames
        assert [batch.parts(i) for i in range(n)] == [[frame] for frame in frames]
        assert batch.lengths.dtype == np.uint32 and batch.lengths.tolist() == [len(frame) for frame in frames]
        wire = [wire or len(frame) for wire, frame in zip(facts["wire_length"], frames, strict=True)]
        assert batch.wire_lengths.dtype == np.uint32 and batch.wire_lengths.tolist() == wire
        assert batch.timestamps.dtype == np.uint64 and batch.timestamps.tolist() == facts["timestamp"]
        assert batch.ports.dtype == np.uint16 and batch.ports.tolist() == facts["port"]
        assert batch.outgoing.dtype == bool and batch.outgoing.tolist() == [bool(f) for f in facts["flags"]]
        assert batch.hashes.dtype == np.uint32 and batch.hashes.tolist() == [h or 0 for h in facts["hash"]]
        assert len(set(batch.buffers.tolist())) == n
        head = batch.head(width)
        assert head.shape == (n, width) and head.dtype == np.uint8
        assert [row.tobytes() for row in head] == [frame[:width].ljust(width, b"\0") for frame in frames]

    shared.seen(look, frames, **facts)


@steady
@given(frames=some_frames, data=st.data())
def test_each_frame_goes_by_the_first_port_that_it_was_forwarded_to(shared, frames, data):
    masks = st.lists(st.booleans(), min_size=len(frames), max_size=len(frames))
    first, second = data.draw(masks), data.draw(masks)
    marked = shared.seen(lambda batch: (batch.forward("left", where=first), batch.forward("far", where=np.array(second))), frames)
    assert marked == (sum(first), sum(b and not a for a, b in zip(first, second, strict=True)))
    assert shared.hand.verdicts == [0 if a else 5 if b else -1 for a, b in zip(first, second, strict=True)]


def test_a_port_is_meant_by_its_name_its_number_or_its_handle(bench):
    class Port:
        number = 5

    for port, number in (("right", 1), (1, 1), (np.int64(1), 1), (Port(), 5)):
        assert bench.seen(lambda batch, port=port: batch.forward(port), [b"x", b"y"]) == 2
        assert bench.hand.verdicts == [number, number]


@pytest.mark.parametrize("port", ["nowhere", 2, -1, True, None, 2**40, 1.0])
def test_a_port_that_is_not_there_is_refused(bench, port):
    with pytest.raises(Error, match="this engine has left .0., right .1., far .5.") as why:
        bench.seen(lambda batch: batch.forward(port), [b"x"])
    assert why.value.code == "E_PORT" and bench.hand.verdicts == [-1]


@pytest.mark.parametrize("mask", [[True], [True] * 3, True, []])
def test_a_mask_of_another_length_is_refused(bench, mask):
    with pytest.raises(Error, match="for 2 frames") as why:
        bench.seen(lambda batch: batch.forward("left", where=mask), [b"x", b"y"])
    assert why.value.code == "E_BATCH" and bench.hand.verdicts == [-1, -1]


def test_the_door_itself_refuses_what_does_not_fit(bench):
    for call in (
        lambda frames: frames.forward(1, b"\1"),
        lambda frames: frames.forward(2**31, None),
        lambda frames: frames.column(0, bytearray(7)),
        lambda frames: frames.column(1, memoryview(bytearray(20))[4:]),
        lambda frames: frames.gather(5, bytearray(9)),
    ):
        with pytest.raises(ValueError):
            bench.seen(lambda batch, call=call: call(batch._frames), [b"x", b"y"])
    assert bench.hand.verdicts == [-1, -1]


def test_a_hash_that_nobody_computed_is_none(bench):
    """Its place holds what an earlier frame in the buffer left there."""
    bench.take([b"x"], hash=[7])
    at = bench.region.geometry["meta_ofs"] + 64 * int(bench.seen(lambda batch: batch.buffers[0], [b"x"], hash=[7]))
    flags = _shm.LAYOUT["pr_meta.flags"][0]
    found = []
    bench.load(lambda batch: found.append(batch.hashes.tolist()))
    bench.run()
    bench.region.mem[at + flags : at + flags + 2] = bytes(2)
    bench.run()
    assert found == [[7], [0]]


@pytest.mark.parametrize("i", [2, -3, 2**70])
def test_there_is_no_frame_outside_of_the_batch(bench, i):
    for look in (lambda batch: batch[i], lambda batch: batch.parts(i)):
        with pytest.raises(IndexError):
            bench.seen(look, [b"x", b"y"])


def test_a_frame_is_the_buffer_itself(bench):
    def look(batch):
        batch[1][0:2] = b"EF"
        return int(batch.buffers[1])

    buffer = bench.seen(look, [b"abcd", b"efgh"])
    assert bench.hand.frames() == [b"abcd", b"EFgh"]
    at = bench.region.view.buffer_offset(buffer)
    assert bytes(bench.region.mem[at : at + 4]) == b"EFgh"


def test_a_frame_that_spans_buffers_is_a_copy(bench):
    def look(batch):
        assert batch[0].readonly
        return bytes(batch[0])

    assert bench.seen(look, [b"ab" * ROOM]) == b"ab" * ROOM


def test_a_super_frame_shows_its_parts(bench):
    tcp = b"\0" * 12 + b"\x08\0" + bytes.fromhex("45000050 0000 4000 4006 0000 0a000001 0a000002".replace(" ", ""))
    tcp += bytes.fromhex("0001 0002 00000000 00000000 5010 ffff 0000 0000".replace(" ", "")) + b"payload!" * 5
    bench.take([tcp])
    meta = bench.region.geometry["meta_ofs"] + 64 * int(bench.seen(lambda batch: batch.buffers[0], [tcp]))
    flags_at = _shm.LAYOUT["pr_meta.flags"][0]
    bench.region.mem[meta + flags_at : meta + flags_at + 2] = (2).to_bytes(2, "little")  # PR_META_GSO
    bench.region.mem[meta + flags_at + 2 : meta + flags_at + 8] = bytes([1, 0, 54, 0, 16, 0])  # TCPv4, headers 54, pieces of 16
    bench.region.mem[meta + flags_at + 8 : meta + flags_at + 12] = bytes([34, 0, 16, 0])  # where its checksum is
    found = []
    bench.load(lambda batch: found.extend(batch.parts(0)))
    bench.run()
    assert [len(part) for part in found] == [70, 70, 62], bench.lines
    assert b"".join(part[54:] for part in found) == tcp[54:]


def test_nothing_can_be_asked_after_the_handler_returned(bench):
    kept = []
    bench.verdicts(lambda batch: kept.append(batch), [b"x"])
    batch = kept[0]
    for look in (
        lambda: len(batch),
        lambda: batch.lengths,
        lambda: batch.head(4),
        lambda: batch[0],
        lambda: batch.parts(0),
        lambda: batch.forward("left"),
        lambda: list(batch),
    ):
        with pytest.raises(Error, match="the handler has returned") as why:
            look()
        assert why.value.code == "E_BATCH"
    batch.release()


def test_views_end_with_the_call(bench):
    kept = []
    bench.verdicts(lambda batch: kept.extend([batch[0], *batch, batch[0]]), [b"x", b"y"])
    assert len(kept) == 4
    for view in kept:
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_views_of_a_handler_that_raised_end_too(bench):
    kept = []

    def handler(batch):
        kept.append(batch[0])
        raise ValueError("no")

    bench.verdicts(handler, [b"x"])
    with pytest.raises(ValueError, match="released"):
        kept[0][0]


def test_a_view_that_the_handler_released_is_made_again(bench):
    def look(batch):
        with batch[0] as view:
            assert bytes(view) == b"x"
        return bytes(batch[0])

    assert bench.seen(look, [b"x"]) == b"x"


def test_an_array_that_is_kept_over_a_view_keeps_the_region_mapped(bench):
    kept = []
    bench.verdicts(lambda batch: kept.append(np.frombuffer(batch[0], "u1")), [b"abc"])
    assert kept[0].tobytes() == b"abc", "it cannot be taken away: the buffer is somebody else's now, and still there"


def test_release_changes_nothing_and_a_with_may_be_used(bench):
    def look(batch):
        with batch:
            batch.forward("right")
        batch.release()
        return len(batch)

    assert bench.seen(look, [b"x", b"y"]) == 2
    assert bench.hand.verdicts == [1, 1]


def test_the_same_object_comes_with_every_burst(bench):
    kept = set()
    bench.load(lambda batch: kept.add((id(batch), len(batch))))
    for n in (1, 2, 3):
        bench.take([b"x"] * n)
        bench.run()
    assert {n for _, n in kept} == {1, 2, 3} and len({which for which, _ in kept}) == 1


def test_a_handler_within_a_handler_has_frames_of_its_own(bench):
    other = type(bench.hand)(bench.region.view, bench.region.pool)
    other.take_frames([b"inner", b"more"])
    found = []
    bench.load(lambda batch: found.append([bytes(f) for f in batch]) or batch.forward("far"), proto=2)

    def outer(batch):
        view = batch[0]
        found.append(other.run(bench.table, 2))
        found.append([bytes(view), *map(bytes, batch)])
        batch.forward("right")

    assert bench.verdicts(outer, [b"outer"]) == [1]
    assert found == [[b"inner", b"more"], [5, 5], [b"outer", b"outer"]]
    other.free()


def test_a_full_burst_is_64_frames(bench):
    assert bench.hand.take_frames([bytes([i]) for i in range(70)]) == 64
    assert bench.seen(lambda batch: batch.head(1)[:, 0].tolist(), [bytes([i]) for i in range(64)]) == list(range(64))


def test_running_a_handler_leaves_nothing_behind(bench):
    def handler(batch):
        return [batch.lengths.sum(), batch.head(20), [view[:1] for view in batch], batch.forward("left", batch.lengths > 2)]

    bench.load(handler)
    bench.take([b"x" * i for i in range(64)])
    for _ in range(50):
        bench.run()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(200):
        bench.run()
    gc.collect()
    assert len(gc.get_objects()) < before + 20 and bench.stats()["raised"] == 0
