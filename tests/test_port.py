"""Ports and batches: the Python API over a real veth in a namespace of its own."""

import asyncio
import select
import socket
import threading
import time

import numpy as np
import pytest
from conservation import balanced
from frames import BROADCAST, SOURCE, number, numbered, tagged
from lab import Lab

import pktring
from pktring.shm.errors import Error
from pktring.shm.region import Region

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def wire(lab):
    return lab.pair()


@pytest.fixture
def region(request):
    import os

    with Region.create(f"test-port-{os.getpid()}", rings=8, slots=512) as region:
        yield region


def opened(end, region=None, **keys):
    return pktring.open(end.name, netns=end.netns, region=region, **keys)


def gather(port, n, timeout=2.0):
    """The next n frames as bytes."""
    got = []
    deadline = time.monotonic() + timeout
    while len(got) < n and time.monotonic() < deadline:
        with port.recv(timeout=0.1) as batch:
            got += [bytes(frame) for frame in batch]
    return got


@pytest.mark.parametrize("rx", ["blocks", "frames"])
def test_what_is_sent_is_received_byte_for_byte_in_order(lab, wire, rx):
    a, b = wire
    sent = [numbered(i, 60 + i % 1455) for i in range(2000)]
    with opened(b, rx=rx) as port:
        lab.send(a, sent)
        assert gather(port, len(sent)) == sent
        assert port.stats()["copies"] == 0


@pytest.mark.parametrize("rx", ["blocks", "frames"])
def test_columns_of_a_batch_are_numpy_and_match_the_frames(lab, wire, rx):
    a, b = wire
    sent = [numbered(i, 60 + i) for i in range(10)]
    with opened(b, rx=rx) as port:
        before = time.time_ns()
        lab.send(a, sent)
        time.sleep(0.05)
        batch = port.recv(timeout=1)
        assert batch.lengths.dtype == np.uint32 and batch.lengths.tolist() == [len(f) for f in sent]
        assert batch.timestamps.dtype == np.uint64
        assert all(before <= t <= time.time_ns() for t in batch.timestamps.tolist())
        assert sorted(batch.timestamps.tolist()) == batch.timestamps.tolist()
        head = batch.head(64)
        assert head.shape == (10, 64) and head.dtype == np.uint8
        assert head[0, :60].tobytes() == sent[0] and not head[0, 60:].any(), "zeros behind a short frame"
        assert head[9].tobytes() == sent[9][:64]
        assert [bytes(f) for f in batch] == sent and bytes(batch[-1]) == sent[-1]
        with pytest.raises(IndexError):
            batch[10]


def test_a_frame_is_a_view_into_the_ring_not_a_copy(lab, wire, region):
    a, b = wire
    with opened(b, region) as port:
        lab.send(a, [numbered(7)])
        batch = port.recv(timeout=1)
        at = region.view.buffer_offset(int(batch.buffers[0]))
        region.mem[at + 20] ^= 0xFF
        assert batch[0][20] == numbered(7)[20] ^ 0xFF


def test_a_released_batch_refuses_to_be_read(lab, wire):
    a, b = wire
    with opened(b) as port:
        lab.send(a, [numbered(1), numbered(2)])
        batch = port.recv(timeout=1)
        port.recv(timeout=0)
        with pytest.raises(Error, match="E_BATCH"):
            _ = batch.lengths


def test_iterating_ends_after_a_silence(lab, wire):
    a, b = wire
    with opened(b) as port:
        lab.send(a, [numbered(i) for i in range(700)])
        assert sum(len(batch) for batch in port.batches(timeout=0.2)) == 700
        assert port.stats()["delivered"] == 700


def test_send_puts_frames_on_the_wire_and_counts_them(lab, wire):
    a, b = wire
    ear = lab.listening(b)
    sent = [numbered(i, 64 + i) for i in range(300)]
    with opened(a) as port:
        assert port.send(sent) == 300
        assert ear.take(300) == sent
        stats = port.stats()
        assert stats["tx_frames"] == 300 and stats["tx_bytes"] == sum(map(len, sent))


def test_send_accepts_no_more_than_the_ring_holds_when_the_device_is_stuck(wire):
    a, _ = wire
    with opened(a, slots=8) as port:
        port.tx_rings[0].bind(None)
        assert port.send([numbered(i) for i in range(20)]) == 7


