"""Capture files for tests: every block crafted by hand, and rings to read them into and write them from."""

import itertools
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pktring.shm import _shm
from pktring.shm.region import RX, TX, Region

UNSANITIZED = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # for programs that are not ours

_numbers = itertools.count()
OUTGOING, TRUNCATED = 1, 8  # PR_META_
MOREFRAG = 0x20


# ---- files by hand ----


def pcap(records: Iterable[tuple], order: str = "<", ns: bool = False, link: int = 1, version: tuple[int, int] = (2, 4)) -> bytes:
    """A pcap file; a record is (time in ns, bytes) or (time in ns, bytes, length on the wire)."""
    unit = 1 if ns else 1000
    out = struct.pack(order + "IHHiIII", 0xA1B23C4D if ns else 0xA1B2C3D4, *version, 0, 0, 262144, link)
    for ts, data, *wire in records:
        out += struct.pack(order + "IIII", ts // 10**9, ts % 10**9 // unit, len(data), *wire or (len(data),)) + data
    return out


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def options(order: str, pairs: Sequence[tuple[int, bytes]], end: bool = True) -> bytes:
    out = b"".join(struct.pack(order + "HH", code, len(value)) + padded(value) for code, value in pairs)
    return out + bytes(4) if pairs and end else out


def block(order: str, kind: int, body: bytes) -> bytes:
    total = 12 + len(padded(body))
    return struct.pack(order + "II", kind, total) + padded(body) + struct.pack(order + "I", total)


def shb(order: str = "<", version: tuple[int, int] = (1, 0), opts: Sequence[tuple[int, bytes]] = ()) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1) + options(order, opts))


def idb(order: str = "<", link: int = 1, snaplen: int = 0, opts: Sequence[tuple[int, bytes]] = ()) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snaplen) + options(order, opts))


def epb(data: bytes, units: int = 0, interface: int = 0, order: str = "<", wire: int | None = None, opts: Sequence = ()) -> bytes:
    head = struct.pack(order + "IIIII", interface, units >> 32, units & 0xFFFFFFFF, len(data), len(data) if wire is None else wire)
    return block(order, 6, head + padded(data) + options(order, opts))


def pb(data: bytes, units: int = 0, interface: int = 0, order: str = "<", drops: int = 0xFFFF, opts: Sequence = ()) -> bytes:
    head = struct.pack(order + "HHIIII", interface, drops, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
    return block(order, 2, head + padded(data) + options(order, opts))


def spb(data: bytes, order: str = "<", wire: int | None = None) -> bytes:
    return block(order, 3, struct.pack(order + "I", len(data) if wire is None else wire) + data)


def isb(interface: int, stats: Sequence[tuple[int, int]], order: str = "<") -> bytes:
    opts = [(code, struct.pack(order + "Q", value)) for code, value in stats]
    return block(order, 5, struct.pack(order + "III", interface, 0, 0) + options(order, opts))


# ---- rings ----


@dataclass(frozen=True)
class Frame:
    """A frame and what its metadata says."""

    data: bytes
    ts_ns: int = 0
    wire_len: int = 0  # 0 = as many bytes as there are
    port: int = 0
    flags: int = 0


class Rings:
    """A receive and a transmit ring of a region of their own."""

    def __init__(self, region: Region, slots: int):
        self.region = region
        self.rx = region.make_ring(RX, slots, "test rx0")[1]
        self.tx = region.make_ring(TX, slots, "test tx0")[1]

    def row(self, label: str) -> dict:
        return next(row for row in self.region.counters() if row["row"] == label)

    @property
    def received(self) -> dict:
        return self.row("test rx0")

    @property
    def sent(self) -> dict:
        return self.row("test tx0")

    def _meta(self, ring: _shm.Ring, start: int, field: str) -> tuple[int, int]:
        offset, size = _shm.LAYOUT[f"pr_meta.{field}"]
        return self.region.geometry["meta_ofs"] + 64 * ring.slot(start)[0] + offset, size

    def take(self) -> list[Frame]:
        """What is in the receive ring; it is empty afterwards."""
        starts = array("I", bytes(4 * self.rx.num_slots))
        n, end = self.rx.peek(starts, len(starts))
        got = []
        for start in starts[:n]:
            where = self.rx.frame(start)
            data = where if isinstance(where, bytes) else bytes(self.region.mem[where[0] : sum(where)])
            values = []
            for field in ("ts_ns", "wire_len", "port", "flags"):
                at, size = self._meta(self.rx, start, field)
                values.append(int.from_bytes(self.region.mem[at : at + size], "little"))
            got.append(Frame(data, *values))
        self.rx.release(end, n)
        return got

    def read(self, device: object, syncs: int = 10_000) -> list[Frame]:
        """Everything that a device receives until its end."""
        self.rx.bind(device)
        got: list[Frame] = []
        for _ in range(syncs):
            ended = self.rx.device_flags & _shm.PR_DEV_END
            self.rx.sync()
            got += self.take()
            if ended:
                return got
        raise AssertionError("no end")

    def queue(self, frames: Sequence[Frame]) -> int:
        """Put frames into the transmit ring; how many found room."""
        room = self.region.geometry["buf_stride"] - _shm.HEADROOM
        for k, frame in enumerate(frames):
            at = self.tx.head
            if not self.tx.put([frame.data]):
                return k
            assert (self.tx.head - at) % self.tx.num_slots == max(-(-len(frame.data) // room), 1)
            for field in ("ts_ns", "wire_len", "port", "flags"):
                ofs, size = self._meta(self.tx, at, field)
                self.region.mem[ofs : ofs + size] = getattr(frame, field).to_bytes(size, "little")
        return len(frames)

    def write(self, device: object, frames: Sequence[Frame]) -> int:
        """Send frames through a device as far as it takes them; how many were put into the ring."""
        self.tx.bind(device)
        done = 0
        while done < len(frames):
            n = self.queue(frames[done : done + 100])
            done += n
            if self.tx.sync() == 0 and n == 0:
                break
        return done

    @property
    def waiting(self) -> int:
        """Slots of frames that are still in the transmit ring."""
        return self.tx.num_slots - 1 - self.tx.ready

    def balanced(self) -> bool:
        """Whatever was queued was sent, dropped under a name, or is in the ring."""
        row = self.sent
        drops = sum(v for k, v in row.items() if k.startswith("drop_"))
        return row["tx_queued"] == row["tx_frames"] + drops + self.frames_waiting()

    def frames_waiting(self) -> int:
        at, n = self.tx.hwcur, 0
        for _ in range(self.waiting):
            n += not self.tx.slot(at)[2] & MOREFRAG
            at = (at + 1) % self.tx.num_slots
        return n


@contextmanager
def rings(slots: int = 256, stride: int = 2048):
    with Region.create(f"test-captures-{os.getpid()}-{next(_numbers)}", rings=2, slots=slots, stride=stride) as region:
        yield Rings(region, slots)
