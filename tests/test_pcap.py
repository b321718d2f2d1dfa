"""Capture files: what we write, everybody reads; what others wrote, we read; what is damaged says where, and nothing worse."""

import contextlib
import gc
import gzip
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import captures
import ckernel
import pcapng
import pytest
from captures import MOREFRAG, OUTGOING, TRUNCATED, Frame, block, epb, idb, isb, pb, pcap, shb, spb
from hypothesis import given, settings
from hypothesis import strategies as st

from pktring.drivers import pcap as driver
from pktring.drivers.pcap import Interface, Stats, Writer, open_reader
from pktring.drivers.rotation import Rotation
from pktring.shm.errors import Error

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))

T0 = 1_700_000_000_123_456_789
HEAD = bytes(range(12)) + b"\x88\xb5"


@pytest.fixture(scope="module")
def rings():
    with captures.rings() as rings:
        yield rings


@pytest.fixture
def fresh():
    """Rings of a test that ends with something in them."""
    with captures.rings() as rings:
        yield rings


def some_frames(n, size=100, **meta):
    return [Frame(HEAD + bytes([i % 256]) * (size - 14), T0 + i * 1001, **meta) for i in range(n)]


def device(port):
    return port.queues[0].device


@contextlib.contextmanager
def closing(port):
    try:
        yield port
    finally:
        port.close()


def read(rings, path, **keys):
    """-> (frames, the closed reader)."""
    with closing(open_reader(path, **keys)) as reader:
        return rings.read(device(reader)), reader


def write(rings, path, frames, interfaces=(), **keys):
    with closing(Writer(path, interfaces or [Interface("eth0")], **keys)) as writer:
        assert rings.write(device(writer), frames) == len(frames)
    return writer


def bytes_of(frames):
    return [f.data for f in frames]


# ---- round trips ----


@pytest.mark.parametrize("slots_of", [256, 2048, 16384])
def test_what_is_written_is_read_again(tmp_path, slots_of):
    frames = [
        Frame(bytes([i % 251]) * n, T0 + i, n + 7 if i % 3 == 0 else 0, i % 2, OUTGOING * (i % 5 == 0))
        for i, n in enumerate([0, 1, 13, 14, 60, 1514, 1792, 1793, 9000, 15000, 64, 65, 66, 67])
    ]
    with captures.rings(slots=256, stride=max(slots_of, 512)) as rings:
        write(rings, tmp_path / "a", frames, [Interface("eth0"), Interface("eth1")])
        got, _ = read(rings, tmp_path / "a")
        assert rings.balanced()
    expected = [Frame(f.data, f.ts_ns, f.wire_len, f.port, f.flags | TRUNCATED * (f.wire_len > 0)) for f in frames]
    assert got == expected


