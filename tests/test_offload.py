"""Super-frames are cut byte for byte as scapy builds them and the kernel cuts them; what cannot be cut is refused."""

import ctypes
import itertools
import os
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ckernel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab
from scapy.layers.inet import IP, TCP, UDP, IPOption, IPOption_LSRR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import Dot1Q, Ether

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))

KERNEL = """
#include "offload.h"
#include <stdlib.h>

size_t vlan(uint8_t *frame, size_t len, size_t room, uint16_t tpid, uint16_t tci)
{
    return pr_vlan_insert(frame, len, room, tpid, tci);
}

/* Cut `frame`, lying in pieces of these lengths, each at an odd address, into buffers of `room` bytes. The frames come
 * one after another in `out`, their lengths in `lens`. How many, -1 = refused. */
int cut(const uint8_t *frame, const uint32_t *pieces, size_t n, const struct pr_meta *meta, size_t room, uint8_t *out,
        uint32_t *lens, size_t *most)
{
    struct iovec iov[n + 1];
    const uint8_t *at = frame;
    for (size_t i = 0; i < n; at += pieces[i++]) {
        iov[i] = (struct iovec){(uint8_t *)malloc(pieces[i] + 1) + 1, pieces[i]};
        memcpy(iov[i].iov_base, at, pieces[i]);
    }
    struct pr_cut c;
    int frames = 0, status = pr_cut_begin(&c, iov, n, meta);
    if (status == 0) {
        size_t count = pr_cut_count(&c), longest = 0, len, per = (pr_cut_frame_max(&c) + room - 1) / room;
        *most = pr_cut_frame_max(&c);
        struct iovec to[per];
        for (size_t k = 0; k < per; k++)
            to[k] = (struct iovec){malloc(room), room};
        while ((len = pr_cut_next(&c, to, per)) != 0) {
            longest = len > longest ? len : longest;
            lens[frames++] = (uint32_t)len;
            for (size_t k = 0; len; k++) {
                size_t take = len < room ? len : room;
                memcpy(out, to[k].iov_base, take);
                out += take;
                len -= take;
            }
        }
        if ((size_t)frames != count || longest != *most || pr_cut_count(&c))
            abort();
        for (size_t k = 0; k < per; k++)
            free(to[k].iov_base);
    }
    for (size_t i = 0; i < n; i++)
        free((uint8_t *)iov[i].iov_base - 1);
    return status < 0 ? -1 : frames;
}

/* A second frame offered no room: it must wait, unharmed, for the next call. */
int cut_with_no_room(uint8_t *frame, size_t len, const struct pr_meta *meta, uint8_t *out, size_t room)
{
    struct pr_cut c;
    struct iovec from = {frame, len}, to = {out, room}, small = {out, room - 1};
    if (pr_cut_begin(&c, &from, 1, meta) < 0 || pr_cut_next(&c, &to, 1) != room)
        return -1;
    return pr_cut_next(&c, &small, 1) == 0 && pr_cut_count(&c) == 1 && pr_cut_next(&c, &to, 1) == room;
}
"""
lib = ckernel.load(KERNEL, sanitize=True)
SIZE = ctypes.c_size_t
lib.vlan.restype = SIZE
lib.vlan.argtypes = [ctypes.c_char_p, SIZE, SIZE, ctypes.c_uint16, ctypes.c_uint16]
lib.cut.argtypes = [ctypes.c_char_p, ctypes.c_void_p, SIZE, ctypes.c_void_p, SIZE, *[ctypes.c_void_p] * 3]
lib.cut_with_no_room.argtypes = [ctypes.c_char_p, SIZE, ctypes.c_void_p, ctypes.c_void_p, SIZE]

NEEDS_CSUM = 1
TCPV4, UFO, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
GSO_TYPE = {(4, TCP): TCPV4, (6, TCP): TCPV6, (4, UDP): UDP_L4, (6, UDP): UDP_L4}
CHECK = {TCP: 16, UDP: 6}
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


class Meta(ctypes.Structure):
    """struct pr_meta"""

    _fields_ = [
        ("ts_ns", ctypes.c_uint64),
        ("wire_len", ctypes.c_uint32),
        ("hash", ctypes.c_uint32),
        *((name, ctypes.c_uint16) for name in ("port", "flags")),
        *((name, ctypes.c_uint8) for name in ("gso_type", "vnet_flags")),
        *((name, ctypes.c_uint16) for name in ("hdr_len", "gso_size", "csum_start", "csum_offset", "spare16")),
        ("spare", ctypes.c_uint8 * 32),
    ]