def test_forward_moves_buffers_between_ports_of_one_region_and_copies_nothing(lab, region):
    """The buffer index seen at receive is the one that lies in the transmit ring."""
    a, b = lab.pair(("va", "vb"))
    c, d = lab.pair(("vc", "vd"))
    ear = lab.listening(d)
    with opened(b, region, take=1) as left, opened(c, region, take=1) as right:
        lab.send(a, [numbered(i) for i in range(50)])
        time.sleep(0.05)
        batch = left.recv(timeout=1)
        buffers = batch.buffers.tolist()
        first = right.tx_rings[0].head
        assert batch.forward(right) == 50
        assert [right.tx_rings[0].slot(first + i)[0] for i in range(50)] == buffers
        batch.release()
        assert [number(f) for f in ear.take(50)] == list(range(50))
        assert left.stats()["copies"] == 0 == right.stats()["copies"]
        assert left.stats()["forwarded"] == 50
        assert balanced(region)


def test_forward_with_masks_splits_a_batch_between_two_ports(lab, region):
    a, b = lab.pair(("va", "vb"))
    c, d = lab.pair(("vc", "vd"))
    e, f = lab.pair(("ve", "vf"))
    ears = lab.listening(d), lab.listening(f)
    with opened(b, region) as left, opened(c, region) as one, opened(e, region) as two:
        lab.send(a, [numbered(i) for i in range(30)])
        time.sleep(0.05)
        with left.recv(timeout=1) as batch:
            numbers = batch.head(22)[:, 21]
            assert batch.forward(one, where=numbers % 3 == 0) == 10
            assert batch.forward(two, where=numbers % 2 == 0) == 10, "of 15 even ones 5 had gone"
        assert [number(x) for x in ears[0].take(10)] == list(range(0, 30, 3))
        assert [number(x) for x in ears[1].take(10)] == [i for i in range(0, 30, 2) if i % 3]
        assert left.stats()["delivered"] == 10
        assert balanced(region)


def test_forward_between_regions_copies_and_says_so(lab, region):
    a, b = lab.pair(("va", "vb"))
    c, d = lab.pair(("vc", "vd"))
    ear = lab.listening(d)
    with opened(b, region) as left, opened(c) as right:
        lab.send(a, [numbered(i) for i in range(5)])
        time.sleep(0.05)
        assert left.recv(timeout=1).forward(right) == 5
        assert [number(x) for x in ear.take(5)] == list(range(5))
        assert left.stats()["copies"] == 5


def test_a_forward_without_room_is_counted(lab, region):
    a, b = lab.pair(("va", "vb"))
    c, _ = lab.pair(("vc", "vd"))
    with opened(b, region) as left, opened(c, region, slots=4) as right:
        right.tx_rings[0].bind(None)
        lab.send(a, [numbered(i) for i in range(10)])
        time.sleep(0.05)
        with left.recv(timeout=1) as batch:
            assert batch.forward(right) == 3
        assert left.stats()["drop_tx_full"] == 7 and left.stats()["forwarded"] == 3


def test_select_poll_and_asyncio_wake_when_frames_come(lab, wire):
    a, b = wire
    with opened(b) as port:
        _drain(port)
        assert select.select([port], [], [], 0)[0] == []
        threading.Timer(0.1, lab.send, (a, [numbered(1)])).start()
        assert select.select([port], [], [], 2)[0] == [port]
        assert len(port.recv(timeout=0.5)) == 1
        _drain(port)

        async def one() -> int:
            loop = asyncio.get_running_loop()
            got: asyncio.Future[int] = loop.create_future()
            loop.add_reader(port, lambda: got.done() or got.set_result(len(port.recv(timeout=0))))
            loop.call_later(0.05, lab.send, a, [numbered(2)])
            return await asyncio.wait_for(got, 2)

        assert asyncio.run(one()) >= 0


def _drain(port):
    for _ in range(3):
        port.recv(timeout=0.01)
        port.events()


def test_recv_waits_no_longer_than_asked(wire):
    _, b = wire
    with opened(b) as port:
        begun = time.monotonic()
        assert len(port.recv(timeout=0.3)) == 0
        assert 0.25 < time.monotonic() - begun < 1.0


def test_a_watching_port_sees_both_directions_and_leaves_the_host_its_traffic(lab, wire):
    a, b = wire
    ear = lab.listening(b)
    with opened(b) as port:
        lab.send(a, [numbered(1)])
        lab.send(b, [numbered(2)])
        frames = {number(f): out for batch in port.batches(timeout=0.3) for f, out in zip(batch, batch.outgoing.tolist(), strict=True)}
        assert frames == {1: False, 2: True}
    assert [number(f) for f in ear.take(1)] == [1]


@pytest.mark.parametrize("rx", ["blocks", "frames"])
def test_vlan_and_qinq_tags_are_back_in_the_frame(lab, wire, rx):
    a, b = wire
    plain = numbered(3, 100)
    sent = [plain, tagged(plain, 0x6064), tagged(tagged(plain, 7), 0x20C8, 0x88A8), tagged(tagged(plain, 7), 9)]
    with opened(b, rx=rx) as port:
        lab.send(a, sent)
        assert gather(port, 4) == sent
        assert port.stats()["vlan_restored"] == 3


