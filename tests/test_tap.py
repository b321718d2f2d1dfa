"""TAPs: frames of real stacks through real devices, and everything a TAP does that an interface does not (F18)."""

import contextlib
import errno
import fcntl
import hashlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array

import pytest
from conservation import balanced
from frames import BROADCAST, SOURCE, numbered, tagged
from lab import End, IPRoute, Lab

import pktring
from pktring.drivers import tap
from pktring.drivers.link import LinkWatch, facts
from pktring.drivers.netns import entered
from pktring.drivers.tap import Tap, holders
from pktring.shm import _shm
from pktring.shm.errors import Error
from pktring.shm.region import RX, TX, Region

pytestmark = pytest.mark.needs("root")

ETH, IP, UDP, TCP = 14, 20, 8, 20
SOL_UDP, UDP_SEGMENT = 17, 103
ME, HOST = "10.0.0.9", "10.0.0.1"  # our side of the TAP and the host's
MY_MAC = SOURCE
META_GSO, GSO_TCPV4, NEEDS_CSUM = 2, 1, 1


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def region():
    with Region.create(f"test-tap-{os.getpid()}", rings=8, slots=1024) as region:
        yield region


class Station:
    """A TAP with its rings, and what a test wants of them."""

    def __init__(self, region, netns, name="t0", *, slots=1024, queues=1, whole=False, **options):
        self.region = region
        self.tap = Tap(name, queues=queues, netns_name=netns, options={k: str(v) for k, v in options.items()})
        self.name = name
        self._rings = []
        self.rx, self.tx = self._made(RX, slots), self._made(TX, slots)
        for ring in self.rx:
            ring.device_flags |= _shm.PR_DEV_WHOLE if whole else 0

    def _made(self, direction, slots):
        rings = []
        for i, queue in enumerate(self.tap.queues):
            index, ring = self.region.make_ring(direction, slots, f"{self.name} {'rx' if direction == RX else 'tx'}{i}", i)
            ring.bind(queue.device)
            self._rings.append((index, ring))
            rings.append(ring)
        return rings

    def dress(self, lab, address=HOST):
        """Give the host's side an address and our side's MAC, so that it sends without asking."""
        with lab.inside(self.tap.netns), IPRoute() as ipr:
            index = socket.if_nametoindex(self.tap.interface)
            ipr.addr("add", index=index, address=address, prefixlen=24)
            ipr.neigh("add", dst=ME, lladdr=MY_MAC.hex(":"), ifindex=index, state=0x80)
        return self

    def take(self, n, timeout_s=2.0, ring=0):
        """The next frames, `n` of them or what came in time."""
        frames = []
        deadline = time.monotonic() + timeout_s
        while len(frames) < n and time.monotonic() < deadline:
            if self.rx[ring].sync() <= 0 and not self.rx[ring].ready:
                select.select([self.tap.queues[ring].rx_fd], [], [], 0.05)
            frames += self.taken(n - len(frames), ring)
        return frames

    def taken(self, most, ring=0):
        r = self.rx[ring]
        starts = array("I", bytes(4 * most))
        n, end = r.peek(starts, most)
        frames = [self._bytes(r.frame(i)) for i in starts[:n]]
        r.release(end, n)
        return frames

    def _bytes(self, frame):
        return frame if isinstance(frame, bytes) else bytes(self.region.mem[frame[0] : frame[0] + frame[1]])

    def send(self, frames, ring=0):
        assert self.tx[ring].put(frames) == len(frames)
        return self.tx[ring].sync()

    def send_super(self, frame, **meta):
        """Send a frame with the metadata of a super-frame."""
        ring = self.tx[0]
        buf = ring.slot(ring.head)[0]
        assert ring.put([frame]) == 1
        facts = struct.pack(
            "=QIIHHBBHHHH", 0, 0, 0, 0, META_GSO, GSO_TCPV4, NEEDS_CSUM, meta.get("hdr_len", 54), meta.get("gso_size", 1448), 34, 16
        )
        at = self.region.geometry["meta_ofs"] + 64 * buf
        self.region.mem[at : at + len(facts)] = facts
        return ring.sync()

    def count(self, counter):
        return sum(row[counter] for row in self.region.counters() if row["row"].startswith(self.name + " "))

    def error(self):
        return errno.errorcode.get(self.rx[0].device_error)

    def close(self):
        for _, ring in self._rings:
            ring.bind(None)
        self.tap.close()
        for index, _ in self._rings:
            self.region.drop_ring(index)
        self._rings = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def station(lab, region):
    with Station(region, lab.namespace()).dress(lab) as station:
        yield station