@given(st.lists(st.tuples(st.binary(max_size=3000), st.integers(0, 2**64 - 1), st.integers(0, 2), st.booleans()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_frames_come_back_as_they_were(rings, what):
    frames = [Frame(data, max(ts, 1), 0, port, OUTGOING * out) for data, ts, port, out in what]
    fd = os.memfd_create("capture")
    try:
        write(rings, fd, frames, [Interface(f"eth{i}") for i in range(3)])
        os.lseek(fd, 0, os.SEEK_SET)
        assert read(rings, fd)[0] == frames
    finally:
        os.close(fd)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pcapng")
def test_an_independent_reader_finds_every_fact(rings, tmp_path):
    described = Interface("eth0", "left", 96, "tcp port 80", 10**10, "Linux 6", "virtio", b"\2\0\0\0\0\1", port=7)
    stats = [Stats(100, 3, 90, 7, None), Stats()]
    with closing(Writer(tmp_path / "a", [described, Interface("eth1", port=9)], stats=lambda: stats, application="us")) as w:
        rings.write(device(w), [Frame(HEAD + bytes(186), T0, 0, 7), Frame(HEAD, T0 + 1, 0, 9, OUTGOING)])
        w.dropped(0, 5)
        rings.write(device(w), [Frame(HEAD, T0 + 2, 1514, 7)])
        w.dropped(0, 5)
        rings.write(device(w), [Frame(HEAD, T0 + 3, 0, 7)])
    with open(tmp_path / "a", "rb") as file:
        blocks = list(pcapng.FileScanner(file))
    kinds = [type(b).__name__ for b in blocks]
    assert kinds == ["SectionHeader", *2 * ["InterfaceDescription"], *4 * ["EnhancedPacket"], *2 * ["InterfaceStatistics"]]
    head, first, second = blocks[:3]
    assert (head.options["shb_userappl"], head.options["shb_os"]) == ("us", " ".join(os.uname()[0:3:2]))
    named = [first.options[f"if_{k}"] for k in ("name", "description", "os", "speed", "tsresol", "hardware", "MACaddr", "filter")]
    assert named == ["eth0", "left", "Linux 6", 10**10, b"\x09", "virtio", "02:00:00:00:00:01", (0, b"tcp port 80")]
    assert (first.link_type, first.snaplen, second.snaplen) == (1, 96, driver.SNAPLEN)
    packets = blocks[3:7]
    assert [(p.interface_id, p.captured_len, p.packet_len) for p in packets] == [(0, 96, 200), (1, 14, 14), (0, 14, 1514), (0, 14, 14)]
    assert [(p.timestamp_high << 32) + p.timestamp_low for p in packets] == [T0 + i for i in range(4)]
    assert [p.options["epb_flags"].inout for p in packets] == ["inbound", "outbound", "inbound", "inbound"]
    assert [p.options.get("epb_dropcount") for p in packets] == [None, None, 5, None]
    counts = blocks[7].options
    assert [counts[f"isb_{k}"] for k in ("ifrecv", "ifdrop", "filteraccept", "osdrop", "usrdeliv")] == [100, 3, 90, 7, 3]
    assert "isb_ifrecv" not in blocks[8].options and blocks[8].options["isb_usrdeliv"] == 1
    got, reader = read(rings, tmp_path / "a")
    assert [i["stats"] for i in reader.interfaces] == [(100, 3, 90, 7, 3), (None, None, None, None, 1)]
    assert [(i["name"], i["frames"], i["dropped"], i["speed"]) for i in reader.interfaces] == [("eth0", 3, 5, 10**10), ("eth1", 1, 0, 0)]


def test_scapy_reads_what_we_write_and_we_read_what_it_writes(rings, tmp_path):
    from scapy.utils import PcapNgWriter, RawPcapReader, RawPcapWriter, rdpcap

    frames = some_frames(50)
    write(rings, tmp_path / "a", frames)
    got = rdpcap(str(tmp_path / "a"))
    assert [bytes(p) for p in got] == bytes_of(frames)
    assert [round(p.time * 10**9) for p in got] == [f.ts_ns for f in frames]
    for nano in (False, True):
        with RawPcapWriter(str(tmp_path / "b"), linktype=1, nano=nano) as out:
            for p in got:
                out.write(p)
        assert bytes_of(read(rings, tmp_path / "b")[0]) == bytes_of(frames)
        with RawPcapReader(str(tmp_path / "b")) as back:
            assert len(list(back)) == 50
    with PcapNgWriter(str(tmp_path / "c")) as out:
        for p in got:
            out.write(p)
    assert bytes_of(read(rings, tmp_path / "c")[0]) == bytes_of(frames)


def told(cmd):
    """Standard output of a program that must have nothing to complain of."""
    got = subprocess.run(cmd, capture_output=True, text=True, timeout=60, env=captures.UNSANITIZED)
    complaints = [x for x in got.stderr.splitlines() if "as user" not in x and not x.startswith("reading from file")]
    assert got.returncode == 0 and not complaints, got.stderr
    return got.stdout


FIELDS = ("frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.packet_flags_direction", "frame.drop_count")


@pytest.mark.needs("tshark", "capinfos")
def test_wireshark_reads_it_without_a_warning(rings, tmp_path):
    path = tmp_path / "a.pcapng"
    interfaces = [Interface("eth0", "left", filter="ip", speed=10**9, snaplen=64), Interface("eth1", os="Linux")]
    with closing(Writer(path, interfaces, stats=lambda: [Stats(9, 0, 9, 4, 2), Stats(1, 1, 1, 1, 1)])) as w:
        rings.write(device(w), [Frame(HEAD + bytes(86), T0, 0, 0)])
        w.dropped(1, 12)
        rings.write(device(w), [Frame(HEAD + bytes(46), T0 + 1, 0, 1, OUTGOING)])
    rows = told(["tshark", "-r", path, "-T", "fields", *(x for f in FIELDS for x in ("-e", f))]).splitlines()
    assert [row.split("\t") for row in rows] == [
        ["1700000000.123456789", "100", "64", "eth0", "0x00000001", ""],
        ["1700000000.123456790", "60", "60", "eth1", "0x00000002", "12"],
    ]
    info = told(["capinfos", path])
    facts = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in info.splitlines())}
    assert facts["Filter string"] == "ip" and facts["Time resolution"] == "0x09" and "Strict time order:   True" in info
    assert "Number of interfaces in file: 2" in info and "File timestamp precision:  nanoseconds (9)" in info


@pytest.mark.needs("host_root", "tcpdump")  # it changes its user, also to read
def test_tcpdump_reads_it(rings, tmp_path):
    write(rings, tmp_path / "a", some_frames(20))
    assert told(["tcpdump", "-nn", "-tt", "--nano", "-r", tmp_path / "a"]).count("1700000000.1234") == 20


# ---- every form of the formats ----


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ns", [False, True])
def test_pcap_in_both_byte_orders_and_resolutions(rings, tmp_path, order, ns):
    sent = [(T0 + i * 10**9, HEAD + bytes(i)) for i in range(40)]
    (tmp_path / "a").write_bytes(pcap([*sent, (T0, HEAD, 1514)], order, ns))
    got, reader = read(rings, tmp_path / "a")
    unit = 1 if ns else 1000
    assert [(f.ts_ns, f.data) for f in got] == [(ts // unit * unit, data) for ts, data in [*sent, (T0, HEAD)]]
    assert (got[-1].wire_len, got[-1].flags) == (1514, TRUNCATED)
    assert reader.first_ns == got[0].ts_ns and reader.end and reader.interfaces[0]["frames"] == 41


@pytest.mark.parametrize("order", "<>")
def test_every_block_in_both_byte_orders(rings, tmp_path, order):
    def opt(code, fmt, *values):
        return code, struct.pack(order + fmt, *values)

    flags = [opt(2, "I", 0b10), opt(4, "Q", 11)]
    file = [
        shb(order, opts=[(4, b"somebody")]),
        idb(order, snaplen=40, opts=[(2, b"eth0"), opt(9, "B", 9)]),
        epb(HEAD + b"a", T0, order=order, opts=flags),
        block(order, 0x0BAD, bytes(1000)),
        pb(HEAD + b"bc", T0 + 1, order=order, drops=5, opts=[opt(2, "I", 2)]),
        pb(HEAD, T0 + 2, order=order),
        spb(HEAD + bytes(26), order, 1514),
        isb(0, [(4, 1000), (7, 3)], order),
        shb(order),
        idb(order, opts=[(2, b"eth1"), opt(9, "B", 9)]),
        idb(order, opts=[(2, b"eth2"), opt(9, "B", 9)]),
        epb(HEAD, T0 + 3, 1, order=order, wire=99),
        spb(HEAD, order),
    ]
    (tmp_path / "a").write_bytes(b"".join(file))
    got, reader = read(rings, tmp_path / "a")
    assert got == [
        Frame(HEAD + b"a", T0, 0, 0, OUTGOING),
        Frame(HEAD + b"bc", T0 + 1, 0, 0, OUTGOING),
        Frame(HEAD, T0 + 2),
        Frame(HEAD + bytes(26), 0, 1514, 0, TRUNCATED),
        Frame(HEAD, T0 + 3, 99, 2, TRUNCATED),
        Frame(HEAD, 0, 0, 1),
    ]
    assert [(i["name"], i["frames"], i["dropped"]) for i in reader.interfaces] == [("eth0", 4, 16), ("eth1", 1, 0), ("eth2", 1, 0)]
    assert reader.interfaces[0]["stats"] == (1000, None, None, 3, None)
    assert {f.port for f in read(rings, tmp_path / "a", port=77)[0]} == {77}


def test_sections_of_both_byte_orders_in_one_file(rings, tmp_path):
    parts = [shb(o) + idb(o) + epb(HEAD + o.encode(), 1_000_000 * i, order=o) for i, o in enumerate("<>><")]
    (tmp_path / "a").write_bytes(b"".join(parts))
    got, _ = read(rings, tmp_path / "a")
    assert got == [Frame(HEAD + o.encode(), i * 10**9, 0, i) for i, o in enumerate("<>><")]


def exact_ns(units, tsresol, offset):
    second = 2 ** (tsresol & 0x7F) if tsresol & 0x80 else 10**tsresol
    return min(max(int(Fraction(units * 10**9, second)) + offset * 10**9, 0), 2**64 - 1)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 255), st.integers(-(2**63), 2**63 - 1)), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_resolution_and_offset_is_exact(rings, cases):
    cases += [(2**64 - 1, r, o) for r in (0, 6, 9, 10, 28, 29, 127, 0x80, 0x8A, 0xA0, 0xBF, 0xFF) for o in (0, -3, 2**40)]
    opts = [[(9, bytes([r])), (14, struct.pack("<q", o))] for _, r, o in cases]
    file = shb() + b"".join(idb(opts=o) for o in opts) + b"".join(epb(HEAD, c[0], i) for i, c in enumerate(cases))
    fd = os.memfd_create("capture")
    try:
        os.write(fd, file)
        os.lseek(fd, 0, os.SEEK_SET)
        assert [f.ts_ns for f in read(rings, fd)[0]] == [exact_ns(*c) for c in cases]
    finally:
        os.close(fd)


def test_blocks_longer_than_the_buffer_are_passed_over(rings, tmp_path):
    comment = [(1, bytes(65532)) for _ in range(12)]
    first, second = epb(HEAD, 1, opts=comment), epb(HEAD + b"x", 2)
    file = shb() + idb() + first + block("<", 0x99, bytes(3 << 20)) + second + idb(opts=comment) + epb(HEAD, 3, 1)
    (tmp_path / "a").write_bytes(file)
    assert [(f.ts_ns, f.port) for f in read(rings, tmp_path / "a")[0]] == [(1000, 0), (2000, 0), (3000, 1)]


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 5000])
def test_an_interface_name_of_any_length(rings, tmp_path, length):
    (tmp_path / "a").write_bytes(shb() + idb(opts=[(2, b"n" * length)]) + idb(opts=[(2, b"next")]) + epb(HEAD, interface=1))
    reader = read(rings, tmp_path / "a")[1]
    assert [i["name"] for i in reader.interfaces] == ["n" * min(length, 63), "next"]


