"""Paths and the loop that runs them: directions, filters, limits, mirrors, ends, pauses, and what waits when there is no room."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time

import captures
import pytest
from conservation import balanced, unaccounted
from frames import number, numbered
from lab import SOL_PACKET, End, Lab

import pktring
from pktring.drivers import null
from pktring.engine import filter as pcap_filter
from pktring.engine.forward import Forwarder, Path
from pktring.shm.region import COUNTER_NAMES, Region

PACKET_VNET_HDR = 15


@pytest.fixture
def region():
    with Region.create(f"test-forward-{os.getpid()}", rings=16, slots=512) as region:
        yield region


@pytest.fixture
def ports(region):
    """Open ports of the one region; closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda name, directions="rxtx", **keys: stack.enter_context(
            pktring.open(name, region=keys.pop("region", region), directions=directions, **keys)
        )


@pytest.fixture
def file(tmp_path):
    """Make a capture file of these frames, a microsecond apart; its port name."""

    def make(frames, name="in.pcap"):
        (tmp_path / name).write_bytes(captures.pcap([(1_700_000_000_000_000_000 + i * 1000, frame) for i, frame in enumerate(frames)]))
        return f"pcap:{tmp_path / name}"

    return make


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


def written(name):
    with pktring.open(name) as port:
        return [bytes(frame) for batch in port.batches() for frame in batch]


def to_the_end(forwarder, seconds=5.0):
    deadline = time.monotonic() + seconds
    while (why := forwarder.run(0.5)) == "time":
        assert time.monotonic() < deadline
    return why


# ---- ends ----


def test_a_file_is_forwarded_to_its_end_in_order(ports, file, tmp_path, region):
    sent = [numbered(i, 60 + i % 1400) for i in range(3000)]
    source, target = ports(file(sent), "rx"), ports(f"pcap:{tmp_path}/out.pcapng", "tx")
    assert to_the_end(Forwarder([Path(source, target)])) == "end"
    assert source.stats()["forwarded"] == 3000 == target.stats()["tx_frames"] and source.stats()["copies"] == 0
    assert balanced(region)
    target.close()
    assert written(f"pcap:{tmp_path}/out.pcapng") == sent


def test_the_end_is_when_every_source_has_ended(ports, file):
    one, two = ports(file([numbered(1)], "a.pcap"), "rx"), ports("null:?len=60", "rx")
    forwarder = Forwarder([Path(one, None), Path(two, None)])
    assert forwarder.run(0.2) == "time"
    assert one.ended and one.stats()["delivered"] == 1


def test_without_a_target_frames_are_counted_as_delivered(ports, file, region):
    source = ports(file([numbered(i) for i in range(100)]), "rx")
    assert to_the_end(Forwarder([Path(source, None)])) == "end"
    assert source.stats()["delivered"] == 100 and balanced(region)


def test_a_run_lasts_as_long_as_it_was_asked_to(ports):
    forwarder = Forwarder([Path(ports("null:?len=60", "rx"), None)])
    for seconds in (0.0, 0.05, 0.3):
        begun = time.monotonic()
        assert forwarder.run(seconds) == "time"
        assert seconds <= time.monotonic() - begun < seconds + 1


@pytest.mark.needs("root")
def test_a_signal_comes_back_to_the_caller(ports, lab):
    _, b = lab.pair()
    forwarder = Forwarder([Path(ports("vb", netns=b.netns), None)])
    forwarder.run(0.1)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert forwarder.run(5) == "signal"
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- direction, filter, limit ----


@pytest.mark.needs("root")
@pytest.mark.parametrize(("direction", "passed"), [("in", 30), ("out", 20), ("inout", 50)])
def test_directions_are_those_of_the_host(ports, lab, region, direction, passed):
    a, b = lab.pair()
    source, sink = ports("vb", netns=b.netns), ports("null:", "tx")
    forwarder = Forwarder([Path(source, sink, direction=direction)])
    lab.send(a, [numbered(i) for i in range(30)])
    lab.send(b, [numbered(i) for i in range(20)])
    assert forwarder.run(0.3) == "time"
    stats = source.stats()
    assert (stats["forwarded"], stats["drop_direction"]) == (passed, 50 - passed)
    assert sink.stats()["tx_frames"] == passed and balanced(region)