def host_socket(station, kind=socket.SOCK_DGRAM):
    with entered(station.tap.netns):
        sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(2)
    return sock


def ones(data):
    """The ones' complement sum of RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksums_hold(frame):
    """The IPv4 header's and TCP's or UDP's."""
    ip = frame[ETH : struct.unpack_from("!H", frame, ETH + 2)[0] + ETH]
    pseudo = ip[12:20] + struct.pack("!HH", ip[9], len(ip) - IP)
    return ones(ip[:IP]) == 0xFFFF and ones(pseudo + ip[IP:]) == 0xFFFF


def udp_frame(to_mac, payload, sport=7000, dport=7001, source=ME):
    addresses = socket.inet_aton(source) + socket.inet_aton(HOST)
    udp = struct.pack("!HHHH", sport, dport, UDP + len(payload), 0) + payload
    check = 0xFFFF - ones(addresses + struct.pack("!HH", 17, len(udp)) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", check) + udp[8:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, IP + len(udp), 0, 0x4000, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", 0xFFFF - ones(ip)) + ip[12:]
    return to_mac + MY_MAC + b"\x08\x00" + ip + udp


def payload(n):
    return bytes((i * 7 + n) & 0xFF for i in range(n))


# ---- frames ----


def test_what_the_host_sends_arrives_byte_for_byte_in_order(lab, region, station):
    sent = [numbered(i, 60 + i % 1455) for i in range(900)]
    before = time.time_ns()
    lab.send(End(station.tap.netns, "t0"), sent)
    assert station.take(len(sent)) == sent
    assert station.count("rx_bytes") == sum(map(len, sent))
    ring = station.rx[0]
    stamps = array("Q", bytes(8 * 900))
    ring.column(_shm.COL_TIMESTAMP, array("I", range(900)), 900, stamps)
    assert all(before <= ts <= time.time_ns() for ts in stamps) and list(stamps) == sorted(stamps)
    assert balanced(region)


def test_what_is_sent_reaches_the_host_byte_for_byte_in_order(lab, region, station):
    sent = [numbered(i, 60 + i % 1455) for i in range(900)]
    with lab.listening(End(station.tap.netns, "t0")) as ear:
        assert station.send(sent) == len(sent)
        assert ear.take(len(sent)) == sent
    assert station.count("tx_frames") == 900 and station.count("tx_bytes") == sum(map(len, sent))
    assert balanced(region)


SIZES = sorted({*range(66), *range(66, 1473, 61), 1471, 1472})


def test_udp_of_every_size_leaves_the_host_with_a_complete_checksum(station):
    with host_socket(station) as sock:
        for size in SIZES:
            sock.sendto(payload(size), (ME, 7001))
            (frame,) = station.take(1)
            assert frame[ETH + IP + UDP :] == payload(size)
            assert checksums_hold(frame), size
    assert station.count("csum_completed") == len(SIZES), "the host left them to us: TUN_F_CSUM"


def test_udp_of_every_size_is_accepted_by_the_host(station):
    with host_socket(station) as sock:
        sock.bind((HOST, 7001))
        for size in SIZES:
            station.send([udp_frame(station.tap.link.mac, payload(size))])
            assert sock.recv(2000) == payload(size)


def test_a_vlan_tag_stays_where_it_is_both_ways(lab, station):
    end = End(station.tap.netns, "t0")
    sent = [tagged(numbered(i, 60), 0x2000 | i) for i in range(1, 20)] + [tagged(tagged(numbered(i), 5), 7, 0x88A8) for i in range(20, 30)]
    lab.send(end, sent)
    assert station.take(len(sent)) == sent
    assert station.count("vlan_restored") == 0
    with lab.listening(end) as ear:
        station.send(sent)
        assert ear.take(len(sent)) == sent