def test_frames_that_no_ring_can_hold_are_dropped_by_name(tmp_path):
    frames = [HEAD, bytes(20000), HEAD + b"x", bytes(256 * 64), bytes(256 * 64 + 1)]
    (tmp_path / "a").write_bytes(pcap([(0, f) for f in frames]))
    with captures.rings(slots=100, stride=512) as rings:
        got, _ = read(rings, tmp_path / "a")
        assert bytes_of(got) == [HEAD, HEAD + b"x", bytes(256 * 64)]
        row = rings.received
        assert (row["rx_kernel"], row["rx_frames"], row["drop_trunc"]) == (5, 3, 2)


def test_a_frame_that_no_empty_ring_holds_is_dropped(tmp_path):
    (tmp_path / "a").write_bytes(pcap([(0, HEAD), (0, bytes(513)), (0, bytes(512)), (0, HEAD)]))
    with captures.rings(slots=3, stride=512) as rings:
        assert bytes_of(read(rings, tmp_path / "a")[0]) == [HEAD, bytes(512), HEAD]
        assert rings.received["drop_trunc"] == 1


@pytest.mark.parametrize("slots", [3, 4, 7])
def test_a_small_ring_loses_nothing(tmp_path, slots):
    frames = [Frame(HEAD + bytes(i * 37 % 498), i + 1) for i in range(300)]
    (tmp_path / "a").write_bytes(pcap([(f.ts_ns, f.data) for f in frames], ns=True))
    with captures.rings(slots=slots, stride=512) as rings:
        assert read(rings, tmp_path / "a")[0] == frames
        row = rings.received
        assert row["rx_frames"] == row["delivered"] == 300 and row["rx_bytes"] == sum(len(f.data) for f in frames)


