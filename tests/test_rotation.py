"""Rows of capture files: tcpdump's -C, -G and -W, and its names; what ours add."""

import os
import subprocess
import time

import captures
import pytest
from captures import Frame, pcap

from pktring.drivers.pcap import Interface, Stats, Writer, open_reader
from pktring.drivers.rotation import Rotation
from pktring.shm.errors import Error

HEAD = bytes(range(12)) + b"\x88\xb5"
START = 1_700_000_000


@pytest.fixture
def rings():
    with captures.rings() as rings:
        yield rings


def frames_at(*seconds, size=60):
    return [Frame(HEAD + bytes(size - 14), int(s * 10**9)) for s in seconds]


def capture(rings, writer, frames):
    """Send all frames, rotating where the writer asks for it; stops where it says that this was the end."""
    done = 0
    while done < len(frames) or rings.waiting:
        done += rings.write(writer.queues[0].device, frames[done : done + 50])
        while writer.paused:
            if not writer.proceed():
                return done
            rings.tx.sync()
    return done


def times(path):
    """The times of a file's frames in seconds; the file is whole."""
    with captures.rings(slots=1024) as rings:
        reader = open_reader(path)
        got = rings.read(reader.queues[0].device)
        reader.check()
        reader.close()
    return [f.ts_ns // 10**9 for f in got]


def test_names_by_hand():
    day = time.mktime((2026, 3, 4, 5, 6, 7, 0, 0, -1))
    for rotation, count, name in [
        (Rotation(), 0, "x%H"),
        (Rotation(max_bytes=1), 0, "x%H"),
        (Rotation(max_bytes=1), 1, "x%H1"),
        (Rotation(max_bytes=1), 100, "x%H100"),
        (Rotation(max_bytes=1, files=1), 0, "x%H"),
        (Rotation(max_bytes=1, files=2), 0, "x%H0"),
        (Rotation(max_bytes=1, files=10), 9, "x%H9"),
        (Rotation(max_bytes=1, files=11), 9, "x%H09"),
        (Rotation(max_bytes=1, files=1001), 7, "x%H0007"),
        (Rotation(seconds=1), 0, "x05"),
        (Rotation(seconds=1, files=20), 0, "x05"),
        (Rotation(seconds=1, max_bytes=1), 0, "x05"),
        (Rotation(seconds=1, max_bytes=1), 3, "x053"),
        (Rotation(seconds=1, max_bytes=1, files=12), 3, "x0503"),
    ]:
        assert rotation.name("x%H", int(day), count) == name, rotation


@pytest.mark.needs("host_root", "tcpdump")  # it changes its user, also to root
@pytest.mark.parametrize("files", [0, 1, 2, 3, 10, 11, 12])
def test_names_are_those_of_tcpdump(rings, tmp_path, files):
    """Over 13 files of a megabyte, theirs of 17 frames and ours of 16: the same names are there at the end."""
    frames = frames_at(*[START] * 206, size=60000)
    (tmp_path / "in").write_bytes(pcap([(f.ts_ns, f.data) for f in frames]))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    args = ["-r", tmp_path / "in", "-w", tmp_path / "theirs/out", "-C", "1", *(["-W", str(files)] if files else [])]
    user = ["-Z", "root"] if os.geteuid() == 0 else []
    subprocess.run(["tcpdump", *args, *user], check=True, capture_output=True, timeout=60, env=captures.UNSANITIZED)
    writer = Writer(tmp_path / "ours/out", rotation=Rotation(10**6, 0, files))
    capture(rings, writer, frames)
    writer.close()
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "theirs"))
    assert writer.frames == 206 and len(set(writer.files)) == len(os.listdir(tmp_path / "ours"))
    assert all(os.path.getsize(f) <= 10**6 for f in writer.files)


def test_no_file_grows_past_its_size_and_no_frame_is_lost(rings, tmp_path):
    closed = []
    writer = Writer(tmp_path / "a", [Interface("eth0"), Interface("eth1")], rotation=Rotation(5000), closed=closed.append)
    frames = [Frame(HEAD + bytes(i % 300), (START + i) * 10**9, 0, i % 2) for i in range(500)]
    capture(rings, writer, frames)
    writer.close()
    assert [s for f in writer.files for s in times(f)] == [START + i for i in range(500)]
    sizes = [os.path.getsize(f) for f in writer.files]
    assert max(sizes) <= 5000 and min(sizes[:-1]) > 4000, "with its statistics at the end, and well filled"
    assert closed == writer.files == [f"{tmp_path}/a{i or ''}" for i in range(len(sizes))]
    assert writer.written_bytes == sum(sizes) and rings.balanced()


