"""Segments that outlive their maker, segments that are mostly a hole, and homes of equal size."""

import mmap
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pktring.shm import _shm, segment
from pktring.shm.errors import Error
from pktring.shm.region import RX, Region, discard, join_segment, make_segment, sweep


@pytest.fixture
def name(request):
    name = f"seg-{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"
    yield name
    discard(name)


def path(name, part):
    return Path(f"/dev/shm/{segment.PREFIX}{name}.{part}")


def refused(code, function, *args, **kwargs):
    with pytest.raises(Error) as why:
        function(*args, **kwargs)
    assert why.value.code == code, why.value
    return str(why.value)


def killed_after(code):
    """Run it in a process of its own until it prints a line, then kill it. -> the line"""
    child = subprocess.Popen([sys.executable, "-c", code + "\nimport time\ntime.sleep(60)"], stdout=subprocess.PIPE, text=True)
    line = child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    return line


def orphaned(name, **how):
    return killed_after(f"""
from pktring.shm.region import Region, RX, TX
r = Region.create({name!r}, rings=4, slots=8, **{how!r})
i, ring = r.make_ring(TX, 8, "left tx0", pool=r.pool_of(2))
ring.put([b"x" * 60])
print(r.generation, flush=True)""")


# ---- homes ----


def test_buffers_are_dealt_in_homes_of_equal_size(name):
    with Region.create(name, rings=6, slots=8, owners=3, buffers=51) as region:
        pools = [region.pool_of(owner) for owner in (1, 2, 3)]
        assert region.owners == 3 and [pool.free for pool in pools] == [16, 16, 16]
        taken = [set(pool.take(99)) for pool in pools]
        assert [len(bufs) for bufs in taken] == [16, 16, 16] and len(set.union(*taken)) == 48
        assert region.pool_of(2) is pools[1] and region.pool is pools[0]


def test_an_owner_that_the_region_was_not_made_for_is_refused(name):
    with Region.create(name, rings=2, slots=8, owners=2) as region:
        refused("E_OWNER", region.pool_of, 3)
        refused("E_OWNER", region.pool_of, 0)
    refused("E_REGION", Region.create, name, rings=2, slots=8, owners=17)


def test_a_ring_takes_its_buffers_from_its_owners_home_and_says_whose_it_is(name):
    with Region.create(name, rings=4, slots=8, owners=2) as region:
        theirs = region.pool_of(2)
        index, ring = region.make_ring(RX, 8, "b rx0", pool=theirs)
        assert all(theirs.home <= ring.slot(i)[0] < theirs.home_end for i in range(8))
        assert region.rings() == [{"ring": index, "owner": 2, "dir": RX, "slots": 8, "row": index}]
        assert region.counters()[0]["writer"] == 2
        region.drop_ring(index, theirs)
        assert theirs.free == 16 and not region.rings()


def test_with_one_owner_everything_is_as_it_was(name):
    with Region.create(name, rings=2, slots=8) as region:
        assert region.owners == 1 and region.pool.free == 16 and region.pool.owner == 1


# ---- kept for a successor ----


def test_what_is_kept_survives_its_makers_death_and_a_sweep(name):
    generation = int(orphaned(name, owners=2, kept=True))
    assert not [gone for gone in sweep() if gone.startswith(name)]
    region = Region.attach(name)
    assert region.generation == generation and region.owners == 2 and not region.made_here
    assert str(generation) not in refused("E_NAME_BUSY", Region.create, name, rings=2, slots=8)
    assert sorted(discard(name)) == ["counters", "ledger", "mem"]
    refused("E_NO_REGION", Region.attach, name)


def test_what_is_not_kept_does_not(name):
    orphaned(name, owners=2)
    assert f"{name}.mem" in sweep() and not path(name, "ledger").exists()


def test_whoever_takes_over_is_the_maker_and_finds_the_rings(name):
    orphaned(name, owners=2, kept=True)
    with Region.attach(name) as region:
        region.take_over()
        header = segment.peek(name, "mem")
        assert header["owner_pid"] == os.getpid() and segment.alive(header) and region.made_here
        assert [ring["owner"] for ring in region.rings()] == [2]
        assert region.view.ring(0).slot(0)[1] == 60, "as its maker left it"
        index, _ = region.make_ring(RX, 8, "right rx0")
        assert index == 1, "the ring that was there is not made anew"
        region.drop_ring(0, region.pool_of(2))
        assert region.pool_of(2).free == 16
    assert not path(name, "mem").exists(), "the maker unlinks"


def test_a_kept_region_that_never_became_ready_is_swept(name):
    killed_after(f"""
from pktring.shm.region import make_segment
made = make_segment({name!r}, "engine", 8192, 4, kept=True)
print(flush=True)""")
    assert path(name, "engine").exists()
    assert f"{name}.engine" in sweep()


# ---- other segments ----


def test_an_engines_segment_is_joined_only_when_it_is_ready(name):
    made = make_segment(name, "engine", 65536, _shm.PR_ENGINE, 0o600, generation=7)
    refused("E_NO_REGION", join_segment, name, "engine")
    made.map[5000:5005] = b"hello"
    made.publish()
    joined = join_segment(name, "engine")
    assert joined.map[5000:5005] == b"hello" and joined.header["generation"] == 7 and not joined.made
    assert stat.S_IMODE(path(name, "engine").stat().st_mode) == 0o600
    refused("E_NAME_BUSY", make_segment, name, "engine", 65536, _shm.PR_ENGINE)
    made.retire()
    refused("E_NO_REGION", join_segment, name, "engine")
    assert joined.map[5000:5005] == b"hello", "whoever has it mapped keeps it"


def test_a_segment_of_another_kind_or_size_is_refused(name):
    made = make_segment(name, "engine", 65536, _shm.PR_ENGINE)
    made.publish()
    refused("E_ABI", join_segment, name, "engine", _shm.PR_LEDGER)
    os.truncate(path(name, "engine"), 32768)
    refused("E_ABI", join_segment, name, "engine")
    made.retire()


def test_a_sparse_segment_holds_what_was_reserved_and_no_more(name):
    made = make_segment(name, "engine", 64 << 20, _shm.PR_ENGINE, reserve=65536)
    assert len(made.map) == 64 << 20
    assert path(name, "engine").stat().st_blocks * 512 <= 1 << 20
    made.reserve_range(32 << 20, 1 << 20)
    assert path(name, "engine").stat().st_blocks * 512 >= 65536 + (1 << 20)
    made.publish()
    joined = join_segment(name, "engine")
    joined.reserve_range(8 << 20, 4096)
    made.retire()


def test_reserving_more_than_there_is_is_refused_and_leaves_it_as_it_was(name):
    room = os.statvfs("/dev/shm")
    size = (room.f_blocks * room.f_frsize + (64 << 20)) & ~(mmap.PAGESIZE - 1)  # more than all of it: nothing is even tried
    made = make_segment(name, "engine", size + 65536, _shm.PR_ENGINE, reserve=65536)
    assert "need" in refused("E_SHM_SPACE", made.reserve_range, 65536, size)
    assert path(name, "engine").stat().st_blocks * 512 <= 1 << 20
    made.retire()