@pytest.mark.parametrize("whole", [False, True])
def test_a_jumbo_frame_spans_slots_and_is_not_copied(region, lab, whole):
    with Station(region, lab.namespace(), mtu=9000, whole=whole).dress(lab) as station, host_socket(station) as sock:
        assert station.tap.facts()["mtu"] == 9000
        sock.bind((HOST, 7001))
        for size in (8972, 1749, 1750, 1751, 1, 8972):
            sock.sendto(payload(size), (ME, 7001))
            (frame,) = station.take(1)
            assert frame[ETH + IP + UDP :] == payload(size) and checksums_hold(frame)
            station.send([udp_frame(station.tap.link.mac, payload(size))])
            assert sock.recv(9000) == payload(size)
        assert balanced(region)


def segmented(station, size, gso_size):
    """Have the host's stack send one UDP super-frame."""
    with host_socket(station) as sock:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, gso_size)
        sock.sendto(payload(size), (ME, 7001))


needs_uso = pytest.mark.skipif(tuple(map(int, os.uname().release.split(".")[:2])) < (6, 2), reason="kernel: TAPs have USO since 6.2")


@needs_uso
def test_a_super_frame_is_cut_into_the_frames_of_the_wire(region, station):
    segmented(station, 60000, 1400)
    frames = station.take(43)
    assert [len(f) - ETH - IP - UDP for f in frames] == [1400] * 42 + [60000 - 42 * 1400]
    assert b"".join(f[ETH + IP + UDP :] for f in frames) == payload(60000)
    assert all(checksums_hold(f) for f in frames)
    assert station.count("rx_supers") == 1 and station.count("rx_pieces") == 43
    assert balanced(region)


@needs_uso
def test_a_super_frame_is_carried_whole_where_asked_and_parts_are_what_the_cut_gives(lab, region):
    with Station(region, lab.namespace(), whole=True).dress(lab) as station:
        for _ in range(3):  # the first finds one slot laid out, the next ones as many as they need
            segmented(station, 60000, 1400)
            station.rx[0].sync()
            ring = station.rx[0]
            parts = ring.parts(ring.head)
            assert b"".join(f[ETH + IP + UDP :] for f in parts) == payload(60000)
            assert all(checksums_hold(f) for f in parts)
            (frame,) = station.take(1)
            assert frame[ETH + IP + UDP :] == payload(60000)
        assert station.count("rx_frames") == 3 and station.count("rx_supers") == 0 and station.count("csum_completed") == 0
        assert balanced(region)


@needs_uso
def test_with_offload_off_the_host_cuts_and_sums_itself(lab, region):
    with Station(region, lab.namespace(), offload=0).dress(lab) as station:
        assert station.tap.facts()["offloads"] == []
        segmented(station, 6000, 1400)
        frames = station.take(5)
        assert len(frames) == 5 and all(checksums_hold(f) for f in frames)
        assert station.count("csum_completed") == 0 and station.count("rx_supers") == 0


@needs_uso
@pytest.mark.parametrize("whole", [False, True])
def test_a_frame_that_finds_no_room_waits_in_the_driver_and_is_not_lost(lab, region, whole):
    with Station(region, lab.namespace(), slots=64, whole=whole).dress(lab) as station:
        fill = [numbered(i) for i in range(40)]
        lab.send(End(station.tap.netns, "t0"), fill)
        assert station.rx[0].sync() == 40
        segmented(station, 60000, 1400)
        last = numbered(99)
        lab.send(End(station.tap.netns, "t0"), [last])
        for _ in range(3):
            assert station.rx[0].sync() == 0
        assert station.taken(40) == fill
        frames = station.take(2 if whole else 44)
        assert b"".join(f[ETH + IP + UDP :] for f in frames[:-1]) == payload(60000) and frames[-1] == last
        assert balanced(region)


@needs_uso
@pytest.mark.parametrize("whole", [False, True])
def test_a_frame_that_no_empty_ring_holds_is_dropped_by_name_and_the_next_arrives(lab, region, whole):
    with Station(region, lab.namespace(), slots=16, whole=whole).dress(lab) as station:
        segmented(station, 60000, 1400)
        lab.send(End(station.tap.netns, "t0"), [numbered(1)])
        assert station.take(1) == [numbered(1)]
        assert station.count("drop_gso") == 1
        assert balanced(region)