@dataclass(frozen=True)
class Super:
    """A super-frame and the facts that the kernel says about it; `l4` is where the transport header starts."""

    frame: bytes
    l4: int
    gso_type: int
    gso_size: int
    csum_offset: int
    vnet_flags: int = NEEDS_CSUM
    csum_start: int = 0

    @property
    def meta(self):
        facts = {name: getattr(self, name) for name in ("gso_type", "gso_size", "vnet_flags", "csum_offset")}
        return Meta(**facts, csum_start=self.csum_start or self.l4)


def cut(s, pieces=None, room=1 << 17):
    """The frames that come of it; None = refused."""
    pieces = pieces or [len(s.frame)]
    n_max = max(1, -(-len(s.frame) // max(s.gso_size, 1)))
    out, lens = ctypes.create_string_buffer(len(s.frame) + 300 * n_max), (ctypes.c_uint32 * n_max)()
    most = SIZE()
    lengths = (ctypes.c_uint32 * len(pieces))(*pieces)
    n = lib.cut(s.frame, lengths, len(pieces), ctypes.byref(s.meta), room, out, lens, ctypes.byref(most))
    if n < 0:
        return None
    data = memoryview(out)
    ends = list(itertools.accumulate(lens[:n]))
    return [bytes(data[end - length : end]) for end, length in zip(ends, lens[:n], strict=True)]


# ---- super-frames, by scapy ----

ADDRESSES = {4: {"src": "192.0.2.1", "dst": "198.51.100.77"}, 6: {"src": "2001:db8::1", "dst": "2001:db8:ffff::2:1"}}
OTHER = {4: "203.0.113.9", 6: "2001:db8:5::5"}
TAGS = [(), ((0x8100, 100),), ((0x88A8, 7), (0x8100, 0xE064)), ((0x9100, 1), (0x8100, 2))]
TCP_OPTIONS = [
    [],
    [("NOP", None), ("NOP", None), ("Timestamp", (12345, 678))],
    [("MSS", 1460), ("SAckOK", b""), ("WScale", 7), ("NOP", None)],
]
IP_OPTIONS = [[], [IPOption(b"\x01\x01\x01\x01")], [IPOption_LSRR(routers=[OTHER[4]])]]
EXTENSIONS = [
    [],
    [IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])],
    [IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]), IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])],
    [IPv6ExtHdrRouting(type=4, segleft=0, addresses=[OTHER[6]])],
    [IPv6ExtHdrRouting(type=0, segleft=1, addresses=[OTHER[6]])],
]


def ether(tags=()):
    """Addresses and tags; without addresses scapy would ask the network for them."""
    layers = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    kinds = [tpid for tpid, _ in tags]
    if kinds:
        layers.type = kinds[0]
    for (_, tci), following in itertools.zip_longest(tags, kinds[1:]):
        layers = layers / Dot1Q(
            prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF, **({"type": following} if following else {})
        )
    return layers


def network(version=4, ip_id=1, options=(), extensions=()):
    if version == 4:
        return IP(**ADDRESSES[4], id=ip_id, flags="DF", options=list(options))
    layers = IPv6(**ADDRESSES[6], fl=0x12345, tc=3)
    for each in extensions:
        layers = layers / each.copy()
    return layers


def expected(front, transport, ip_id, payload, size):
    """The frames as scapy builds each by itself."""
    chunks = [payload[i : i + size] for i in range(0, len(payload), size)] or [b""]
    for k, chunk in enumerate(chunks):
        layers, l4 = front.copy(), transport.copy()
        if IP in layers:
            layers[IP].id = (ip_id + k) & 0xFFFF
        if isinstance(l4, TCP):
            l4.seq = (transport.seq + k * size) & 0xFFFFFFFF
            l4.flags = int(l4.flags) & ~((CWR if k else 0) | (0 if k == len(chunks) - 1 else FIN | PSH))
        yield bytes(layers / l4 / chunk)


def super_frame(front, transport, payload, gso_size, partial=True):
    """All of it in one frame, checksum as the stack leaves it, and its facts."""
    kind, whole = type(transport), bytes(front / transport / payload)
    l4 = len(bytes(front.copy() / transport.copy())) - len(bytes(transport.copy()))
    at = l4 + CHECK[kind]
    if partial:  # the field becomes the pseudo header's sum: what the full sum has without the segment
        blank = whole[l4:at] + bytes(2) + whole[at + 2 :]
        field = -int.from_bytes(whole[at : at + 2], "big") - int.from_bytes(blank + bytes(len(blank) % 2), "big")
        whole = whole[:at] + (field % 0xFFFF).to_bytes(2, "big") + whole[at + 2 :]
    version = 4 if IP in front else 6
    return Super(whole, l4, GSO_TYPE[version, kind], gso_size, CHECK[kind], vnet_flags=NEEDS_CSUM if partial else 0)