def test_a_slot_without_a_buffer_starts_the_ring_anew(fresh, tmp_path):
    (tmp_path / "a").write_bytes(pcap([(0, HEAD)] * 10))
    with closing(open_reader(tmp_path / "a")) as reader:
        fresh.rx.bind(device(reader))
        fresh.rx.set_slot(3, 0, 0, 0)
        assert fresh.rx.sync() == -1
        assert fresh.rx.sync() == -1 and fresh.received["rx_frames"] == 3


def test_only_ethernet_is_read_unless_asked(rings, tmp_path):
    (tmp_path / "a").write_bytes(shb() + idb() + epb(HEAD) + idb(link=113) + epb(b"cooked", interface=1) + epb(HEAD))
    with closing(open_reader(tmp_path / "a")) as reader:
        assert len(rings.read(device(reader))) == 1
        refused("E_PCAP", reader.check, match="interface 1 has link type 113, not Ethernet")
    got, reader = read(rings, tmp_path / "a", any_link=True)
    assert len(got) == 3 and [i["link"] for i in reader.interfaces] == [1, 113]
    reader.check()


# ---- pipes ----


def test_a_pipe_is_read_as_it_comes(rings):
    frames = some_frames(200, 300)
    file = shb() + idb(opts=[(9, b"\x09")]) + b"".join(epb(f.data, f.ts_ns) for f in frames)
    end, feed = os.pipe()

    def trickle():
        for at in range(0, len(file), 333):
            os.write(feed, file[at : at + 333])
        os.close(feed)

    try:
        with closing(open_reader(end)) as reader:
            rings.rx.bind(device(reader))
            assert reader.queues[0].rx_fd == end
            started = time.monotonic()
            assert rings.rx.sync() == 0 and time.monotonic() - started < 1, "an empty pipe is no reason to wait"
            writer = threading.Thread(target=trickle)
            writer.start()
            assert rings.read(device(reader), 10**7) == frames
            writer.join(10)
            reader.check()
    finally:
        os.close(end)


def test_a_closed_reader_receives_nothing_more(fresh, tmp_path):
    (tmp_path / "a").write_bytes(pcap([(0, HEAD)] * 1000))
    reader = open_reader(tmp_path / "a")
    fresh.rx.bind(device(reader))
    assert fresh.rx.sync() == 255
    fresh.take()
    reader.close()
    assert fresh.rx.sync() == 0 and fresh.rx.device_flags & 4


