"""Live traffic crosses `pktring bridge` byte for byte, with every offload of the kernel switched on, and all of it is counted.

Two hosts, each in a namespace, and between them a third in which the bridge runs:

    host a  va ===== fa  pktring bridge  fb ===== vb  host b
"""

import hashlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from frames import numbered, tagged
from lab import End, Lab

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(300)]

GIB = 1 << 30
UDP_SEGMENT = 103
SOL_PACKET, PACKET_VNET_HDR = 263, 15
VNET = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset


@dataclass
class Net:
    lab: Lab
    a: End
    b: End
    fa: End
    fb: End


@pytest.fixture
def net(request):
    how = getattr(request, "param", {})
    with Lab() as lab:
        middle = lab.namespace("bridge")
        a = End(lab.namespace("a"), "va", "10.0.0.1/24")
        b = End(lab.namespace("b"), "vb", "10.0.0.2/24")
        fa, fb = End(middle, "fa"), End(middle, "fb")
        lab.veth(a, fa, **how)
        lab.veth(b, fb, **how)
        yield Net(lab, a, b, fa, fb)


@contextmanager
def bridged(net, *flags):
    """Run the command until the block ends; the dict that the block gets holds its JSON report afterwards."""
    argv = [sys.executable, "-m", "pktring.tools.main", "bridge", "fa", "fb", "--json", *flags]
    child = net.lab.start(net.fa.netns, argv, stdout=-1, stderr=-1)
    ear = net.lab.listening(net.b)
    deadline = time.monotonic() + 10
    while not ear.take(1, 0.05):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline, "the bridge does not forward"
        net.lab.send(net.a, [numbered(0)])
    ear.close()
    report: dict = {}
    yield report
    time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    report.update(json.loads(out))


def whole(report):
    """Nothing was dropped, either way."""
    for way in ("a_to_b", "b_to_a"):
        assert report[way]["dropped"] == 0 and not any(report[way]["reasons"].values()), report
    return True


def listener(net, end, kind=socket.SOCK_STREAM):
    with net.lab.inside(end.netns):
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(60)
        sock.bind((end.host, 4000))
        return sock


def digest_of(server, out):
    conn, _ = server.accept()
    digest, n, view = hashlib.sha256(), 0, memoryview(bytearray(1 << 20))
    while got := conn.recv_into(view):
        digest.update(view[:got])
        n += got
    out.append((n, digest.hexdigest()))


def stream(net, source, target, size):
    """Send `size` pseudo-random bytes by TCP; (bytes, digest) as sent and as received."""
    block = os.urandom(1 << 20)
    received: list = []
    server = listener(net, target)
    server.listen()
    reader = threading.Thread(target=digest_of, args=(server, received))
    reader.start()
    with net.lab.inside(source.netns):
        client = socket.create_connection((target.host, 4000), timeout=60)
    digest = hashlib.sha256()
    for i in range(size >> 20):
        piece = struct.pack("!Q", i) + block[8:]
        digest.update(piece)
        client.sendall(piece)
    client.close()
    reader.join(120)
    server.close()
    return (size, digest.hexdigest()), received[0] if received else None