def tcp_super(payload=b"x" * 3000, gso_size=1448, **how):
    partial = how.pop("partial", True)
    return super_frame(ether(how.pop("tags", ())) / network(**how), TCP(flags=ACK), payload, gso_size, partial)


def udp_super(payload=b"x" * 3000, gso_size=1400, **how):
    return super_frame(ether() / network(**how), UDP(sport=1, dport=2), payload, gso_size)


def patched(s, at, new):
    return replace(s, frame=s.frame[:at] + new + s.frame[at + len(new) :])


@st.composite
def descriptions(draw):
    """front, transport, ip id, is the checksum partial: any headers that a stack might give a super-frame."""
    version, kind = draw(st.sampled_from([4, 6])), draw(st.sampled_from([TCP, UDP]))
    options, extensions = draw(st.sampled_from(IP_OPTIONS)), draw(st.sampled_from(EXTENSIONS))
    ip_id = draw(st.sampled_from([0, 0x1234, 0xFFFE]))
    if kind is TCP:
        seq = draw(st.sampled_from([0, 1, 2**31, 2**32 - 2, 2**32 - 5000]))
        transport = TCP(
            sport=80, dport=draw(st.integers(0, 65535)), seq=seq, ack=7, options=draw(st.sampled_from(TCP_OPTIONS))
        )
        transport.flags = ACK | draw(st.sampled_from([0, PSH, FIN | PSH, CWR, CWR | FIN | PSH]))
    else:
        transport = UDP(sport=draw(st.integers(0, 65535)), dport=53)
    plain = (not options) if version == 4 else extensions[-1:] != EXTENSIONS[-1]
    partial = not plain or draw(st.booleans())
    return ether(draw(st.sampled_from(TAGS))) / network(version, ip_id, options, extensions), transport, ip_id, partial


def splits(draw, total):
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=5)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


# ---- cutting ----


@given(descriptions(), st.data())
@settings(max_examples=250, deadline=None)
def test_the_pieces_are_byte_for_byte_what_scapy_builds(described, data):
    front, transport, ip_id, partial = described
    gso_size = data.draw(st.integers(1, 9000))
    payload = bytes(range(251)) * 300
    payload = payload[: data.draw(st.integers(0, min(6 * gso_size, 60000)))]
    s = super_frame(front, transport, payload, gso_size, partial)
    got = cut(s, splits(data.draw, len(s.frame)), data.draw(st.integers(1, 9500)))
    assert got == list(expected(front, transport, ip_id, payload, gso_size))


