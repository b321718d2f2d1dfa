"""Which flow a frame belongs to: whole frames with known hashes, rule by rule, and against the rules in Python."""

import os
import struct
import subprocess
import time
from pathlib import Path

import ckernel
import flows
import frames
import pytest
from flows import RSS
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import ARP, Ether

import pktring
from pktring.engine.flow import KINDS
from pktring.engine.toeplitz import SYMMETRIC_KEY

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))
ROW4, ROW6 = RSS["suite"][0], RSS["suite"][5]
ADDRESSES = {"src": ROW4["src"], "dst": ROW4["dst"]}, {"src": ROW6["src"], "dst": ROW6["dst"]}
PORTS = {"sport": ROW4["src_port"], "dport": ROW4["dst_port"]}
ADDRESSES4, PORTS4 = int(ROW4["hash_ip_only"], 16), int(ROW4["hash_tcp"], 16)
ADDRESSES6, PORTS6 = int(ROW6["hash_ip_only"], 16), int(ROW6["hash_tcp"], 16)


def ether(packet):
    return bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / packet)  # or scapy asks the network for them


def ip4(over, **fields):
    return ether(IP(**ADDRESSES[0], **fields) / over)


def ip6(over, **fields):
    return ether(IPv6(**ADDRESSES[1], **fields) / over)


def tcp(**fields):
    return TCP(**PORTS, **fields) / b"0123456789"


def udp():
    return UDP(**PORTS) / b"0123456789"


def expected(frame, key=flows.KEY):
    kind, hashed = flows.flow(frame)
    return flows.toeplitz(hashed, key), kind


# ---- rule by rule ----


ARP_FRAME = ether(ARP(hwsrc="02:00:00:00:00:02", psrc="0.0.0.0"))


@pytest.mark.parametrize("packet", [pytest.param(p, id=p["name"]) for p in RSS["packets"]])
def test_whole_frames(packet):
    assert pktring.flow_hash(bytes.fromhex(packet["frame_hex"]))[0] == int(packet["expected"], 16), packet["rule"]


def test_the_kinds():
    found = [pktring.flow_hash(f)[1] for f in (ip4(tcp()), ip4(udp()), ip4(ICMP()), ip6(tcp()), ip6(udp()), ip6(b""), ARP_FRAME)]
    assert found == ["tcp4", "udp4", "ip4", "tcp6", "udp6", "ip6", "none"] and set(found) == set(KINDS)


def test_P_H3_what_is_not_ip_has_no_hash():
    assert pktring.flow_hash(ARP_FRAME) == (0, "none") == pktring.flow_hash(frames.numbered(7))


@pytest.mark.parametrize("frame, header", [(ip4(tcp()), 20), (ip6(tcp()), 40)], ids=["4", "6"])
def test_P_H3_an_ip_header_that_is_not_all_there_has_no_hash(frame, header):
    assert all(pktring.flow_hash(frame[:n]) == (0, "none") for n in range(14 + header))
    assert pktring.flow_hash(frame[: 14 + header])[1] in ("ip4", "ip6")


@pytest.mark.parametrize("frame", [ip4(tcp()), ip6(tcp())], ids=["4", "6"])
@pytest.mark.parametrize("version", range(16))
def test_P_H3_only_the_version_that_the_ethertype_names(frame, version):
    changed = bytearray(frame)
    changed[14] = version << 4 | changed[14] & 15
    assert (pktring.flow_hash(changed)[1] == "none") == (version != frame[14] >> 4)


def test_P_H7_tcp_is_hashed_with_its_ports():
    assert pktring.flow_hash(ip4(tcp())) == (PORTS4, "tcp4")
    assert pktring.flow_hash(ip6(tcp())) == (PORTS6, "tcp6")


@pytest.mark.parametrize("words", range(11))
def test_P_H7_ports_are_found_behind_options(words):
    frame = ip4(tcp(), options=[IPOption_NOP()] * 4 * words)
    assert frame[14] == 0x45 + words and pktring.flow_hash(frame) == (PORTS4, "tcp4")


@pytest.mark.parametrize("words", range(5))
def test_P_H7_a_header_that_claims_less_than_it_must_have_gives_addresses_only(words):
    frame = bytearray(ip4(tcp()))
    frame[14] = 0x40 + words
    assert pktring.flow_hash(frame) == (ADDRESSES4, "ip4")


@pytest.mark.parametrize(
    "frame, header, addresses, kinds",
    [
        (ip4(tcp()), 14 + 20 + 20, ADDRESSES4, ("ip4", "tcp4")),
        (ip6(tcp()), 14 + 40 + 20, ADDRESSES6, ("ip6", "tcp6")),
        (ip4(udp()), 14 + 20 + 8, ADDRESSES4, ("ip4", "udp4")),
        (ip6(udp()), 14 + 40 + 8, ADDRESSES6, ("ip6", "udp6")),
    ],
    ids=["tcp4", "tcp6", "udp4", "udp6"],
)
def test_P_H7_a_transport_header_that_is_not_all_there_gives_addresses_only(frame, header, addresses, kinds):
    assert pktring.flow_hash(frame[: header - 1]) == (addresses, kinds[0])
    assert pktring.flow_hash(frame[:header])[1] == kinds[1]


def test_P_H7_options_that_reach_beyond_the_frame_give_addresses_only():
    frame = bytearray(ip4(tcp()))
    frame[14] = 0x4F
    assert pktring.flow_hash(frame) == (ADDRESSES4, "ip4")


def test_P_H7_udp_and_others_are_hashed_by_addresses():
    assert pktring.flow_hash(ip4(udp())) == (ADDRESSES4, "udp4") and pktring.flow_hash(ip6(udp())) == (ADDRESSES6, "udp6")
    assert pktring.flow_hash(ip4(ICMP())) == (ADDRESSES4, "ip4") and pktring.flow_hash(ip4(b"x" * 40, proto=132)) == (ADDRESSES4, "ip4")