def test_a_ring_keeps_its_device_alive(fresh, tmp_path):
    (tmp_path / "a").write_bytes(pcap([(0, HEAD)] * 9))
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        reader = open_reader(fd)
        fresh.rx.bind(device(reader))
        writer = Writer(tmp_path / "b")
        fresh.tx.bind(device(writer))
        fd_of_writer = writer._fd
        del reader, writer
        gc.collect()
        fresh.queue([Frame(HEAD)])
        assert (fresh.rx.sync(), fresh.tx.sync()) == (9, 1)
        os.close(fd_of_writer)
    finally:
        os.close(fd)


# ---- damage ----


def refused(code, function, *args, match="", **keys):
    with pytest.raises(Error) as why:
        function(*args, **keys)
    assert why.value.code == code, why.value
    assert match in str(why.value), why.value
    return str(why.value)


GOOD = pcap([(0, HEAD)])
SEED = shb() + idb(opts=[(2, b"eth0"), (9, b"\x86")]) + epb(HEAD, 5, opts=[(2, bytes(4))]) + pb(HEAD) + spb(HEAD) + isb(0, [(4, 5)])
OPTION = SEED.index(HEAD) + 16  # where the first packet's option begins
IMPOSSIBLE = [
    (b"", "offset=0 0 bytes are no capture file"),
    (b"\xd4\xc3", "offset=0 2 bytes are no capture file"),
    (gzip.compress(GOOD), "offset=0 magic 1f8b0800 is neither pcap's nor pcapng's (it is gzip's: decompress it first)"),
    (GOOD[:20], "offset=0 the file ends 20 bytes into a record of 24 or more"),
    (pcap([], version=(543, 0)), "offset=4 version 543.0 is not 2"),
    (pcap([]) + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 60), "offset=24 caplen=4294967295 > 262144"),
    (shb()[:8] + b"\1\2\3\4" + shb()[12:], "offset=0 byte-order magic 0x04030201"),
    (shb(version=(2, 0)), "offset=0 version 2.0 is not 1"),
    (shb()[:4] + struct.pack("<I", 29) + shb()[8:], "offset=0 block of 29 bytes"),
    (shb()[:4] + struct.pack("<I", 8) + shb()[8:], "offset=0 block of 8 bytes"),
    (shb()[:-4] + struct.pack("<I", 32), "offset=0 block of 28 bytes in front, 32 behind"),
    (block("<", 0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "offset=0 section header of 16 bytes"),
    (shb() + block("<", 1, bytes(4)), "offset=28 interface block of 16 bytes"),
    (shb() + epb(HEAD), "offset=28 interface 0 is not described before its frame"),
    (shb() + spb(HEAD), "offset=28 interface 0 is not described before its frame"),
    (shb() + idb() + shb() + epb(HEAD), "offset=76 interface 0 is not described before its frame"),
    (shb() + idb() + epb(HEAD, interface=0xFFFFFFFF), "interface 4294967295 is not described"),
    (shb() + idb() + block("<", 6, bytes(16)), "packet block of 28 bytes"),
    (shb() + idb() + block("<", 6, struct.pack("<5I", 0, 0, 0, 0xFFFFFFFD, 60)), "offset=48 caplen=4294967293 > 262144"),
    (shb() + idb() + block("<", 6, struct.pack("<5I", 0, 0, 0, 61, 61) + bytes(60)), "caplen=61 passes the end of a block of 92"),
    (shb() + idb() + spb(HEAD, wire=17), "caplen=17 passes the end of a block of 32"),
    (shb() + idb() + spb(HEAD, wire=0xFFFFFFFF), "caplen=4294967295 > 262144"),
    (shb() + block("<", 1, bytes(8) + struct.pack("<HH", 2, 9) + b"eth0eth"), "offset=28 option 2 of 9 bytes passes the end"),
    (SEED[:OPTION] + struct.pack("<HH", 2, 40) + SEED[OPTION + 4 :], "option 2 of 40 bytes"),
    (shb() + idb() + block("<", 5, bytes(8)) + epb(HEAD), "statistics block of 20 bytes"),
    (shb() + idb() * 4097 + epb(HEAD), "more than 4096 interfaces"),
    (shb() + idb() + block("<", 0x99, bytes(100))[:50], "bytes before its last block does"),
]