@pytest.mark.parametrize(("net", "size"), [({}, GIB), ({"offloads": False}, GIB // 8)], indirect=["net"], ids=["on", "off"])
def test_R18_a_gibibyte_of_tcp_crosses_byte_for_byte(net, size):
    with bridged(net) as report:
        sent, got = stream(net, net.a, net.b, size)
    assert got == sent
    assert whole(report)


def test_R18_tcp_both_ways_at_once(net):
    results = {}
    with bridged(net) as report:
        back = threading.Thread(target=lambda: results.update(back=stream(net, net.b, net.a, 64 << 20)))
        back.start()
        results["forth"] = stream(net, net.a, net.b, 64 << 20)
        back.join(60)
    assert results["forth"][0] == results["forth"][1] and results["back"][0] == results["back"][1]
    assert whole(report)


def datagrams(net, sizes, send):
    """What arrives of datagrams of these sizes; the content depends on the size."""
    server = listener(net, net.b, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
    got: dict[int, bytes] = {}

    def read():
        server.settimeout(1.0)
        try:
            while len(got) < len(sizes):
                data = server.recv(1 << 16)
                got[len(data)] = data
        except TimeoutError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with net.lab.inside(net.a.netns):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect((net.b.host, 4000))
    send(client)
    reader.join(30)
    client.close()
    server.close()
    return got


def pattern(size):
    return bytes((size * 7 + i) & 0xFF for i in range(size))


@pytest.mark.parametrize("net", [{"mtu": 9000}], indirect=True)
def test_R18_every_udp_size_up_to_8972_crosses_byte_for_byte(net):
    sizes = range(8973)

    def send(client):
        for size in sizes:
            client.send(pattern(size))
            if size % 64 == 63:
                time.sleep(0.001)

    with bridged(net) as report:
        got = datagrams(net, sizes, send)
    missing = [size for size in sizes if got.get(size) != pattern(size)]
    assert not missing, missing[:10]
    assert whole(report)


def test_R18_udp_that_the_kernel_segments_arrives_as_it_was_sent(net):
    sizes = [1400, *range(1, 1400, 97)]

    def send(client):
        client.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1400)
        for size in sizes[1:]:
            client.send(pattern(1400) * 3 + pattern(size))

    with bridged(net) as report:
        got = datagrams(net, sizes, send)
    assert got == {size: pattern(size) for size in sizes}
    assert whole(report)


def test_R18_tagged_frames_keep_their_tags(net):
    plain = numbered(5, 1000)
    sent = [tagged(plain, 0x6064), tagged(tagged(plain, 7), 0x20C8, 0x88A8), plain, tagged(tagged(plain, 1), 2)]
    ears = net.lab.listening(net.b), net.lab.listening(net.a)
    with bridged(net) as report:
        ears[0].take(100, 0.2)
        net.lab.send(net.a, sent)
        assert ears[0].take(4) == sent
        net.lab.send(net.b, sent)
        assert ears[1].take(4) == sent
    assert whole(report)


def super_frame(tags, payload):
    """A TCP super-frame, its checksum left to the device, and the facts that say so."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    inner = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="PA", seq=1000))
    frame = bytearray(inner + payload)
    struct.pack_into("!H", frame, 16, 40 + len(payload))
    start = 34
    pseudo = 20 + len(payload) + 6 + sum(struct.unpack("!4H", frame[26:34]))
    while pseudo >> 16:
        pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    struct.pack_into("!H", frame, start + 16, pseudo)
    frame = bytes(frame)
    for tci, tpid in tags:
        frame = tagged(frame, tci, tpid)
        start += 4
    return VNET.pack(1, 1, start + 20, 1400, start, 16) + frame


@pytest.mark.parametrize("tags", [[], [(0x6064, 0x8100)]], ids=["plain", "vlan"])
def test_R18_a_super_frame_for_a_device_without_tso_is_cut_into_right_wire_frames(net, tags):
    """The sender hands 10 segments over in one; the receiving veth takes none, so the bridge's side must cut."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    net.lab.offloads(net.fb, False)
    net.lab.offloads(net.b, False)
    payload = os.urandom(14000)
    ear = net.lab.listening(net.b)
    with bridged(net) as report:
        ear.take(100, 0.2)
        with net.lab.inside(net.a.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.bind(("va", 0))
            sock.send(super_frame(tags, payload))
        frames = ear.take(10)
    packets = [Ether(f) for f in frames]
    assert len(packets) == 10 and all(len(f) == 1454 + 4 * len(tags) for f in frames)
    assert b"".join(bytes(p[TCP].payload) for p in packets) == payload
    for frame, packet in zip(frames, packets, strict=True):
        again = Ether(frame)
        del again[IP].chksum, again[TCP].chksum
        assert bytes(again) == frame, "checksums are right"
        assert (bytes(packet)[12:14] == b"\x81\x00") == bool(tags)
    assert whole(report)


def test_R10_frames_sent_equal_frames_forwarded_plus_drops(net):
    with bridged(net, "--filter", "not ether proto 0x88b6") as report:
        before = _tx_packets(net, net.a)
        net.lab.send(net.a, [numbered(i) for i in range(100)] + [numbered(i, ethertype=0x88B6) for i in range(30)], count=50)
        sent = _tx_packets(net, net.a) - before
    way = report["a_to_b"]
    assert sent == 130 * 50
    probes = way["frames"] - 5000
    assert probes >= 1 and way["reasons"].get("drop_filter", 0) == 1500, report


def _tx_packets(net, end):
    (link,) = json.loads(net.lab.run(end.netns, ["ip", "-s", "-j", "link", "show", end.name]).stdout)
    return link["stats64"]["tx"]["packets"]