def test_what_a_filter_does_not_match_is_dropped_and_counted(ports, file, tmp_path, region):
    frames = [numbered(i, ethertype=0x88B5 if i % 3 else 0x88B6) for i in range(300)]
    source, target = ports(file(frames), "rx"), ports(f"pcap:{tmp_path}/out.pcapng", "tx")
    assert to_the_end(Forwarder([Path(source, target, filter=pcap_filter.compile("ether proto 0x88b6"))])) == "end"
    assert source.stats()["forwarded"] == 100 and source.stats()["drop_filter"] == 200 and balanced(region)
    target.close()
    assert [number(f) for f in written(f"pcap:{tmp_path}/out.pcapng")] == list(range(0, 300, 3))


def test_garbage_is_no_filter(ports):
    source = ports("null:?len=60", "rx")
    for program in (b"\xff" * 8, b"\0" * 7):
        with pytest.raises(ValueError):
            Forwarder([Path(source, None, filter=program)])


@pytest.mark.parametrize("limit", [0, 1, 7, 1000, 100_000])
def test_a_limit_is_exact_over_several_paths(ports, region, limit):
    sources = [ports("null:?len=60", "rx") for _ in range(3)]
    sink = [ports("null:", "tx"), ports("null:", "tx"), None]
    forwarder = Forwarder([Path(source, target) for source, target in zip(sources, sink, strict=True)], limit=limit)
    assert to_the_end(forwarder) == "limit" and forwarder.left == 0
    passed = [source.stats()["forwarded"] + source.stats()["delivered"] for source in sources]
    assert sum(passed) == limit
    assert forwarder.run(0.1) == "limit", "and it stays so"
    assert sum(s.stats()["forwarded"] + s.stats()["delivered"] for s in sources) == limit


def test_frames_that_a_filter_drops_do_not_count_against_the_limit(ports, file):
    source = ports(file([numbered(i, ethertype=0x88B5 if i % 3 else 0x88B6) for i in range(300)]), "rx")
    forwarder = Forwarder([Path(source, None, filter=pcap_filter.compile("ether proto 0x88b6"))], limit=10)
    assert to_the_end(forwarder) == "limit"
    assert source.stats()["delivered"] == 10 and source.stats()["drop_filter"] >= 18


# ---- mirrors ----


def test_mirrors_get_copies_of_every_frame_matched_or_not(ports, file, tmp_path, region):
    frames = [numbered(i, 60 + i, ethertype=0x88B5 if i % 3 else 0x88B6) for i in range(300)]
    source, target = ports(file(frames), "rx"), ports(f"pcap:{tmp_path}/out.pcapng", "tx")
    mirrors = [ports(f"pcap:{tmp_path}/mirror{i}.pcapng", "tx") for i in range(2)]
    assert to_the_end(Forwarder([Path(source, target, filter=pcap_filter.compile("ether proto 0x88b6"), mirrors=mirrors)])) == "end"
    stats = source.stats()
    assert (stats["forwarded"], stats["drop_filter"], stats["mirrored"], stats["drop_mirror"]) == (100, 200, 600, 0)
    assert stats["copies"] == 0, "the original is not copied"
    assert balanced(region)
    for port in (target, *mirrors):
        port.close()
    assert written(f"pcap:{tmp_path}/mirror0.pcapng") == frames == written(f"pcap:{tmp_path}/mirror1.pcapng")


def test_a_full_mirror_never_holds_its_original_up(ports, file, region):
    source, target, mirror = ports(file([numbered(i) for i in range(1000)]), "rx"), ports("null:", "tx"), ports("null:", "tx", slots=8)
    mirror.tx_rings[0].bind(None)
    assert to_the_end(Forwarder([Path(source, target, mirrors=[mirror])])) == "end"
    stats = source.stats()
    assert (stats["forwarded"], stats["mirrored"], stats["drop_mirror"]) == (1000, 7, 993)
    assert target.stats()["tx_frames"] == 1000
    mirror.tx_rings[0].bind(mirror.device.queues[0].device)
    mirror.flush()
    assert balanced(region)