@pytest.mark.parametrize(("file", "text"), IMPOSSIBLE, ids=[text[:40] for _, text in IMPOSSIBLE])
def test_damage_is_named_with_its_place(tmp_path, file, text):
    (tmp_path / "a").write_bytes(file)
    line = refused("E_PCAP", open_reader, tmp_path / "a", match=text)
    assert "\n" not in line and "damaged" in line


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_file_cut_anywhere_gives_the_frames_before_the_cut(rings, tmp_path, kind):
    if kind == "pcap":
        file, ends = pcap([]), [24]
        for i in range(3):
            file += pcap([(i, HEAD + bytes(i))])[24:]
            ends.append(len(file))
    else:
        file, ends = shb() + idb(), [0, 28, 48]
        for part in (epb(HEAD, 1), block("<", 0x77, bytes(9)), epb(HEAD + b"x", 2), isb(0, [(4, 1)])):
            file += part
            ends.append(len(file))
    frames = {end: len(re.findall(re.escape(HEAD), file[:end])) for end in ends}
    for cut in range(1, len(file)):
        (tmp_path / "a").write_bytes(file[:cut])
        whole = max((e for e in ends if e <= cut), default=0)
        try:
            reader = open_reader(tmp_path / "a")
        except Error as why:
            assert why.code == "E_PCAP" and frames.get(whole, 0) == 0 and cut not in ends
            continue
        with closing(reader):
            assert len(rings.read(device(reader))) == frames[whole]
            if cut in ends:
                reader.check()
            else:
                refused("E_PCAP", reader.check, match="offset=")


def damaged(at, what):
    return SEED[:at] + what + SEED[at + len(what) :]


ANY_BYTES = st.one_of(st.binary(max_size=300), st.builds(damaged, st.integers(0, len(SEED)), st.binary(max_size=9)))


@given(ANY_BYTES)
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_frames_or_one_line(rings, file):
    fd = os.memfd_create("capture")
    try:
        os.write(fd, file)
        os.lseek(fd, 0, os.SEEK_SET)
        with contextlib.suppress(Error), closing(open_reader(fd)) as reader:
            assert sum(len(f.data) for f in rings.read(device(reader))) <= len(file)
            reader.check()
    finally:
        os.close(fd)


def fuzz_seeds(folder):
    comment = [(1, b"long comment" * 9)]
    files = [
        pcap([(T0, HEAD + bytes(n)) for n in (0, 1, 50, 900)]),
        pcap([(T0, HEAD + bytes(n), 1514) for n in (0, 3)], ">", ns=True),
        SEED,
        *(
            shb(o, opts=comment)
            + idb(o, 1, 96, [(2, b"eth0"), (9, b"\x09"), (14, bytes(8)), *comment])
            + epb(HEAD + bytes(77), T0, order=o, opts=[(2, struct.pack(o + "I", 2)), (4, struct.pack(o + "Q", 3)), *comment])
            + block(o, 0xBAD, bytes(70))
            + pb(HEAD * 3, 5, order=o, drops=3)
            + spb(HEAD, o, 200)
            + isb(0, [(4, 2), (8, 2)], o)
            + shb(o)
            + idb(o)
            + epb(HEAD, order=o)
            for o in "<>"
        ),
    ]
    for i, file in enumerate(files):
        (folder / f"seed{i}").write_bytes(file)
    return sorted(folder.glob("seed*"))


def test_a_damaged_file_never_leads_the_reader_astray(tmp_path):
    source = (Path(__file__).parent / "pcap_fuzz.c").read_text()
    exe = ckernel.program(source)
    seed = str(int.from_bytes(os.urandom(4), "big"))
    got = subprocess.run([exe, str(FUZZ_S), seed, *fuzz_seeds(tmp_path)], capture_output=True, text=True, timeout=FUZZ_S + 60)
    assert got.returncode == 0, f"seed {seed}: {got.stderr[-3000:]}"
    assert int(got.stdout) > 1000


# ---- files that cannot be opened ----


def test_what_is_not_there_or_not_allowed_says_so(tmp_path):
    assert "No such file" in refused("E_NO_FILE", open_reader, tmp_path / "none")
    refused("E_NO_FILE", open_reader, tmp_path)
    refused("E_NO_FILE", Writer, tmp_path / "none" / "a")
    refused("E_NO_FILE", Writer, tmp_path)
    refused("E_OPTION", Writer, 1, rotation=Rotation(max_bytes=1000))
    refused("E_OPTION", Writer, tmp_path / "a", [Interface("x", snaplen=0)])
    refused("E_OPTION", Writer, tmp_path / "a", [Interface("x" * 70000)])