@pytest.mark.parametrize("index", [0, 1, "beyond", 0xFFFFFFFF])
def test_a_slot_without_a_buffer_is_never_written_to(lab, region, index):
    with Station(region, lab.namespace(), slots=16).dress(lab) as station:
        ring = station.rx[0]
        kept = ring.slot(0)
        ring.set_slot(0, region.geometry["buf_num"] if index == "beyond" else index, 0, 0)
        lab.send(End(station.tap.netns, "t0"), [numbered(1)])
        assert ring.sync() == 0 and station.error() is None
        ring.set_slot(0, *kept[:3])
        assert station.take(1) == [numbered(1)]


def test_a_long_frame_stays_off_the_slots_that_the_app_holds(lab, region):
    with Station(region, lab.namespace(), slots=8, mtu=9000).dress(lab) as station, host_socket(station) as sock:
        end = End(station.tap.netns, "t0")
        fill = [numbered(i) for i in range(3)]
        lab.send(end, fill)
        assert station.rx[0].sync() == 3
        sock.sendto(payload(8972), (ME, 7001))  # six slots; four are free
        assert station.rx[0].sync() == 0
        assert station.taken(3) == fill
        (frame,) = station.take(1)
        assert frame[ETH + IP + UDP :] == payload(8972) and checksums_hold(frame)
        assert balanced(region)


# ---- what a TAP would take and an Ethernet would not ----


def test_runts_are_dropped_by_name_and_the_shortest_frame_is_not(region, station):
    assert station.send([bytes(n) for n in range(14)] + [BROADCAST + SOURCE + b"\x88\xb5"]) == 15
    assert station.count("drop_runt") == 14 and station.count("tx_frames") == 1
    assert balanced(region)


def test_frames_longer_than_the_mtu_are_dropped_and_tags_are_not_counted(lab, region, station):
    fits = [numbered(1, 1514), tagged(numbered(2, 1514), 5), tagged(tagged(numbered(3, 1514), 5), 7, 0x88A8)]
    with lab.listening(End(station.tap.netns, "t0")) as ear:
        station.send([numbered(0, 1515), fits[0], tagged(numbered(0, 1515), 5), fits[1], numbered(0, 70000), fits[2]])
        assert ear.take(4, 0.3) == fits
    assert station.count("drop_mtu") == 3 and station.count("tx_frames") == 3
    assert balanced(region)


def test_a_changed_mtu_holds_after_its_event(lab, station):
    with contextlib.closing(LinkWatch("t0", station.tap.netns)) as watch:
        lab.change(station.tap.netns, "t0", mtu=600)
        (event,) = watch.events()
        station.tap.follow(event)
    station.send([numbered(0, 614), numbered(0, 615)])
    assert station.count("drop_mtu") == 1 and station.count("tx_frames") == 1
    assert station.tap.facts()["mtu"] == 600


def test_super_frames_that_no_header_describes_are_dropped_by_name(region, station):
    frame = udp_frame(station.tap.link.mac, payload(1400))
    station.send_super(frame + bytes(70000))  # longer than IP can say
    station.send_super(frame, gso_size=0)  # the kernel refuses it
    assert station.count("drop_gso") == 2 and station.count("tx_frames") == 0
    assert balanced(region)


# ---- the TAP's own queue ----


def test_frames_nobody_reads_are_counted_exactly(lab, region, station):
    end = End(station.tap.netns, "t0")
    lab.send(end, [numbered(i) for i in range(1000)], 3)
    station.rx[0].stats()
    assert station.count("drop_tap_queue") == 2000
    assert station.take(1001, 0.5) == [numbered(i) for i in range(1000)]
    lab.send(end, [numbered(0)], 1500)
    for _ in range(3):
        station.rx[0].stats()
    station.tx[0].stats()
    assert station.count("drop_tap_queue") == 2500
    assert len(station.take(1001, 0.5)) == 1000
    assert station.count("rx_kernel") + station.count("drop_tap_queue") == 4500
    assert balanced(region)


def test_drops_from_before_we_came_are_not_ours(lab, region):
    netns = lab.namespace()
    with Station(region, netns, persist=1).dress(lab) as first:
        lab.send(End(netns, "t0"), [numbered(0)], 1200)
        first.rx[0].stats()
        assert first.count("drop_tap_queue") == 200
    with Station(region, netns, persist=0) as second:
        second.rx[0].stats()
        assert second.count("drop_tap_queue") == 0


def test_drops_of_an_interface_of_a_longer_name_are_not_ours(lab, region):
    netns = lab.namespace()
    with contextlib.closing(Tap("t00", netns_name=netns)), Station(region, netns) as station:
        lab.send(End(netns, "t00"), [numbered(0)], 1100)
        lab.send(End(netns, "t0"), [numbered(0)], 1007)
        station.rx[0].stats()
        assert station.count("drop_tap_queue") == 7