@pytest.mark.parametrize("rx", ["blocks", "frames"])
def test_jumbo_frames_span_slots_and_come_back_whole(lab, rx):
    a, b = lab.pair(mtu=9000)
    sent = [numbered(i, size) for i, size in enumerate([60, 1792, 1793, 3584, 3585, 9014, 64])]
    ear = lab.listening(a)
    with opened(b, rx=rx) as port:
        lab.send(a, sent)
        got = gather(port, len(sent))
        assert got == sent
        port.send(got)
        assert ear.take(len(sent)) == sent


def test_several_queues_share_the_flows_and_lose_nothing(lab, wire):
    a, b = wire
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    frames = [bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP(dst="10.0.0.2") / UDP(sport=1000 + i, dport=9) / bytes(30)) for i in range(64)]
    with opened(b, queues=2) as port:
        lab.send(a, frames, count=10)
        got = sum(len(batch) for batch in port.batches(timeout=0.3))
        per_ring = [row["rx_frames"] for row in port.region.counters() if row["row"].startswith(b.name) and " rx" in row["row"]]
        assert got == 640 == sum(per_ring)
        assert len(per_ring) == 2 and all(per_ring), per_ring


def test_both_directions_of_a_flow_come_to_one_queue(lab, wire):
    a, b = wire
    with lab.inside(b.netns):
        there = socket.socket(type=socket.SOCK_DGRAM)
    with there:
        there.bind((b.host, 7))
        there.settimeout(2)
        with opened(b, queues=4) as port:
            for source in range(9000, 9032):
                with lab.inside(a.netns), socket.socket(type=socket.SOCK_DGRAM) as asks:
                    asks.bind((a.host, source))
                    asks.sendto(b"?", (b.host, 7))
                there.sendto(b"!", there.recvfrom(10)[1])
            queues = {}
            deadline = time.monotonic() + 2
            while sum(map(len, queues.values())) < 64 and time.monotonic() < deadline:
                batch = port.recv(timeout=0.1)
                for frame in map(bytes, batch):
                    if frame[12:14] == b"\x08\x00" and frame[23] == 17:
                        flow = max(int.from_bytes(frame[34:36]), int.from_bytes(frame[36:38]))
                        queues.setdefault(flow, []).append(batch._ring)
            assert sorted(queues) == list(range(9000, 9032)) and all(len(seen) == 2 and seen[0] is seen[1] for seen in queues.values())
            assert len({id(seen[0]) for seen in queues.values()}) > 1


def test_without_promiscuous_mode_the_interface_stays_as_it_is(lab, wire):
    _, b = wire

    def promiscuity():
        import json

        (link,) = json.loads(lab.run(b.netns, ["ip", "-d", "-j", "link", "show", b.name]).stdout)
        return link["promiscuity"]

    with opened(b, promisc=0):
        assert promiscuity() == 0
    with opened(b):
        assert promiscuity() == 1
    assert promiscuity() == 0


def test_runts_and_oversize_frames_are_refused_by_the_kernel_and_counted(wire, region):
    a, _ = wire
    with opened(a, region) as port:
        port.send([b"short", numbered(1, 1514), numbered(2, 1519), numbered(3)])
        stats = port.stats()
        assert (stats["tx_frames"], stats["drop_runt"], stats["drop_mtu"]) == (2, 1, 1), stats
        assert balanced(region)


def test_a_full_kernel_buffer_is_counted_as_kernel_drops(lab, wire):
    a, b = wire
    with opened(b, buffer=1) as port:
        sent = lab.send(a, [numbered(i, 1500) for i in range(100)], count=50)
        got = sum(len(batch) for batch in port.batches(timeout=0.3))
        stats = port.stats()
        assert 0 < got < sent
        assert got + stats["drop_kernel"] == sent


def test_scapy_sniffs_and_sends_through_a_port(lab, wire):
    a, b = wire
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.l2 import Ether
    from scapy.sendrecv import sendp, sniff

    packets = [Ether(src=SOURCE.hex(":"), dst=BROADCAST.hex(":")) / IP(dst="10.0.0.2") / ICMP(seq=i) for i in range(5)]
    with opened(b) as port, opened(a) as other:
        sendp(packets, socket=other.scapy(), verbose=False)
        got = sniff(opened_socket=port.scapy(), count=5, timeout=2)
        assert [p[ICMP].seq for p in got] == list(range(5))
        assert abs(got[0].time - time.time()) < 5