def test_a_frame_longer_than_a_file_gets_one_of_its_own(rings, tmp_path):
    writer = Writer(tmp_path / "a", rotation=Rotation(1000))
    capture(rings, writer, frames_at(START, START, size=3000) + frames_at(START + 1, START + 2))
    writer.close()
    assert [times(f) for f in writer.files] == [[START], [START], [START + 1, START + 2]]


def test_a_file_of_so_many_seconds_holds_no_later_frame(rings, tmp_path):
    writer = Writer(tmp_path / "a%s", rotation=Rotation(seconds=10), start_s=START)
    frames = frames_at(START, START + 9.75, START + 10, START + 9, START + 19, START + 45.5, START + 55, START + 55.4)
    capture(rings, writer, frames)
    writer.close()
    files = {START: [0, 9], START + 10: [10, 9, 19], START + 45: [45], START + 55: [55, 55]}
    assert writer.files == [f"{tmp_path}/a{s}" for s in files]
    assert [times(f) for f in writer.files] == [[START + s for s in held] for held in files.values()]


def test_the_capture_ends_after_so_many_spans(rings, tmp_path):
    writer = Writer(tmp_path / "a%s", rotation=Rotation(seconds=10, files=2), start_s=START)
    capture(rings, writer, frames_at(*range(START, START + 60)))
    assert writer.ended and writer.paused == "closed" and not writer.proceed()
    assert [len(times(f)) for f in writer.files] == [10, 10]
    assert rings.frames_waiting() == 30 and rings.balanced(), "what belongs to no file stays where it is"
    writer.close()


def test_with_both_rules_the_newest_files_are_kept(rings, tmp_path):
    writer = Writer(tmp_path / "a%s.", rotation=Rotation(2000, 100, 3), start_s=START)
    capture(rings, writer, frames_at(*range(START, START + 250)))
    writer.close()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == sorted(os.path.basename(f) for f in writer.files) and len(left) == 3
    held = [s for f in writer.files for s in times(f)]
    assert held == list(range(held[0], START + 250)), "the last ones, without a gap"


def test_one_name_for_all_is_written_over(rings, tmp_path):
    closed = []
    writer = Writer(tmp_path / "a", rotation=Rotation(2000, 0, 1), closed=lambda name: closed.append(times(name)))
    capture(rings, writer, frames_at(*range(START, START + 100)))
    writer.close()
    assert [s for held in closed for s in held] == list(range(START, START + 100)), "each was whole when it was closed"
    assert os.listdir(tmp_path) == ["a"] and times(tmp_path / "a") == closed[-1]


def test_statistics_count_from_the_start_of_the_capture(rings, tmp_path):
    seen = iter([[Stats(5, 0, 5, 0, None)], [Stats(9, 2, 9, 1, None)]])
    writer = Writer(tmp_path / "a", rotation=Rotation(500), stats=lambda: next(seen))
    capture(rings, writer, frames_at(START, START, START, START))
    writer.close()
    stats = []
    for file in writer.files:
        reader = open_reader(file)
        rings.read(reader.queues[0].device)
        stats.append(reader.interfaces[0]["stats"])
        reader.close()
    assert stats == [(5, 0, 5, 0, 2), (9, 2, 9, 1, 4)]


def test_a_next_file_that_cannot_be_made_says_so_and_loses_nothing(rings, tmp_path):
    writer = Writer(tmp_path / "a", rotation=Rotation(1000))
    (tmp_path / "a1").mkdir()
    rings.write(writer.queues[0].device, frames_at(*range(START, START + 50)))
    assert writer.paused == "size"
    with pytest.raises(Error) as why:
        writer.proceed()
    assert why.value.code == "E_NO_FILE" and "a1" in str(why.value)
    assert rings.balanced() and len(times(tmp_path / "a")) + rings.frames_waiting() == 50
    assert not writer.proceed()
    writer.close()