def test_the_count_follows_a_rename_and_a_move(lab, region, station):
    elsewhere = lab.namespace("elsewhere")
    lab.send(End(station.tap.netns, "t0"), [numbered(0)], 1050)
    lab.change(station.tap.netns, "t0", state="down", ifname="t9")
    with open(f"/run/netns/{elsewhere}") as there:
        lab.change(station.tap.netns, "t9", net_ns_fd=there.fileno())
    lab.change(elsewhere, "t9", state="up", mtu=1000)
    station.tap.refresh()
    assert (station.tap.netns, station.tap.interface) == (elsewhere, "t9")
    lab.send(End(elsewhere, "t9"), [numbered(0)], 10)
    station.rx[0].stats()
    assert station.count("drop_tap_queue") == 60
    assert len(station.take(1000)) == 1000
    assert station.tap.queues[0].core.mtu == 1000


# ---- many queues ----


def test_many_queues_share_the_flows_and_lose_none(lab, region):
    with Station(region, lab.namespace(), queues=2).dress(lab) as station, host_socket(station) as sock:
        assert station.tap.facts()["queues"] == 2 and station.tap.facts()["multi_queue"]
        for port in range(8000, 8064):
            sock.sendto(payload(port % 100), (ME, port))
        got = [station.take(64, 0.3, ring=i) for i in (0, 1)]
        ports = sorted(struct.unpack_from("!H", f, ETH + IP + 2)[0] for frames in got for f in frames)
        assert ports == list(range(8000, 8064))
        assert all(got), "both queues got some"
        for ring in (0, 1):
            station.send([udp_frame(station.tap.link.mac, b"x" * ring, dport=sock.getsockname()[1])], ring=ring)
            assert sock.recv(100) == b"x" * ring
        assert balanced(region)


def test_a_flow_comes_out_of_the_queue_that_it_was_written_to(lab, region):
    with Station(region, lab.namespace(), queues=4).dress(lab) as station, host_socket(station) as sock:
        sock.bind((HOST, 0))
        here = sock.getsockname()[1]
        for port in range(9000, 9032):
            station.send([udp_frame(station.tap.link.mac, b"?", sport=port, dport=here)], ring=port % 4)
            assert sock.recvfrom(10) == (b"?", (ME, port))
            sock.sendto(b"!", (ME, port))
        for i in range(4):
            assert [struct.unpack_from("!H", f, ETH + IP + 2)[0] for f in station.take(8, ring=i)] == list(range(9000 + i, 9032, 4))


def test_drops_of_many_queues_are_counted_once(lab, region):
    with Station(region, lab.namespace(), queues=2).dress(lab) as station:
        lab.send(End(station.tap.netns, "t0"), [numbered(0)], 3000)
        for ring in station.rx:
            ring.stats()
        kept = sum(len(station.take(3000, 0.3, ring=i)) for i in (0, 1))
        assert kept + station.count("drop_tap_queue") == 3000


def test_a_tap_made_with_many_queues_takes_one_more(lab):
    netns = lab.namespace()
    with contextlib.closing(Tap("t0", queues=2, netns_name=netns)), contextlib.closing(Tap("t0", netns_name=netns)) as third:
        assert third.facts()["multi_queue"] and third.facts()["queues"] == 1


# ---- a relay between two hosts ----


def relay(paths, stop):
    """Both ways, until told to stop; sleeps when nothing moves."""
    starts = array("I", bytes(4 * 1024))
    fds = [a.tap.queues[0].rx_fd for a, _ in paths]
    while not stop.is_set():
        moved = 0
        for a, b in paths:
            rx, tx = a.rx[0], b.tx[0]
            rx.sync()
            n, end = rx.peek(starts, 1024)
            sent, full = rx.forward(starts, n, tx, None)
            assert not full
            rx.release(end, 0)
            tx.sync()
            moved += sent
        if not moved:
            select.select(fds, [], [], 0.05)


def serve(sock, got):
    with sock.accept()[0] as conn:
        digest = hashlib.sha256()
        while data := conn.recv(1 << 18):
            digest.update(data)
        got.append(digest.hexdigest())