@contextlib.contextmanager
def nobody():
    """The rights of an ordinary user, for a while."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.needs("host_root")
def test_denied_is_a_permission(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "a").chmod(0)
    (tmp_path / "closed").mkdir(mode=0o500)
    with nobody():
        refused("E_PERM", open_reader, tmp_path / "a")
        refused("E_PERM", Writer, tmp_path / "closed" / "a")


def test_a_capture_is_for_its_owner_only(tmp_path):
    Writer(tmp_path / "a").close()
    Writer(tmp_path / "b", mode=0o640).close()
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in "ab"] == [0o600, 0o640]


def test_a_file_that_is_read_or_written_is_not_written_over(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)
    with closing(open_reader(tmp_path / "a")):
        refused("E_FILE_BUSY", Writer, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == GOOD
    with closing(Writer(tmp_path / "b")):
        refused("E_FILE_BUSY", Writer, tmp_path / "b")
        open_reader(tmp_path / "b").close()


# ---- the end of the disk ----


def whole_records(path, rings):
    got, reader = read(rings, path)
    reader.check()
    return got


def test_a_file_size_limit_leaves_whole_records(fresh, tmp_path):
    frames = some_frames(100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Writer(tmp_path / "a", [Interface("eth0")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (6064, hard))
    try:
        assert fresh.write(device(writer), frames) == 100
        assert writer.paused == "error" and fresh.tx.device_error
        n = writer.frames
        line = refused("E_CAPTURE_SPACE", writer.proceed, match=f"written={n} frames stopped=1: File too large")
        assert f"file={tmp_path / 'a'}" in line
        assert fresh.tx.sync() == 0 and fresh.waiting == 100 - n and fresh.balanced()
        assert whole_records(tmp_path / "a", fresh) == frames[:n]
        assert 6064 - 160 < (tmp_path / "a").stat().st_size == writer.written_bytes <= 6064
        writer.dropped(0, 5)
        writer.resume()
        assert fresh.tx.sync() == 0 and writer.paused == "error" and fresh.balanced()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.resume()
    assert fresh.tx.sync() == 100 - n and writer.proceed()
    writer.close()
    got, reader = read(fresh, tmp_path / "a")
    assert got == frames and fresh.balanced() and reader.interfaces[0]["dropped"] == 5, "told with the frame that was written at last"


ON_A_SMALL_DISK = """
import json, os, subprocess, sys
sys.path[:0] = json.loads(sys.argv[2])
import captures
from test_pcap import *
where = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "pktring-test", where], check=True)
frames = some_frames(1000)
with captures.rings() as rings:
    w = Writer(f"{where}/a", [Interface("eth0")])
    rings.write(device(w), frames)
    assert w.paused == "error"
    n = w.frames
    line = refused("E_CAPTURE_SPACE", w.proceed)
    assert "No space left on device" in line, line
    assert whole_records(f"{where}/a", rings) == frames[:n] and n > 300
    w.close()                      # its end finds no room either: said once is enough
    assert whole_records(f"{where}/a", rings) == frames[:n] and rings.balanced()
    refused("E_CAPTURE_SPACE", Writer, f"{where}/b", match="written=0 frames")
    os.unlink(f"{where}/a")
    queued = rings.frames_waiting()
    ring = Writer(f"{where}/r", [Interface("eth0")], rotation=Rotation(20000, files=3))
    for _ in range(30):            # 3 files of 20 kB fit, for ever
        rings.write(device(ring), frames[:100])
        while ring.paused:
            assert ring.proceed()
            rings.tx.sync()
    ring.close()
    assert rings.balanced() and ring.frames == 3000 + queued