def test_a_closed_port_says_so_and_gives_everything_back(wire, region):
    _, b = wire
    free = region.pool.free
    for rx in ("blocks", "frames"):
        port = opened(b, region, rx=rx)
        assert region.pool.free < free
        port.close()
        port.close()
        assert region.pool.free == free and region.counters() == []
        with pytest.raises(Error, match="E_CLOSED"):
            port.recv(timeout=0)


@pytest.mark.parametrize(
    ("name", "code", "hint"),
    [
        ("", "E_PORT", "tap:NAME"),
        ("vbb", "E_NO_INTERFACE", "vb"),
        ("vb?qeues=2", "E_OPTION", "queues"),
        ("vb?queues=0", "E_OPTION", "1 to 64"),
        ("vb?take=yes", "E_OPTION", "0 or 1"),
        ("vb?rx=fast", "E_OPTION", "blocks or frames"),
        ("vb?slots=many", "E_OPTION", "number"),
        ("vb?netns=nowhere-at-all", "E_NO_NETNS", ""),
        ("tun:t0", "E_DRIVER", "tap"),
        ("vale0:x", "E_DRIVER", ""),
    ],
)
def test_bad_port_names_say_what_is_wrong_and_what_to_do(wire, name, code, hint):
    _, b = wire
    with pytest.raises(Error) as why:
        pktring.open(name, **({} if "netns" in name else {"netns": b.netns}))
    assert why.value.code == code, why.value
    assert hint in str(why.value)


def test_link_events_are_reported_and_the_port_resumes_when_its_interface_is_back(lab, wire):
    a, b = wire
    with opened(b) as port:
        lab.change(b.netns, b.name, state="down")
        assert [e.kind for e in _events(port)][:1] == ["down"]
        lab.change(b.netns, b.name, state="up")
        _events(port)
        _drain(port)
        lab.send(a, [numbered(1)])
        assert [number(f) for f in gather(port, 1)] == [1], "the same socket goes on"
        lab.delete(b.netns, b.name)
        assert "gone" in [e.kind for e in _events(port)]
        lab.veth(a, b)
        assert "back" in [e.kind for e in _events(port)]
        deadline = time.monotonic() + 1
        while "up" not in [e.kind for e in port.events()] and time.monotonic() < deadline:
            time.sleep(0.01)
        _drain(port)
        lab.send(a, [numbered(2)])
        assert [number(f) for f in gather(port, 1)] == [2]


def _events(port, within=1.0):
    deadline = time.monotonic() + within
    while not (events := port.events()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return events


def test_a_super_frame_of_more_pieces_than_the_ring_has_slots_is_dropped_by_name_and_stops_nothing(lab, wire, region):
    import socket
    import struct

    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    a, b = wire
    frame = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:01") / IP(dst="10.0.0.2") / TCP() / bytes(8000))
    with opened(b, region, slots=16) as port:
        with lab.inside(a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
            sock.bind((a.name, 0))
            sock.send(struct.pack("=BBHHHH", 1, 1, 54, 64, 34, 16) + frame)  # 125 pieces of 64 bytes
        lab.send(a, [numbered(1)])
        assert [number(f) for f in gather(port, 1)] == [1]
        assert port.stats()["drop_gso"] == 1
        assert balanced(region)


def test_whole_super_frames_come_with_their_parts(lab, wire):
    """`?gso=whole`: one frame in the ring stands for those that the wire sees; parts() gives them, and cutting gives the same."""
    a, b = wire
    sent = bytes(range(256)) * 200

    def received(**keys):
        import socket
        import threading

        with lab.inside(b.netns):
            server = socket.create_server((b.host, 0))
        with opened(b, **keys) as port:
            with lab.inside(a.netns):
                client = socket.socket()
            reader = threading.Thread(target=lambda: server.accept()[0].makefile("rb").read())
            reader.start()
            client.connect((b.host, server.getsockname()[1]))
            client.sendall(sent)
            client.close()
            reader.join(5)
            frames = []
            for batch in port.batches(timeout=0.2):
                frames += [(bytes(batch[i]), batch.parts(i)) for i in range(len(batch)) if not batch.outgoing[i]]
        server.close()
        return frames

    whole, cut = received(gso="whole"), received()
    assert max(len(frame) for frame, _ in whole) > 1514 >= max(len(part) for _, parts in whole for part in parts)
    assert all(parts == [frame] for frame, parts in cut)
    for frames in (whole, cut):
        assert b"".join(_payload(part) for _, parts in frames for part in parts) == sent


def _payload(frame):
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    packet, again = Ether(frame), Ether(frame)
    if IP not in packet:
        return b""  # ARP
    del again[IP].chksum, again[TCP].chksum
    assert bytes(again) == frame, "its checksums are right"
    return frame[14 + packet[IP].ihl * 4 + packet[TCP].dataofs * 4 : 14 + packet[IP].len]