@pytest.mark.parametrize("how", ["whole", "cut", "mixed"])
def test_tcp_crosses_two_taps_of_two_hosts_intact(lab, region, how):
    size = 40 << 20 if how == "whole" else 8 << 20
    with contextlib.ExitStack() as stack:
        left, right = (
            stack.enter_context(Station(region, lab.namespace(name), name, whole=how == "whole" or (how == "mixed" and i == 1)))
            for i, name in enumerate(("ta", "tb"), 1)
        )
        for i, station in enumerate((left, right), 1):
            with lab.inside(station.tap.netns), IPRoute() as ipr:
                ipr.addr("add", index=socket.if_nametoindex(station.name), address=f"10.0.0.{i}", prefixlen=24)
        stop, got = threading.Event(), []
        pump = threading.Thread(target=relay, args=([(left, right), (right, left)], stop))
        pump.start()
        try:
            with host_socket(right, socket.SOCK_STREAM) as listener, host_socket(left, socket.SOCK_STREAM) as client:
                listener.bind(("10.0.0.2", 7000))
                listener.listen()
                server = threading.Thread(target=serve, args=(listener, got))
                server.start()
                client.settimeout(30)
                client.connect(("10.0.0.2", 7000))
                data = os.urandom(1 << 20) * (size >> 20)
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                server.join(30)
        finally:
            stop.set()
            pump.join(5)
        assert got == [hashlib.sha256(data).hexdigest()]
        frames = left.count("rx_frames")
        assert frames < size / 3000 if how in ("whole", "mixed") else frames > size / 1500
        for station in (left, right):
            station.take(1000, 0.1)
        assert balanced(region)


# ---- F18: down, deleted, moved, closed elsewhere ----


def test_a_down_interface_refuses_and_says_so_and_takes_again_when_up(lab, region, station):
    lab.change(station.tap.netns, "t0", state="down")
    station.send([numbered(1)])
    assert station.count("drop_down") == 1 and errno.errorcode[station.tx[0].device_error] == "EIO"
    assert not select.select([station.tap.queues[0].rx_fd], [], [], 0)[0], "nobody spins on it"
    station.tx[0].device_error = 0
    lab.change(station.tap.netns, "t0", state="up")
    with lab.listening(End(station.tap.netns, "t0")) as ear:
        station.send([numbered(2)])
        assert ear.take(1) == [numbered(2)]
    assert station.tx[0].device_error == 0
    assert balanced(region)


def test_a_deleted_tap_reports_once_and_nobody_spins_on_it(lab, region, station):
    poll = select.epoll()
    fd = station.tap.queues[0].rx_fd
    poll.register(fd, select.EPOLLIN)
    lab.delete(station.tap.netns, "t0")
    assert poll.poll(1), "a sleeper is woken"
    assert station.rx[0].sync() == 0 and station.error() == "EBADFD"
    station.rx[0].device_error = 0
    assert poll.poll(0) == [] and select.select([fd], [], [], 0)[0] == []
    station.send([numbered(1)])
    assert station.rx[0].sync() == 0 and station.error() is None
    assert station.count("drop_down") == 1
    start = time.monotonic()
    station.close()
    assert time.monotonic() - start < 0.1
    poll.close()


def test_a_deleted_tap_is_noticed_by_sending_too(lab, region, station):
    lab.delete(station.tap.netns, "t0")
    station.send([numbered(1), numbered(2)])
    assert station.count("drop_down") == 2 and station.error() == "EBADFD"
    assert balanced(region)


def test_rebind_makes_a_deleted_tap_anew_behind_the_same_descriptor(lab, region, station):
    for _ in range(3):
        fd, mac = station.tap.queues[0].rx_fd, station.tap.link.mac
        lab.delete(station.tap.netns, "t0")
        station.rx[0].sync()
        station.rx[0].device_error = 0
        station.tap.rebind()
        assert station.tap.queues[0].rx_fd == fd and station.tap.link.mac != mac
        lab.send(End(station.tap.netns, "t0"), [numbered(3)], 1100)
        station.rx[0].stats()
        assert station.take(1) == [numbered(3)]
        assert len(station.take(1000, 0.5)) == 999
    assert station.count("drop_tap_queue") == 300
    assert balanced(region)


