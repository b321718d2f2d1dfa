"""Workers are killed under fire, and their heirs go on: nothing twice, a burst lost at most, every loss declared."""

import contextlib
import ctypes
import errno
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import captures
import ckernel
import pytest
from command import eventually
from conservation import unaccounted
from frames import numbered
from lab import End, Lab
from live import heard
from test_forward import super_frame

from pktring.drivers import null
from pktring.drivers import pcap as pcap_driver
from pktring.drivers.af_packet import AfPacket
from pktring.drivers.netns import entered
from pktring.drivers.tap import Tap
from pktring.shm import _shm
from pktring.shm.errors import Error
from pktring.shm.region import COUNTER, RX, TX, Region

BURST = 64
KILLS = 20
BLAST = 400
SIZE = 64
PR_SET_PDEATHSIG = 1


@pytest.fixture(scope="module")
def heir():
    lib = ckernel.load((Path(__file__).resolve().parent / "heir_kernel.c").read_text())
    lib.work.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    lib.send_all.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
    lib.kill_at.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
    return lib


@pytest.fixture
def region(request):
    with Region.create(f"test-mend-{os.getpid()}", rings=4, slots=512, buffers=2 + 2 * 2048, owners=2) as region:
        yield region


def handle(ring):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return get(ring.capsule, b"pktring.ring")


def crashed(region):
    return sum(row["drop_crash"] for row in region.counters())


# ---- under fire ----


class Workers:
    """One at a time, each forked from here over the same devices; the first finds nothing to mend."""

    def __init__(self, heir, region, source, target):
        self.heir, self.region = heir, region
        pool = region.pool_of(1)
        self.rings = [region.make_ring(way, 512, f"w {name}0", pool=pool)[1] for way, name in ((RX, "rx"), (TX, "tx"))]
        self.rings[0].bind(source.queues[0].device)
        self.rings[1].bind(target.queues[0].device)
        for ring in self.rings:
            ring.burst = BURST
        self.gen = 0
        self.pid = 0
        self.found: list[dict] = []

    def start(self, idle_ms=0):
        """The next one mends, then works until it is killed, or until it has been idle so long."""
        self.gen += 1
        self.found.append(self.region.mend(1, self.region.pool_of(1, self.gen)))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                lost = [ring.resume() for ring in self.rings]
                os._exit(3 if min(lost) < 0 else self.heir.work(*map(handle, self.rings), idle_ms) & 0xFF)
            finally:
                os._exit(4)

    def kill(self, blast=None, at=0):
        """Kill it, when so many frames of the blast are on their way to it."""
        if blast:
            self.heir.kill_at(self.pid, ctypes.byref(blast.sent), at)
        else:
            os.kill(self.pid, signal.SIGKILL)
        self.ended(signal.SIGKILL)

    def ended(self, by=0):
        pid, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert os.WTERMSIG(status) == by and os.WEXITSTATUS(status) == 0, status

    def close(self):
        if self.pid:
            self.kill()


@contextlib.contextmanager
def wired(lab, kind):
    """(where frames are sent, where they arrive, the device between that receives, the one that sends)"""
    ns = lab.namespace("middle")
    with contextlib.ExitStack() as stack:
        if kind == "tap":
            source, target = (stack.enter_context(contextlib.closing(Tap(name, netns_name=ns))) for name in ("ta", "tb"))
            ends = End(ns, "ta"), End(ns, "tb")
            for end in ends:
                lab.change(ns, end.name, state="up")
        else:
            a, b, fa, fb = End(lab.namespace("a"), "va"), End(lab.namespace("b"), "vb"), End(ns, "fa"), End(ns, "fb")
            lab.veth(a, fa)
            lab.veth(b, fb)
            ends = a, b
            options = {"rx": kind}
            source = stack.enter_context(contextlib.closing(AfPacket("fa", take=True, netns_name=ns, options=options)))
            target = stack.enter_context(contextlib.closing(AfPacket("fb", take=True, netns_name=ns, options=options)))
        yield *ends, source, target


