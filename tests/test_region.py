"""Regions: made whole or not at all, attached only after every check, gone when their maker is."""

import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import posix_ipc
import pytest

from pktring.shm import _shm, region
from pktring.shm.errors import Error
from pktring.shm.region import RX, TX, Region

PARTS = ("mem", "ledger", "counters")


@pytest.fixture
def name(request):
    return f"test-{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"


@pytest.fixture
def made(name):
    with Region.create(name, rings=4, slots=16) as made:
        yield made


def path(name, part):
    return Path(f"/dev/shm/{region.PREFIX}{name}.{part}")


def refused(code, function, *args, **kwargs):
    with pytest.raises(Error) as why:
        function(*args, **kwargs)
    assert why.value.code == code, why.value
    assert ": " in why.value.text, "says what to do"
    return str(why.value)


def test_a_region_is_three_segments_that_vanish_with_it(name):
    with Region.create(name, rings=2, slots=8):
        assert all(path(name, part).exists() for part in PARTS)
    assert not any(path(name, part).exists() for part in PARTS)


def test_modes_survive_the_umask_and_the_ledger_stays_private(name):
    old = os.umask(0o077)
    try:
        with Region.create(name, rings=2, slots=8, mode=0o660):
            assert [stat.S_IMODE(path(name, p).stat().st_mode) for p in PARTS] == [0o660, 0o600, 0o664]
    finally:
        os.umask(old)


def test_every_page_is_allocated_at_once(made, name):
    assert path(name, "mem").stat().st_blocks * 512 >= made.geometry["size"]


def test_another_process_sees_the_same_rings_and_bytes(made, name):
    index, ring = made.make_ring(TX, 8, "shared tx0")
    ring.put([b"hello, ring!!!"])
    code = f"""
from pktring.shm.region import Region
r = Region.attach({name!r}); ring = r.view.ring({index})
i, n, flags, _ = ring.slot(0)
at = r.view.buffer_offset(i)
print(ring.head, ring.num_slots, bytes(r.mem[at:at+n]).decode(), r.generation)
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.split() == ["1", "8", "hello,", "ring!!!", str(made.generation)]
    assert path(name, "mem").exists(), "an attacher that exits removes nothing"


def test_a_name_in_use_is_refused_and_left_alone(made, name):
    said = refused("E_NAME_BUSY", Region.create, name, rings=2, slots=8)
    assert str(os.getpid()) in said
    assert Region.attach(name).generation == made.generation


def test_a_strangers_file_under_the_name_is_squatted(name):
    path(name, "mem").write_bytes(b"x" * 8192)
    try:
        refused("E_NAME_SQUATTED", Region.create, name, rings=2, slots=8)
        refused("E_NAME_SQUATTED", Region.attach, name)
        assert path(name, "mem").read_bytes() == b"x" * 8192
    finally:
        path(name, "mem").unlink()


@pytest.mark.needs("host_root")
def test_a_segment_of_another_user_is_not_mapped(made, name):
    os.chown(path(name, "ledger"), 65534, 65534)
    assert "65534" in refused("E_NAME_SQUATTED", Region.attach, name)


def test_attaching_to_nothing_says_so(name):
    refused("E_NO_REGION", Region.attach, name)


@contextmanager
def altered(name, part, field, value):
    """Overwrite one header field, and put it back."""
    offset, size = _shm.LAYOUT[f"pr_header.{field}"]
    with open(path(name, part), "r+b") as file:
        file.seek(offset)
        old = file.read(size)
        file.seek(offset)
        file.write(value.to_bytes(size, "little"))
    try:
        yield
    finally:
        with open(path(name, part), "r+b") as file:
            file.seek(offset)
            file.write(old)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("magic", 0, "E_NAME_SQUATTED"),
        ("abi_major", 99, "E_ABI"),
        ("layout_hash", 1, "E_ABI"),
        ("size", 4096, "E_ABI"),
        ("state", 0, "E_NO_REGION"),
        ("state", 2, "E_NO_REGION"),
        ("generation", 1, "E_GENERATION"),
        ("geometry", 1 << 200, "E_ABI"),
    ],
)
def test_each_field_of_the_header_is_checked(made, name, part, field, value, code):
    before = path(name, part).read_bytes()
    with altered(name, part, field, value):
        refused(code, Region.attach, name)
    assert path(name, part).read_bytes() == before, "nothing was written"
    Region.attach(name)


def test_a_wanted_generation_must_match(made, name):
    refused("E_GENERATION", Region.attach, name, generation=made.generation + 1)


def test_a_truncated_segment_is_refused(made, name):
    os.truncate(path(name, "mem"), 65536)
    refused("E_ABI", Region.attach, name)


@pytest.mark.parametrize("sizes", [{"stride": 100}, {"stride": 1 << 20}, {"slots": 1 << 30}, {"buffers": 1 << 30}])
def test_sizes_that_make_no_sense_are_refused(name, sizes):
    refused("E_REGION", Region.create, name, **({"rings": 2, "slots": 8} | sizes))


def test_more_than_dev_shm_holds_is_refused_and_leaves_nothing(name):
    before = set(os.listdir("/dev/shm"))
    said = refused("E_SHM_SPACE", Region.create, name, rings=2, slots=8, buffers=16_000_000, stride=65536)
    assert "need" in said and "free" in said
    assert set(os.listdir("/dev/shm")) == before


def test_too_many_rings_or_buffers_are_refused_and_give_all_back(name):
    with Region.create(name, rings=2, slots=8, buffers=20) as r:
        free = r.pool.free
        r.make_ring(RX, 8, "a")
        r.make_ring(TX, 8, "b")
        refused("E_REGION_FULL", r.make_ring, RX, 8, "c")
        r.drop_ring(0)
        r.drop_ring(1)
        assert r.pool.free == free
        refused("E_REGION", r.make_ring, RX, 16, "too long for this region")
        assert r.pool.free == free


def test_a_dropped_ring_gives_back_the_buffers_that_lie_in_it_now(made):
    free = made.pool.free
    a, rx = made.make_ring(RX, 8, "a")
    b, tx = made.make_ring(TX, 8, "b")
    x, y = rx.slot(0), tx.slot(0)
    rx.set_slot(0, y[0], 0, 0)
    tx.set_slot(0, x[0], 0, 0)
    made.drop_ring(a)
    made.drop_ring(b)
    assert made.pool.free == free


def test_a_killed_makers_segments_are_swept_by_the_next(name):
    code = f"""