def test_rebind_joins_a_persistent_tap_that_came_back_and_leaves_a_living_one_alone(lab, station):
    netns = station.tap.netns
    station.tap.rebind()
    lab.delete(netns, "t0")
    Tap("t0", netns_name=netns, options={"persist": "1"}).close()
    station.tap.rebind()  # before the rings knew that it was gone
    lab.send(End(netns, "t0"), [numbered(1)])
    assert station.take(1) == [numbered(1)] and station.error() is None
    lab.delete(netns, "t0")


def test_a_port_follows_its_tap_through_deletion_and_return(lab, region):
    netns = lab.namespace()
    with pktring.open("tap:t0", netns=netns, region=region) as port:
        lab.delete(netns, "t0")
        start, cpu = time.monotonic(), time.process_time()
        assert not len(port.recv(timeout=0.5))
        assert time.monotonic() - start > 0.4 and time.process_time() - cpu < 0.2, "it sleeps while there is no TAP"
        Tap("t0", netns_name=netns, options={"persist": "1"}).close()
        deadline = time.monotonic() + 5
        while not len(port.recv(timeout=0.1)) and time.monotonic() < deadline:
            lab.send(End(netns, "t0"), [numbered(1)])
        assert port.stats()["rx_frames"] > 0
        assert port.send([numbered(2)]) == 1 and port.stats()["tx_frames"] == 1
        lab.change(netns, "t0", mtu=600)
        port.recv(timeout=0.3)
        port.send([numbered(2, 1000)])
        assert port.stats()["drop_mtu"] == 1
    lab.delete(netns, "t0")


def test_a_tap_dies_with_the_namespace_it_was_moved_to(lab, region, station):
    with entered(station.tap.netns):
        child = subprocess.Popen(["unshare", "-n", "sleep", "30"])
        deadline = time.monotonic() + 5
        while os.stat(f"/proc/{child.pid}/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(f"/proc/{child.pid}/ns/net") as there:
            lab.change(station.tap.netns, "t0", net_ns_fd=there.fileno())
    station.tap.refresh()
    assert station.tap.netns == f"pid:{child.pid}"
    station.rx[0].stats()
    assert station.rx[0].sync() == 0 and station.error() is None
    child.kill()
    child.wait()
    deadline = time.monotonic() + 5
    while station.error() != "EBADFD" and time.monotonic() < deadline:
        station.rx[0].sync()
        time.sleep(0.01)
    assert station.error() == "EBADFD"
    with pytest.raises(Error) as gone:
        station.tap.refresh()
    assert gone.value.code == "E_PORT_GONE"


def test_a_descriptor_closed_behind_our_back_is_an_error_not_a_loop(region, lab):
    with Station(region, lab.namespace()) as station:
        fd = station.tap.queues[0].rx_fd
        spare = os.dup(fd)
        os.close(fd)
        assert station.rx[0].sync() == 0 and station.error() == "EBADF"
        os.dup2(spare, fd, inheritable=False)
        os.close(spare)


def test_carrier_is_what_the_host_sees_and_frames_are_taken_either_way(lab, station):
    for on in (False, True):
        station.tap.carrier(on)
        station.tap.refresh()
        assert station.tap.link.carrier == on
        station.send([numbered(1)])
    assert station.count("tx_frames") == 2


# ---- opening ----


def refusal(*args, **how):
    with pytest.raises(Error) as why:
        Tap(*args, **how)
    return why.value


def test_a_name_the_kernel_would_cut_short_is_refused(lab):
    netns = lab.namespace()
    assert refusal("tap4567890123456", netns_name=netns).code == "E_NAME"
    with contextlib.closing(Tap("tap456789012345", netns_name=netns)) as longest:
        assert longest.link.name == "tap456789012345"
    for name in ("", ".", "..", "a/b", "a b", "a:b", "%d%d"):
        assert refusal(name, netns_name=netns).code == "E_NAME"


def test_the_kernel_numbers_a_name_with_a_percent_sign(lab):
    netns = lab.namespace()
    with contextlib.closing(Tap("tap%d", netns_name=netns)) as a, contextlib.closing(Tap("tap%d", netns_name=netns)) as b:
        assert (a.interface, b.interface) == ("tap0", "tap1") and a.facts()["interface"] == "tap0"


def test_a_busy_tap_names_who_holds_it(lab):
    netns = lab.namespace()
    holder = "import sys; from pktring.drivers.tap import Tap; t = Tap('busy0', netns_name=sys.argv[1]); print('up', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-P", "-c", holder, netns], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "up\n"
        why = refusal("busy0", netns_name=netns)
        assert why.code == "E_TAP_BUSY" and f"if=busy0 held by pid {child.pid}:" in str(why)
        assert holders("busy0") == [child.pid]
        assert refusal("busy0", netns_name=netns, queues=2).code == "E_OPTION", "it has one queue for ever"
    finally:
        child.communicate("\n", timeout=10)