@given(st.integers(1, 9000), st.integers(0, 65000), st.booleans(), st.integers(40, 9000), st.data())
@settings(max_examples=60, deadline=None)
def test_the_pieces_carry_the_whole_payload_in_order(gso_size, length, tcp, room, data):
    payload = os.urandom(length)
    s = (tcp_super if tcp else udp_super)(payload, gso_size)
    header = s.l4 + (20 if tcp else 8)
    got = cut(s, splits(data.draw, len(s.frame)), room)
    assert b"".join(frame[header:] for frame in got) == payload
    assert {len(frame) for frame in got[:-1]} <= {header + gso_size} and len(got) == max(1, -(-length // gso_size))
    for k, frame in enumerate(got):
        ip, segment = frame[14:34], frame[34:]
        pseudo = ip[12:20] + struct.pack("!HH", ip[9], len(segment))
        assert int.from_bytes(ip, "big") % 0xFFFF == 0
        assert int.from_bytes(pseudo + segment + bytes(len(segment) % 2), "big") % 0xFFFF == 0
        assert int.from_bytes(ip[2:4], "big") == len(frame) - 14
        if tcp:
            assert int.from_bytes(segment[4:8], "big") == k * gso_size


def test_fin_and_push_come_last_and_cwr_first():
    s = super_frame(ether() / network(), TCP(flags=FIN | PSH | ACK | CWR), b"x" * 30, 10)
    assert [frame[s.l4 + 13] for frame in cut(replace(s, gso_type=TCPV4 | ECN))] == [ACK | CWR, ACK, ACK | FIN | PSH]
    (only,) = cut(replace(s, gso_size=30))
    assert only[s.l4 + 13] == FIN | PSH | ACK | CWR


def test_a_udp_piece_whose_checksum_would_be_zero_gets_all_ones():
    front, transport = ether() / network(ip_id=0), UDP(sport=1, dport=2)
    (piece,) = cut(super_frame(front, transport, bytes(2), 2))
    payload = bytes(2) + piece[40:42]  # the second piece has what the first one's sum lacks
    assert cut(super_frame(front, transport, payload, 2))[1][40:42] == b"\xff\xff"


def test_bytes_behind_the_packet_are_left_out():
    s = tcp_super(b"y" * 30, 20)
    assert cut(replace(s, frame=s.frame + b"padding")) == cut(s)


def test_ipv4_without_a_length_ends_with_the_frame():
    """BIG TCP: more than 65535 bytes do not fit the field, which is then zero."""
    s = tcp_super(b"y" * 3000, 1000)
    assert cut(patched(s, 16, bytes(2))) == cut(s)
    front = ether() / network()
    small = tcp_super(b"", 1000)
    pseudo = int.from_bytes(small.frame[50:52], "big") + 120000  # the sum has the whole length
    long = patched(patched(small, 16, bytes(2)), 50, (pseudo % 0xFFFF).to_bytes(2, "big"))
    assert cut(replace(long, frame=long.frame + bytes(120000))) == list(
        expected(front, TCP(flags=ACK), 1, bytes(120000), 1000)
    )


def test_a_frame_that_does_not_fit_waits():
    s = tcp_super(b"y" * 20, 10)
    out = ctypes.create_string_buffer(100)
    assert lib.cut_with_no_room(s.frame, len(s.frame), ctypes.byref(s.meta), out, s.l4 + 30) == 1


# ---- what cannot be cut ----


IN_VXLAN = UDP(dport=4789) / (b"\x08" + bytes(7)) / ether() / network() / TCP() / (b"x" * 3000)
REFUSED = {
    "no size": replace(tcp_super(), gso_size=0),
    "no type": replace(tcp_super(), gso_type=0),
    "fragments of UDP": replace(udp_super(), gso_type=UFO),
    "an unknown type": replace(tcp_super(), gso_type=0x20 | TCPV4),
    "IPv6 announced, IPv4 inside": replace(tcp_super(), gso_type=TCPV6),
    "IPv4 announced, IPv6 inside": replace(tcp_super(version=6), gso_type=TCPV4),
    "TCP announced, UDP inside": replace(udp_super(), gso_type=TCPV4, csum_offset=16),
    "UDP announced, TCP inside": replace(tcp_super(), gso_type=UDP_L4, csum_offset=6),
    "ECN of UDP": replace(udp_super(), gso_type=UDP_L4 | ECN),
    "a VXLAN tunnel's inner TCP": Super(bytes(ether() / network() / IN_VXLAN), 84, TCPV4, 1448, 16),
    "a GRE tunnel": patched(tcp_super(), 23, b"\x2f"),
    "the checksum of another header": replace(tcp_super(), csum_start=54),
    "the checksum at another place": replace(tcp_super(), csum_offset=14),
    "the first fragment": patched(tcp_super(), 20, b"\x20\x00"),
    "a later fragment": patched(tcp_super(), 20, b"\x00\x01"),
    "an IPv6 fragment": patched(tcp_super(version=6), 20, b"\x2c"),
    "a jumbogram": patched(tcp_super(version=6, extensions=EXTENSIONS[1]), 18, bytes(2)),
    "ARP": patched(tcp_super(), 12, b"\x08\x06"),
    "IPv4 of version 6": patched(tcp_super(), 14, b"\x65"),
    "IPv6 of version 4": patched(tcp_super(version=6), 14, b"\x40"),
    "a short IPv4 header": patched(tcp_super(), 14, b"\x44"),
    "IPv4 longer than the frame": patched(tcp_super(), 16, b"\xff\xff"),
    "IPv4 shorter than its TCP": patched(tcp_super(), 16, b"\x00\x27"),
    "IPv4 shorter than its own header": patched(tcp_super(), 16, b"\x00\x13"),
    "IPv6 longer than the frame": patched(tcp_super(version=6), 18, b"\xff\xff"),
    "a short TCP header": patched(tcp_super(), 46, b"\x40"),
    "UDP of another length than IP": patched(udp_super(), 38, b"\x00\x64"),
    "UDP shorter than its header": patched(patched(udp_super(), 16, b"\x00\x1b"), 38, b"\x00\x07"),
    "endless extension headers": patched(tcp_super(version=6, extensions=EXTENSIONS[1]), 55, b"\xff"),
    "tags without end": Super(ether(TAGS[1] * 80).build() + bytes(3000), 34, TCPV4, 1448, 16),
    "a source route, and no sum to tell": tcp_super(options=IP_OPTIONS[2], partial=False),
    "a routing header, and no sum to tell": tcp_super(version=6, extensions=EXTENSIONS[4], partial=False),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    assert cut(REFUSED[what]) is None


WHOLE = {"tcp4": tcp_super(tags=TAGS[2]), "tcp6": tcp_super(version=6, extensions=EXTENSIONS[2]), "udp": udp_super()}


@pytest.mark.parametrize("s", WHOLE.values(), ids=WHOLE)
def test_a_frame_cut_short_anywhere_is_refused(s):
    assert cut(s)
    for length in [*range(s.l4 + 60), len(s.frame) - 1]:
        assert cut(replace(s, frame=s.frame[:length])) is None


@pytest.mark.parametrize("version, most", [(4, 65535 - 40), (6, 65535 - 20)])
def test_a_piece_longer_than_ip_can_say_is_refused(version, most):
    """Only a super-frame without a length can hold such."""
    s = tcp_super(version=version)
    at = {4: 16, 6: 18}[version]
    s = replace(s, frame=patched(s, at, bytes(2)).frame + bytes(200000))
    assert cut(replace(s, gso_size=most)) is not None
    assert most == 65535 or cut(replace(s, gso_size=most + 1)) is None


# ---- VLAN ----


@given(
    st.binary(min_size=12, max_size=100), st.integers(0, 65535), st.sampled_from([0x8100, 0x88A8]), st.integers(0, 8)
)
def test_a_tag_goes_back_behind_the_addresses(frame, tci, tpid, spare):
    room = len(frame) + spare
    buffer = ctypes.create_string_buffer(frame + bytes(spare), room)
    length = lib.vlan(buffer, len(frame), room, tpid, tci)
    if spare < 4:
        assert length == 0 and buffer.raw == frame + bytes(spare)
    else:
        assert buffer.raw[:length] == frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]


@pytest.mark.parametrize("length, room", [(0, 0), (11, 100), (14, 3), (14, 17), (100, 99)])
def test_no_room_for_a_tag(length, room):
    assert lib.vlan(ctypes.create_string_buffer(128), length, room, 0x8100, 1) == 0


# ---- against the kernel, and against chance ----

SOL_PACKET, PACKET_VNET_HDR = 263, 15
LAST, FIRST = TCP(seq=2**32 - 99, flags=FIN | PSH | ACK), TCP(flags=ACK | CWR, options=TCP_OPTIONS[1])
SENT = {
    "tcp4": super_frame(ether() / network(ip_id=0xFFFF), LAST, os.urandom(20001), 1000),
    "tcp4 with CWR and options": super_frame(ether() / network(options=IP_OPTIONS[1]), FIRST, os.urandom(5000), 1400),
    "tcp4, QinQ": tcp_super(os.urandom(9000), 1448, tags=TAGS[2]),
    "tcp6": tcp_super(os.urandom(30000), 1440, version=6),
    "tcp6 with extension headers": tcp_super(os.urandom(3000), 1001, version=6, extensions=EXTENSIONS[2]),
    "udp4": udp_super(os.urandom(4001), 1000),
    "udp6": udp_super(os.urandom(4001), 1000, version=6),
}


@pytest.mark.needs("root")
def test_the_kernel_cuts_the_same_way():
    """Send each through a veth without segmentation offload: skb_segment cuts it on the way out."""
    with Lab() as net:
        a, b = net.pair(offloads=False)
        with net.inside(a.netns):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sock, net.listening(b) as ear:
            sock.bind((a.name, 0))
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            for name, s in SENT.items():
                ours = cut(s)
                header = struct.pack("=BBHHHH", NEEDS_CSUM, s.gso_type, s.l4 + 20, s.gso_size, s.l4, s.csum_offset)
                sock.send(header + s.frame)
                assert ear.take(len(ours)) == ours, name


def test_random_bytes_and_facts_stay_inside_of_their_memory():
    source = (Path(__file__).parent / "offload_fuzz.c").read_text()
    seed = str(time.time_ns())
    got = subprocess.run(
        [ckernel.program(source), str(FUZZ_S), seed], capture_output=True, text=True, timeout=FUZZ_S + 60
    )
    assert got.returncode == 0, f"seed {seed}\n{got.stderr}"
    done = dict(zip(*[iter(got.stdout.split())] * 2, strict=True))
    assert min(map(int, done.values())) > 100, f"the fuzzer reached little: {done}"