import time
from pktring.shm.region import Region
r = Region.create({name!r}, rings=2, slots=8)
print(1, flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path(name, "mem").exists()
    with Region.create(name, rings=2, slots=8) as r:
        assert r.generation > 0
    assert not path(name, "mem").exists()


def test_a_forked_child_does_not_clean_up_after_its_parent(made, name):
    pid = os.fork()
    if pid == 0:
        made.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path(name, "mem").exists()


def test_the_kernel_and_ledger_are_out_of_the_apps_reach(made):
    """Engine state is in another segment than what an app maps writable."""
    made.make_ring(RX, 8, "a")
    view = bytes(made._maps["mem"][:])
    made.view.ring(0)
    words = bytes(made._maps["ledger"][4096 : 4096 + 8 * 20])
    assert any(words) and words not in view


def test_counters_can_be_read_through_a_read_only_mapping(made, name):
    _, ring = made.make_ring(TX, 8, "veth0 tx0")
    ring.put([bytes(60)] * 3)
    with open(path(name, "counters"), "rb") as file:
        seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    (row,) = [region.named(r) for r in _shm.rows(seen)]
    assert row["row"] == "veth0 tx0" and row["tx_queued"] == 3
    with pytest.raises(TypeError):
        seen[0:1] = b"x"


def test_eight_makers_of_one_name_one_wins(name):
    code = f"""
import sys, time
from pktring.shm.region import Region
from pktring.shm.errors import Error
sys.stdin.readline()
try:
    r = Region.create({name!r}, rings=2, slots=8)
    print("won", flush=True); sys.stdin.readline(); r.close()
except Error as e:
    print(e.code, flush=True)
"""
    makers = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    time.sleep(0.3)
    for m in makers:
        m.stdin.write("\n")
        m.stdin.flush()
    said = [m.stdout.readline().strip() for m in makers]
    for m in makers:
        m.communicate("\n", timeout=10)
    assert said.count("won") == 1, said
    assert all(s in ("won", "E_NAME_BUSY", "E_NAME_SQUATTED") for s in said)
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.SharedMemory(f"/{region.PREFIX}{name}.mem")