print("done", n)
"""


@pytest.mark.needs("root", "unshare", "mount")
def test_a_full_disk_leaves_whole_records(tmp_path):
    import json

    paths = json.dumps([*sys.path, str(Path(__file__).parent)])
    cmd = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), paths]
    got = subprocess.run(cmd, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0 and got.stdout.startswith("done"), got.stderr


def test_a_device_that_is_always_full_is_refused_at_the_start():
    refused("E_CAPTURE_SPACE", Writer, "/dev/full", match="No space left")


# ---- writing into a pipe ----


def test_a_pipe_whose_reader_leaves_ends_the_capture_quietly(fresh):
    end, feed = os.pipe()
    try:
        writer = Writer(feed, [Interface("eth0")])
        fresh.write(device(writer), some_frames(10))
        os.close(end)
        fresh.write(device(writer), some_frames(10))
        assert writer.paused == "error" and not writer.proceed() and writer.ended
        assert fresh.balanced() and fresh.sent["tx_frames"] == 10 and fresh.frames_waiting() == 10
        writer.close()
    finally:
        os.close(feed)


def test_a_pipe_that_nobody_reads_is_refused():
    end, feed = os.pipe()
    os.close(end)
    try:
        refused("E_PIPE", Writer, feed)
    finally:
        os.close(feed)


def test_a_slow_reader_of_a_pipe_gets_everything(fresh):
    end, feed = os.pipe()
    frames = some_frames(2000, 333)
    got = bytearray()
    try:
        writer = Writer(feed, [Interface("eth0")])
        assert os.get_blocking(feed), "the pipe is shared: only our own descriptor of it does not block"
        assert writer.queues[0].tx_fd != feed
        done = fresh.write(device(writer), frames)
        assert writer.paused is None and 0 < fresh.waiting, "a full pipe is no error and no loss"
        deadline = time.monotonic() + 20
        while fresh.waiting or done < 2000:
            assert time.monotonic() < deadline
            got += os.read(end, 5000)
            done += fresh.queue(frames[done:])
            fresh.tx.sync()
            assert fresh.balanced()
        reader = threading.Thread(target=lambda: got.extend(iter_read(end)))
        reader.start()
        writer.close()
        os.close(feed)
        reader.join(10)
    finally:
        os.close(end)
    fd = os.memfd_create("capture")
    os.write(fd, got)
    os.lseek(fd, 0, os.SEEK_SET)
    assert read(fresh, fd)[0] == frames
    os.close(fd)


def iter_read(fd):
    while piece := os.read(fd, 65536):
        yield from piece


@pytest.mark.needs("tshark")
def test_wireshark_reads_it_live_from_a_pipe(fresh):
    tshark = subprocess.Popen(
        ["tshark", "-l", "-i", "-", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.time_epoch", "-c", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=captures.UNSANITIZED,
    )
    try:
        writer = Writer(tshark.stdin.fileno(), [Interface("eth0")])
        fresh.write(device(writer), some_frames(3))
        assert fresh.waiting == 0
        out, err = tshark.communicate(timeout=30)
        assert out.splitlines() == [f"eth0\t1700000000.{123456789 + 1001 * i}" for i in range(3)], err
        writer.close()
    finally:
        tshark.kill()
        tshark.wait()


# ---- what an app may do wrong, and what the writer refuses ----


def test_slots_filled_wrongly_are_counted_and_the_rest_is_written(fresh, tmp_path):
    frames = some_frames(8)
    with closing(Writer(tmp_path / "a", [Interface("eth0")])) as w:
        fresh.tx.bind(device(w))
        fresh.queue(frames)
        buf, length, flags, _ = fresh.tx.slot(1)
        fresh.tx.set_slot(1, buf, 1793, flags)  # longer than a buffer
        fresh.tx.set_slot(3, 0, length, flags)  # no buffer
        fresh.tx.set_slot(5, 10**6, length, flags)
        fresh.tx.set_slot(7, fresh.tx.slot(7)[0], length, MOREFRAG)  # goes on, but where?
        assert fresh.tx.sync() == 8
    assert (fresh.sent["drop_bad_slot"], fresh.sent["tx_frames"]) == (4, 4) and fresh.balanced()
    assert whole_records(tmp_path / "a", fresh) == frames[0:8:2]


def test_a_chain_without_end_costs_only_itself(tmp_path):
    with captures.rings(slots=256, stride=512) as rings, closing(Writer(tmp_path / "a")) as w:
        rings.tx.bind(device(w))
        rings.tx.put([HEAD] * 100)
        for i in range(70):  # 71 slots: more than a frame may have
            rings.tx.set_slot(i, rings.tx.slot(i)[0], 14, MOREFRAG)
        assert rings.tx.sync() == 100
        assert (rings.sent["drop_bad_slot"], rings.sent["tx_frames"]) == (1, 29)


def test_a_frame_of_a_port_that_the_file_does_not_know_is_refused(fresh, tmp_path):
    with closing(Writer(tmp_path / "a", [Interface("eth0", port=4), Interface("eth1", port=60000)])) as w:
        fresh.write(device(w), [Frame(HEAD, 1, port=p) for p in (4, 5, 60000, 65535)])
    assert (fresh.sent["drop_error"], fresh.sent["tx_frames"]) == (2, 2)
    assert [f.port for f in whole_records(tmp_path / "a", fresh)] == [0, 1]


def test_a_frame_without_a_time_gets_the_time_of_writing(rings, tmp_path):
    before = time.time_ns()
    write(rings, tmp_path / "a", [Frame(HEAD)])
    assert before <= read(rings, tmp_path / "a")[0][0].ts_ns <= time.time_ns()


def test_a_descriptor_is_written_from_where_it_stands(rings, tmp_path):
    (tmp_path / "a").write_bytes(shb())
    for flags in (os.O_APPEND, 0):
        fd = os.open(tmp_path / "a", os.O_WRONLY | flags)
        os.lseek(fd, 0, os.SEEK_END)
        write(rings, fd, some_frames(2))
        os.close(fd)
    assert len(read(rings, tmp_path / "a")[0]) == 4


def test_the_driver_interface_opens_both_ways(rings, tmp_path):
    path = str(tmp_path / "a")
    with closing(driver.open(path, {"snaplen": "60"}, direction="tx")) as w:
        rings.write(device(w), some_frames(3))
        assert w.facts()["direction"] == "tx" and w.facts()["file"] == path
    with closing(driver.open(path, {}, port=3)) as r:
        assert [(len(f.data), f.port) for f in rings.read(device(r))] == [(60, 3)] * 3
        assert r.facts()["interfaces"][0]["frames"] == 3 and r.warnings() == []
    refused("E_OPTION", driver.open, path, {"link": "token-ring"})
    refused("E_OPTION", driver.open, path, {"snaplen": "-1"}, direction="tx")