def test_what_is_no_tap_is_said_to_be_none(lab):
    a, _ = lab.pair()
    why = refusal(a.name, netns_name=a.netns)
    assert why.code == "E_NOT_TAP" and "veth" in str(why)
    with entered(a.netns), open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, tap.TUNSETIFF, struct.pack("16sH22x", b"tun7", 0x1001))
        why = refusal("tun7", netns_name=a.netns)
    assert why.code == "E_NOT_TAP" and "a tun" in str(why)


@pytest.mark.parametrize(
    "options",
    [
        {"mtu": "67"},
        {"mtu": "65522"},
        {"mtu": "big"},
        {"mac": "01:00:00:00:00:01"},
        {"mac": "02:00"},
        {"mac": "00:00:00:00:00:00"},
        {"up": "yes"},
        {"persist": "2"},
    ],
)
def test_options_out_of_range_are_refused_and_nothing_is_made(lab, options):
    netns = lab.namespace()
    assert refusal("t0", netns_name=netns, options=options).code == "E_OPTION"
    with entered(netns):
        assert "t0" not in [name for _, name in socket.if_nameindex()]


@pytest.mark.parametrize("mtu", [68, 65521])
def test_the_whole_range_of_mtus_is_taken(lab, mtu):
    with contextlib.closing(Tap("t0", netns_name=lab.namespace(), options={"mtu": str(mtu)})) as made:
        assert made.link.mtu == mtu


def test_address_and_state_are_as_asked(lab):
    netns = lab.namespace()
    with contextlib.closing(Tap("t0", netns_name=netns, options={"mac": "02:00:00:00:00:77", "up": "0"})) as made:
        assert made.link.mac.hex(":") == "02:00:00:00:00:77" and not made.link.up
        assert "down" in made.warnings()[0]
    with contextlib.closing(Tap("t0", netns_name=netns)) as made:
        assert made.link.up and made.link.carrier and made.warnings() == []


def test_one_that_persists_stays_with_its_offloads_off(lab):
    netns = lab.namespace()
    Tap("t0", netns_name=netns, options={"persist": "1", "mac": "02:00:00:00:00:78"}).close()
    left = facts("t0", netns)
    assert not left.carrier and not left.offloads["tso"] and not left.offloads["tx-checksum"]
    with contextlib.closing(Tap("t0", netns_name=netns, options={"persist": "0"})) as back:
        assert back.link.mac.hex(":") == "02:00:00:00:00:78" and "tso4" in back.offloads
    with entered(netns):
        assert "t0" not in [name for _, name in socket.if_nameindex()]


@pytest.mark.parametrize("device", ["/dev/net/no-such-tun", "/proc/self/mem/tun"])
def test_without_the_device_node_the_fix_is_said(lab, monkeypatch, device):
    monkeypatch.setattr(tap, "DEVICE", device)
    why = refusal("t0", netns_name=lab.namespace())
    assert why.code == "E_PERM" and device in str(why)


@pytest.mark.needs("host_root")
def test_without_the_right_the_fix_is_said(lab):
    netns = lab.namespace()
    script = (
        "import ctypes, os, sys; from pktring.drivers import tap; from pktring.drivers.netns import entered\n"
        "with entered(sys.argv[1]):\n"
        "    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0\n"
        "    try: tap.Tap('t0')\n"
        "    except tap.Error as why: print(why, flush=True); os._exit(0)\n"
    )
    said = subprocess.run([sys.executable, "-P", "-c", script, netns], capture_output=True, text=True, timeout=30)
    assert said.stdout.startswith("E_PERM need CAP_NET_ADMIN to open tap t0"), said


def test_nothing_is_left_open_when_opening_fails(lab):
    netns = lab.namespace()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        refusal("lo", netns_name=netns)
        refusal("t0", netns_name="no-such-namespace")
    with contextlib.closing(Tap("t0", netns_name=netns)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