def test_a_mirror_of_a_path_without_a_target_gets_what_is_delivered(ports, file, tmp_path):
    source, mirror = ports(file([numbered(i) for i in range(10)]), "rx"), ports(f"pcap:{tmp_path}/m.pcapng", "tx")
    to_the_end(Forwarder([Path(source, None, mirrors=[mirror])]))
    mirror.close()
    assert [number(f) for f in written(f"pcap:{tmp_path}/m.pcapng")] == list(range(10))


def test_more_mirrors_or_paths_than_there_is_room_for_are_refused(ports):
    source, mirror = ports("null:?len=60", "rx"), ports("null:", "tx")
    Forwarder([Path(source, None, mirrors=[mirror] * 8)])
    with pytest.raises(ValueError, match="mirrors"):
        Forwarder([Path(source, None, mirrors=[mirror] * 9)])
    Forwarder([Path(source, None)] * 64)
    with pytest.raises(ValueError, match="paths"):
        Forwarder([Path(source, None)] * 65)


# ---- what has to wait ----


def test_a_full_transmit_ring_keeps_frames_in_the_receive_ring(ports, file, region):
    source, target = ports(file([numbered(i) for i in range(100)]), "rx"), ports("null:", "tx", slots=8)
    target.tx_rings[0].bind(None)
    forwarder = Forwarder([Path(source, target)])
    assert forwarder.run(0.15) == "time"
    assert source.stats()["forwarded"] == 7 and source.rx_rings[0].ready == 93
    assert not {k: n for k, n in source.stats().items() if k.startswith("drop") and n}
    target.tx_rings[0].bind(null.open("", {}).queues[0].device)
    assert to_the_end(forwarder) == "end"
    assert target.stats()["tx_frames"] == 100 and balanced(region)


@pytest.mark.needs("root")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_back_pressure_reaches_the_kernel_which_counts_what_it_drops(ports, lab, region, rx):
    a, b = lab.pair()
    source, target = ports("vb", "rx", netns=b.netns, take=1, rx=rx, buffer=1), ports("null:", "tx", slots=8)
    device = target.device.queues[0].device
    target.tx_rings[0].bind(None)
    forwarder = Forwarder([Path(source, target)])
    sent = lab.send(a, [numbered(i, 1000) for i in range(100)], count=50)
    assert forwarder.run(0.2) == "time"
    held = source.stats()
    assert held["forwarded"] == 7 and held["drop_kernel"] > 0
    target.tx_rings[0].bind(device)
    forwarder.run(0.3)
    stats = source.stats()
    assert stats["forwarded"] + stats["drop_kernel"] == sent and target.stats()["tx_frames"] == stats["forwarded"]
    assert {k for k, n in stats.items() if k.startswith("drop") and n} == {"drop_kernel"} and balanced(region)


def test_a_file_that_is_to_be_rotated_pauses_and_nothing_is_lost(ports, file, tmp_path, region):
    frames = [numbered(i, 1000) for i in range(200)]
    source, target = ports(file(frames), "rx"), ports(f"pcap:{tmp_path}/out.pcapng?size=50000", "tx")
    forwarder, pauses = Forwarder([Path(source, target)]), 0
    while (why := to_the_end(forwarder)) == "paused":
        pauses += 1
        assert pauses < 20
        assert target.device.proceed()
    assert why == "end" and pauses >= 3
    assert target.stats()["tx_frames"] == 200 and balanced(region)
    target.close()
    parts = sorted(tmp_path.glob("out.pcapng*"), key=lambda path: (len(path.name), path.name))
    assert [f for part in parts for f in written(f"pcap:{part}")] == frames


@pytest.mark.needs("root")
def test_an_idle_loop_costs_nothing(ports, lab):
    _, b = lab.pair(("va", "vb"))
    c, _ = lab.pair(("vc", "vd"))
    one, two = ports("vb", netns=b.netns, take=1), ports("vc", netns=c.netns, take=1)
    forwarder = Forwarder([Path(one, two), Path(two, one)])
    forwarder.run(0.2)
    before = time.process_time()
    assert forwarder.run(1) == "time"
    assert time.process_time() - before < 0.05