@pytest.mark.parametrize("over", [tcp, udp])
@pytest.mark.parametrize("fields", [{"flags": "MF"}, {"frag": 1}, {"frag": 185, "flags": "MF"}, {"frag": 0x1FFF}], ids=str)
def test_P_H8_every_fragment_is_hashed_by_addresses(fields, over):
    assert pktring.flow_hash(ip4(over(), **fields)) == (ADDRESSES4, "ip4")


@pytest.mark.parametrize("flags", [0, "DF", "evil"])
def test_P_H8_other_flags_make_no_fragment(flags):
    assert pktring.flow_hash(ip4(tcp(), flags=flags)) == (PORTS4, "tcp4")


@pytest.mark.parametrize(
    "header",
    [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting, IPv6ExtHdrFragment, lambda: IPv6ExtHdrFragment(offset=9, m=1)],
)
def test_P_H9_extension_headers_give_addresses_only(header):
    assert pktring.flow_hash(ip6(header() / tcp())) == (ADDRESSES6, "ip6") == pktring.flow_hash(ip6(header() / udp()))


# ---- tags ----


@pytest.mark.parametrize("tpids", [(0x8100,), (0x88A8,), (0x9100,), (0x88A8, 0x8100), (0x8100,) * 3])
@pytest.mark.parametrize("frame, hash", [(ip4(tcp()), (PORTS4, "tcp4")), (ip6(tcp()), (PORTS6, "tcp6"))], ids=["4", "6"])
def test_tags_are_passed_over(frame, hash, tpids):
    for tpid in tpids:
        frame = frames.tagged(frame, 100, tpid)
    assert pktring.flow_hash(frame) == hash


@pytest.mark.parametrize("n, kind", [(28, "tcp4"), (29, "none"), (400, "none")])
def test_there_is_a_last_place_for_an_ip_header(n, kind):
    frame = ip4(tcp())
    assert pktring.flow_hash(frame[:12] + struct.pack("!HH", 0x8100, 1) * n + frame[12:])[1] == kind


def test_a_frame_that_ends_in_its_tags():
    frame = frames.tagged(frames.tagged(ip4(tcp()), 1), 2)
    assert all(pktring.flow_hash(frame[:n]) == (0, "none") for n in range(22 + 20))


# ---- keys ----


def test_with_the_symmetric_key_both_directions_are_one_flow():
    there = ip4(tcp())
    back = ether(IP(src=ROW4["dst"], dst=ROW4["src"]) / TCP(sport=ROW4["dst_port"], dport=ROW4["src_port"]))
    assert pktring.flow_hash(there, SYMMETRIC_KEY) == pktring.flow_hash(back, SYMMETRIC_KEY)
    assert pktring.flow_hash(there) != pktring.flow_hash(back)
    assert pktring.flow_hash(back)[0] == int(ROW4["derived"]["reversed_hash_tcp"], 16)


@given(st.binary(max_size=60))
def test_any_key_will_do(key):
    assert pktring.flow_hash(ip4(tcp()), key) == expected(ip4(tcp()), key)
    assert pktring.flow_hash(ip6(tcp()), key) == expected(ip6(tcp()), key)


# ---- against the rules in Python, and against chance ----


@st.composite
def built(draw):
    """A frame as scapy makes it: tags, options, fragments, extension headers; then cut off and spoilt here and there."""
    over = draw(st.sampled_from([tcp, udp, ICMP, lambda: TCP(dataofs=5), lambda: b"", lambda: b"payload"]))()
    if draw(st.booleans()):
        fields = {"flags": draw(st.sampled_from([0, "DF", "MF"])), "frag": draw(st.sampled_from([0, 0, 0, 1, 185]))}
        packet = IP(src=draw(st.ip_addresses(v=4).map(str)), dst=draw(st.ip_addresses(v=4).map(str)), **fields)
        packet.options = [IPOption_NOP()] * draw(st.sampled_from([0, 0, 4, 40]))
    else:
        packet = IPv6(src=draw(st.ip_addresses(v=6).map(str)), dst=draw(st.ip_addresses(v=6).map(str)))
        for header in draw(st.lists(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment]), max_size=2)):
            packet = packet / header()
    frame = bytearray(ether(packet / over))
    for tpid in draw(st.lists(st.sampled_from(flows.TAGS), max_size=3)):
        frame[12:12] = struct.pack("!HH", tpid, draw(st.integers(0, 0xFFFF)))
    for at in draw(st.lists(st.integers(12, 60), max_size=2)):
        frame[at : at + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(frame[: draw(st.integers(0, len(frame)) | st.just(len(frame)))])


@given(built())
def test_it_follows_the_rules_over_built_frames(frame):
    assert pktring.flow_hash(frame) == expected(frame)


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\x00\x01\x08\x00\x46", b""]))
@example(b"", b"")
def test_it_follows_the_rules_over_random_bytes(noise, ethertype):
    frame = noise[:12] + ethertype + noise[12:]
    assert pktring.flow_hash(frame) == expected(frame)


def test_random_bytes_stay_inside_of_their_memory():
    seed = str(time.time_ns())
    command = [ckernel.program(Path(__file__).with_name("flow_fuzz.c").read_text()), str(FUZZ_S), seed]
    got = subprocess.run(command, capture_output=True, text=True, timeout=FUZZ_S + 60)
    assert got.returncode == 0, f"seed {seed}\n{got.stderr}"
    done = dict(zip(*[iter(got.stdout.split())] * 2, strict=True))
    assert set(done) == set(KINDS) and min(map(int, done.values())) > 100, f"the fuzzer reached little: {done}"