class Blast(threading.Thread):
    """Numbered frames, as fast as one can, from a socket that is ready before."""

    def __init__(self, heir, end, first):
        super().__init__(daemon=True)
        self.heir, self.sent = heir, ctypes.c_uint32()
        self.frames = b"".join(numbered(first + i, SIZE) for i in range(BLAST))
        with entered(end.netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.bind((end.name, 0))
        self.start()

    def run(self):
        self.heir.send_all(self.sock.fileno(), self.frames, BLAST, SIZE, ctypes.byref(self.sent))

    def over(self):
        self.join(10)
        self.sock.close()
        assert self.sent.value == BLAST


def settled(got):
    """Wait until nothing arrives any more."""
    seen, since = len(got), time.monotonic()
    while time.monotonic() - since < 0.05:
        time.sleep(0.005)
        if len(got) != seen:
            seen, since = len(got), time.monotonic()


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["frames", "blocks", "tap"])
def test_killed_under_fire_twenty_times_it_loses_a_burst_each_and_declares_it(heir, region, kind):
    chance = random.Random(kind)
    with Lab() as lab, wired(lab, kind) as (a, b, source, target), contextlib.closing(Workers(heir, region, source, target)) as workers:
        with heard(b.netns) as got:
            workers.start()
            for k in range(10 * KILLS):
                if k >= KILLS and crashed(region):
                    break
                blast = Blast(heir, a, k * BLAST)
                workers.kill(blast, chance.randrange(1, BLAST))
                workers.start()
                blast.over()
                settled(got)
            workers.kill()
            workers.start(idle_ms=200)
            workers.ended()
            workers.rings[0].stats()
    assert got == sorted(set(got)), "twice, or out of order"
    kills = workers.gen - 2
    lost = [BLAST - sum(k * BLAST <= i < (k + 1) * BLAST for i in got) for k in range(kills)]
    row = {way: row for row in region.counters() for way in ("rx", "tx") if way in row["row"]}
    declared = {way: row[way]["drop_crash"] for way in row}
    print(f"\n{kind}: {kills} kills, lost {sum(lost)} (at most {max(lost)}), declared {declared}")
    assert max(lost) <= BURST
    assert row["rx"]["drop_kernel"] == 0 == row["rx"]["drop_tap_queue"]
    assert sum(lost) <= crashed(region) <= kills * 2 * BURST
    assert crashed(region) > 0, "no kill hit a burst"
    assert not any(unaccounted(region).values()), unaccounted(region)
    assert sum(region.pool_of(1, workers.gen).count().values()) == region.geometry["buf_num"]
    assert region.pool.count()["owned"] == 2 * 512, "every buffer is in a slot, or home"


# ---- each kind of device goes on where the dead one stood ----