@pytest.mark.needs("root")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_bytes_calls_and_awakenings_are_counted(ports, lab, region, rx):
    a, b = lab.pair(("va", "vb"))
    c, d = lab.pair(("vc", "vd"))
    source, target = ports("vb", "rx", netns=b.netns, take=1, rx=rx), ports("vc", "tx", netns=c.netns)
    forwarder = Forwarder([Path(source, target)])
    sizes = [60 + 7 * i for i in range(100)]
    sender = threading.Timer(0.4, lab.send, (a, [numbered(i, size) for i, size in enumerate(sizes)]))
    with lab.listening(d) as ear:
        sender.start()
        assert forwarder.run(1.0) == "time"
        sender.join()
        assert [len(frame) for frame in ear.take(100)] == sizes
    assert source.stats()["rx_bytes"] == sum(sizes) == target.stats()["tx_bytes"]
    assert source.stats()["wakeups"] >= 1, "it slept until they came"
    assert 2 <= target.stats()["syscalls"] <= 100, "64 frames a call at the most, one at the least"
    assert balanced(region)


@pytest.mark.needs("root")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_partial_checksums_that_were_completed_are_counted(ports, lab, region, rx):
    """The kernel leaves the checksum of what its own stack sends over a veth to nobody."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    a, b = lab.pair()
    source = ports("vb", "rx", netns=b.netns, take=1, rx=rx)
    with lab.inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(10):
            sock.sendto(b"to whom it may concern", ("10.0.0.255", 9))
    with source.recv(timeout=2) as batch:
        packets = [Ether(bytes(frame)) for frame in batch]
    assert source.stats()["csum_completed"] == len(packets) > 0
    for packet in packets:
        told = packet[UDP].chksum
        del packet[UDP].chksum
        assert Ether(bytes(packet))[UDP].chksum == told and IP in packet


# ---- rings, regions, super-frames ----


def flow_frames(n_flows, n):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    heads = [bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP(dst="10.0.0.2") / UDP(sport=1000 + i, dport=9) / bytes(18)) for i in range(n_flows)]
    return [head[:42] + k.to_bytes(8, "big") + head[50:] for k in range(n) for head in heads]


@pytest.mark.needs("root")
@pytest.mark.parametrize("n_target", [1, 2, 3])
def test_several_rings_each_have_a_path_and_flows_stay_in_order(ports, lab, region, n_target):
    a, b = lab.pair(("va", "vb"))
    c, d = lab.pair(("vc", "vd"))
    source, target = ports("vb", netns=b.netns, take=1, queues=2), ports("vc", netns=c.netns, queues=n_target)
    ear = lab.listening(d)
    lab.send(a, flow_frames(32, 20))
    assert Forwarder([Path(source, target)]).run(0.3) == "time"
    heard = ear.take(640)
    assert len(heard) == 640
    for flow in {f[:42] for f in heard}:
        assert [int.from_bytes(f[42:50], "big") for f in heard if f[:42] == flow] == list(range(20))
    rows = {row["row"]: row for row in region.counters()}
    assert all(rows[f"vb rx{i}"]["forwarded"] for i in range(2)) and balanced(region)


def test_between_regions_frames_are_copied_and_counted_so(ports, file, tmp_path, region):
    frames = [numbered(i, 60 + 9 * i) for i in range(500)]
    with Region.create(f"test-forward-other-{os.getpid()}", rings=2, slots=64) as other:
        source, target = ports(file(frames), "rx"), ports(f"pcap:{tmp_path}/out.pcapng", "tx", region=other)
        assert to_the_end(Forwarder([Path(source, target)])) == "end"
        assert source.stats()["copies"] == 500 == target.stats()["tx_frames"] and balanced(region) and balanced(other)
        target.close()
    assert written(f"pcap:{tmp_path}/out.pcapng") == frames


def test_a_frame_that_needs_more_slots_elsewhere_waits_for_them_and_is_dropped_only_if_it_never_fits(ports, file, tmp_path, region):
    frames = [numbered(i, 5000 if i == 20 else 1000) for i in range(40)]
    with Region.create(f"test-forward-small-{os.getpid()}", rings=2, slots=64, stride=512) as other:
        source, mirror = ports(file(frames), "rx"), ports(f"pcap:{tmp_path}/m.pcapng", "tx")
        target = ports(f"pcap:{tmp_path}/out.pcapng", "tx", region=other, slots=16)
        assert to_the_end(Forwarder([Path(source, target, mirrors=[mirror])])) == "end"
        stats = source.stats()
        assert (stats["forwarded"], stats["copies"], stats["drop_tx_full"], stats["mirrored"]) == (39, 39, 1, 40)
        assert balanced(region) and balanced(other)
        target.close()
        mirror.close()
    assert written(f"pcap:{tmp_path}/out.pcapng") == frames[:20] + frames[21:]
    assert written(f"pcap:{tmp_path}/m.pcapng") == frames


def test_a_slot_that_was_filled_wrongly_is_dropped_and_counted(ports, file, region):
    source, target = ports(file([numbered(i) for i in range(10)]), "rx"), ports("null:", "tx")
    ring = source.rx_rings[0]
    ring.sync()
    buf, _, flags, _ = ring.slot(3)
    ring.set_slot(3, buf, 60_000, flags)
    buf, length, flags, _ = ring.slot(5)
    ring.set_slot(5, 1 << 30, length, flags)
    assert to_the_end(Forwarder([Path(source, target)])) == "end"
    assert source.stats()["drop_bad_slot"] == 2 and source.stats()["forwarded"] == 8 == target.stats()["tx_frames"]
    assert balanced(region)
    ring.set_slot(5, buf, 0, 0)


@pytest.mark.needs("root")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_super_frames_are_forwarded_whole_and_cut_for_a_mirror_that_is_a_file(ports, lab, region, tmp_path, rx):
    """The kernel's own TCP makes them; the stream must arrive, and lie in the file in wire frames."""
    from scapy.layers.inet import TCP
    from scapy.layers.l2 import Ether

    a, b = End(lab.namespace("a"), "va", "10.0.0.1/24"), End(lab.namespace("b"), "vb", "10.0.0.2/24")
    middle = lab.namespace("middle")
    fa, fb = End(middle, "fa"), End(middle, "fb")
    lab.veth(a, fa)
    lab.veth(b, fb)
    left, right = (ports(end.name, netns=middle, take=1, rx=rx) for end in (fa, fb))
    mirror = ports(f"pcap:{tmp_path}/m.pcapng", "tx")
    forwarder = Forwarder([Path(left, right, mirrors=[mirror]), Path(right, left)])
    over = threading.Event()

    def forward():
        while not over.is_set():
            if forwarder.run(0.1) == "event":
                left.events()
                right.events()

    runner = threading.Thread(target=forward, daemon=True)
    runner.start()
    data = os.urandom(1 << 18)
    try:
        with lab.inside(b.netns), socket.create_server((b.host, 4000)) as server:
            with lab.inside(a.netns):
                client = socket.create_connection((b.host, 4000), timeout=10)
            conn, _ = server.accept()
            conn.settimeout(10)
            with client, conn:
                for at in range(0, len(data), 1 << 16):
                    client.sendall(data[at : at + (1 << 16)])
                    got = b""
                    while len(got) < 1 << 16:
                        assert (piece := conn.recv(1 << 16))
                        got += piece
                    assert got == data[at : at + (1 << 16)]
        time.sleep(0.1)
    finally:
        over.set()
        runner.join(10)
    stats = left.stats()
    assert stats["rx_supers"] == 0 == stats["copies"] and stats["drop_mirror"] == 0
    assert mirror.stats()["tx_frames"] > stats["forwarded"], "one super-frame, several in the file"
    assert balanced(region)
    mirror.close()
    frames = written(f"pcap:{tmp_path}/m.pcapng")
    assert max(map(len, frames)) <= 1514
    packets = [p for f in frames if TCP in (p := Ether(f)) and p[TCP].dport == 4000]
    begin = next(p[TCP].seq for p in packets if p[TCP].flags == "S")
    segments = {(p[TCP].seq - begin) % 2**32: bytes(p[TCP].payload) for p in packets if len(p) > 66}
    assert b"".join(segments[at] for at in sorted(segments)) == data


def super_frame(payload, gso_size):
    """TCP to 10.0.0.2 as the kernel's stack hands it to a device that segments, and the virtio-net header that says so."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="PA", seq=1) / payload
    )
    return struct.pack("=BBHHHH", 1, 1, 54, gso_size, 34, 16) + frame


@pytest.mark.needs("root")
@pytest.mark.parametrize("rx", ["frames", "blocks"])
def test_super_frames_are_cut_for_a_target_that_does_not_carry_them_and_the_books_say_so(ports, lab, region, tmp_path, rx):
    a, b = lab.pair()
    source, target = ports("vb", "rx", netns=b.netns, take=1, rx=rx), ports(f"pcap:{tmp_path}/out.pcapng", "tx")
    payload = os.urandom(9999)
    with lab.inside(a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((a.name, 0))
        for _ in range(3):
            sock.send(super_frame(payload, 1000))
    Forwarder([Path(source, target)]).run(0.3)
    stats = source.stats()
    assert (stats["rx_kernel"], stats["rx_supers"], stats["rx_pieces"], stats["rx_frames"]) == (3, 3, 30, 30)
    assert stats["forwarded"] == 30 and balanced(region)
    target.close()
    assert b"".join(frame[54:] for frame in written(f"pcap:{tmp_path}/out.pcapng")) == payload * 3


@pytest.mark.needs("root")
@pytest.mark.parametrize("n", [100, 1400])
def test_super_frames_wait_in_the_socket_and_what_it_has_no_room_for_is_counted(ports, lab, region, n):
    """rx=frames: what is longer than a ring frame waits in the socket's buffer; the last of a burst may wait for slots, too."""
    a, b = lab.pair()
    source, target = ports("vb", "rx", netns=b.netns, take=1, rx="frames"), ports("null:", "tx")
    wire = super_frame(os.urandom(60_000), 1400)
    with lab.inside(a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((a.name, 0))
        for _ in range(n):
            sock.send(wire)
    Forwarder([Path(source, target)]).run(1)
    stats = source.stats()
    assert (stats["drop_trunc"] > 0) == (n > 1000) and stats["rx_kernel"] == n == stats["rx_supers"] + stats["drop_trunc"]
    assert stats["syscalls"] == stats["rx_supers"], "one call for each that came by the socket"
    assert stats["forwarded"] == 43 * stats["rx_supers"] == target.stats()["tx_frames"] and balanced(region)


@pytest.mark.needs("root")
def test_a_slot_to_send_that_was_filled_wrongly_is_passed_over_and_counted(ports, lab, region):
    a, b = lab.pair()
    port = ports("va", netns=a.netns)
    ring, ear = port.tx_rings[0], lab.listening(b)
    ring.put([numbered(i) for i in range(5)])
    buf, _, flags, _ = ring.slot(2)
    ring.set_slot(2, buf, 60_000, flags)
    ring.sync()
    assert [number(frame) for frame in ear.take(4)] == [0, 1, 3, 4]
    ring.count(COUNTER_NAMES.index("tx_queued"), 5 - port.stats()["tx_queued"])  # put beside the port
    stats = port.stats()
    assert (stats["tx_frames"], stats["drop_bad_slot"]) == (4, 1) and balanced(region)


def test_books_that_do_not_balance_would_be_seen(ports, file, region):
    """The law itself: take a count away, and it fails."""
    source = ports(file([numbered(i) for i in range(10)]), "rx")
    to_the_end(Forwarder([Path(source, None)]))
    assert not any(unaccounted(region).values())
    source.rx_rings[0].count(COUNTER_NAMES.index("rx_frames"), 1)
    assert any(unaccounted(region).values())