def in_a_child(work):
    """Do it in a child that is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(4)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status


def inherited(rings, *which):
    """Go on with the rings of a dead process. -> frames declared lost"""
    found = rings.region.mend(1, rings.region.pool_of(1, 1))
    return found["lost"] + sum(ring.resume() for ring in which)


@pytest.fixture
def rings():
    with captures.rings() as rings:
        yield rings


def frames_of(n):
    return [captures.Frame(numbered(i, 60 + i % 900), ts_ns=1000 + i) for i in range(n)]


def test_a_file_that_is_written_ends_behind_its_last_whole_record_and_goes_on(rings, tmp_path):
    path, frames = tmp_path / "out.pcapng", frames_of(450)
    writer = pcap_driver.open(str(path), {}, direction="tx")
    rings.tx.bind(writer.queues[0].device)

    def work():
        assert rings.write(writer.queues[0].device, frames[:400]) == 400
        assert rings.queue(frames[400:430]) == 30
        with open(path, "ab") as file:
            file.write(b"half a record that nobody was told of")

    in_a_child(work)
    assert inherited(rings, rings.tx) == 0
    rings.write(writer.queues[0].device, frames[430:])
    assert rings.sent["tx_frames"] == 450 and rings.balanced()
    writer.close()
    reader = pcap_driver.open(str(path), {})
    assert [f.data for f in rings.read(reader.queues[0].device)] == [f.data for f in frames]


def test_what_is_in_the_file_already_is_not_written_again(rings, tmp_path):
    """Killed after the file had them and before the ring was told."""
    path, frames = tmp_path / "out.pcapng", frames_of(40)
    writer = pcap_driver.open(str(path), {}, direction="tx")
    rings.tx.bind(writer.queues[0].device)
    before = bytearray(4 * 12)
    kring = _shm.LAYOUT["pr_kring"][1]
    ledger = rings.region._maps["ledger"]
    at = rings.region.geometry["ledger_size"]  # the last page holds nothing but krings
    at = next(k for k in range(4096, at, 64) if int.from_bytes(ledger[k + 16 : k + 24], "little") == rings.region.geometry["ring_ofs"])
    at += kring  # the transmit ring's

    def work():
        rings.queue(frames[:10])
        rings.tx.sync()
        before[:] = ledger[at : at + 48]
        rings.queue(frames[10:])
        rings.tx.sync()
        ledger[at : at + 12] = before[:12]  # hwcur, hwtail, rhead
        ledger[at + 40 : at + 44] = before[40:44]  # doubt

    in_a_child(work)
    rings.tx.count(COUNTER["tx_queued"], 30)  # and had not counted them: as many too few sent
    assert inherited(rings, rings.tx) == 30
    rings.tx.sync()
    writer.close()
    reader = pcap_driver.open(str(path), {})
    assert [f.data for f in rings.read(reader.queues[0].device)] == [f.data for f in frames]


def test_what_is_not_a_file_is_ended_by_its_writers_death(rings):
    into, out = os.pipe()
    writer = pcap_driver.Writer(out, [pcap_driver.Interface("x")])
    rings.tx.bind(writer.queues[0].device)
    in_a_child(lambda: rings.write(writer.queues[0].device, frames_of(10)))
    inherited(rings, rings.tx)
    assert rings.tx.device_error == errno.EPIPE and writer.paused == "error"
    os.close(into)


def test_a_file_that_is_read_goes_on_behind_what_was_taken(rings, tmp_path):
    path, frames = tmp_path / "in.pcap", frames_of(900)
    path.write_bytes(captures.pcap([(f.ts_ns * 1000, f.data) for f in frames]))
    reader = pcap_driver.open(str(path), {})
    rings.rx.bind(reader.queues[0].device)

    def work():
        for _ in range(2):
            rings.rx.sync()
            rings.take()
        rings.rx.sync()  # these lie in the ring, and stay

    in_a_child(work)
    taken = rings.received["delivered"]
    assert 0 < taken < rings.received["rx_frames"] < 900
    assert inherited(rings, rings.rx) == 0
    got = rings.take() + rings.read(reader.queues[0].device)
    assert [f.data for f in got] == [f.data for f in frames[taken:]]
    assert rings.received["rx_kernel"] == 900 == rings.received["delivered"]


def test_the_null_device_comes_to_the_same_end(rings):
    device = null.open("", {"len": "60", "count": "1000"}).queues[0].device
    rings.rx.bind(device)

    def work():
        rings.rx.sync()
        rings.take()
        rings.rx.sync()

    in_a_child(work)
    assert inherited(rings, rings.rx) == 0
    rings.take()
    rings.read(device)
    assert rings.received["delivered"] == 1000 == rings.received["rx_kernel"]


# ---- super-frames ----


@pytest.fixture
def wire():
    with Lab() as lab:
        yield lab, *lab.pair()


def supers(lab, end, *payloads, size=1400):
    with lab.inside(end.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        sock.bind((end.name, 0))
        for payload in payloads:
            sock.send(super_frame(payload, size))


@pytest.mark.needs("root")
def test_a_super_frame_that_was_fetched_is_lost_with_him_and_the_next_is_not_taken_for_it(wire):
    lab, a, b = wire
    payloads = [os.urandom(60_000 - k) for k in range(4)]
    with (
        captures.rings(slots=64) as rings,
        contextlib.closing(AfPacket(b.name, take=True, netns_name=b.netns, options={"rx": "frames"})) as device,
    ):
        rings.rx.bind(device.queues[0].device)
        supers(lab, a, *payloads)
        in_a_child(rings.rx.sync)  # the second has left the socket, and waits for slots
        assert inherited(rings, rings.rx) == 1
        got = rings.take()
        eventually(lambda: rings.rx.sync() >= 0 and got.extend(rings.take()) or len(got) >= 3 * 43, 5)
        assert b"".join(f.data[54:] for f in got) == payloads[0] + payloads[2] + payloads[3]
        assert not any(unaccounted(rings.region).values())


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["frames", "blocks"])
def test_a_burst_limits_a_sync_but_for_the_pieces_of_one_super_frame(wire, kind):
    lab, a, b = wire
    with (
        captures.rings(slots=512) as rings,
        contextlib.closing(AfPacket(b.name, take=True, netns_name=b.netns, options={"rx": kind})) as device,
    ):
        rings.rx.bind(device.queues[0].device)
        rings.rx.burst = 64
        lab.send(a, [numbered(i) for i in range(100)])
        time.sleep(0.05)
        assert [rings.rx.sync(), len(rings.take()), rings.rx.sync(), len(rings.take())] == [64, 64, 36, 36]
        lab.send(a, [numbered(1)])
        supers(lab, a, os.urandom(60_000), size=500)
        time.sleep(0.05)
        assert [rings.rx.sync(), rings.rx.sync()] == [1, 120]
        assert len(rings.take()) == 121


# ---- limits and suspicion ----


def test_a_burst_that_a_frame_may_not_fit_is_refused(rings):
    rings.rx.bind(null.open("", {"len": "60"}).queues[0].device)
    assert rings.rx.burst == 0 and rings.rx.sync() == 255
    rings.take()
    rings.rx.burst = 64
    assert rings.rx.sync() == 64
    for wrong in (1, 63):
        with pytest.raises(ValueError, match=str(wrong)):
            rings.rx.burst = wrong
    assert rings.rx.burst == 64


def test_suspect_state_is_refused(rings):
    rings.tx.count(COUNTER["tx_frames"], 1)
    with pytest.raises(Error) as why:
        rings.region.mend(1, rings.region.pool_of(1, 1))
    assert why.value.code == "E_LEDGER" and "anew" in why.value.text
    assert rings.tx.resume() == -1


def test_only_an_owners_own_pool_mends_its_rings(region):
    with pytest.raises(Error) as why:
        region.mend(1, region.pool_of(2))
    assert why.value.code == "E_OWNER"
    with Region.create(f"other-{os.getpid()}", rings=2, slots=8) as other, pytest.raises(TypeError):
        region.mend(1, other.pool)


def test_mending_what_is_whole_changes_nothing(region):
    pool = region.pool_of(1)
    rings = [region.make_ring(way, 256, f"{way}", pool=pool)[1] for way in (RX, TX)]
    rings[1].put([numbered(i) for i in range(20)])
    before = [[ring.slot(i) for i in range(256)] for ring in rings]
    found = region.mend(1, region.pool_of(1, 5))
    assert found == {"rings": 2, "slots": 0, "doubt": 0, "reclaimed": 0, "torn": 0, "missing": 0, "lost": 0}
    assert [[ring.slot(i) for i in range(256)] for ring in rings] == before
    assert region.pool_of(1, 5).owns(before[0][0][0]) and not pool.owns(before[0][0][0])
