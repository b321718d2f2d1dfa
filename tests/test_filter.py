"""Filters: the machine against the kernel's own; expressions against frames whose answer is known."""

import ctypes
import os
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import ckernel
import pcapy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from pktring.engine import filter
from pktring.shm.errors import Error

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))
SO_ATTACH_FILTER = 26

lib = ckernel.load(
    """
    #include "filter.h"
    int check(const void *program, uint32_t n) { return pr_filter_check(program, n); }
    uint32_t run(const void *program, uint32_t n, const uint8_t *frame, uint32_t caplen, uint32_t wirelen)
    {
        return pr_filter_run(program, n, frame, caplen, wirelen);
    }
    """,
    sanitize=True,
)
lib.check.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
lib.run.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32]
lib.run.restype = ctypes.c_uint32


def count(program):
    return len(program) // filter.INSTRUCTION.size


def accepted(program):
    return lib.check(program, count(program)) == 0


def run(program, frame, caplen=None, wirelen=None):
    """Bytes to keep; a program that would be refused never runs."""
    assert accepted(program)
    caplen = len(frame) if caplen is None else caplen
    return lib.run(program, count(program), frame, caplen, len(frame) if wirelen is None else wirelen)


def program(*instructions):
    return b"".join(filter.INSTRUCTION.pack(*each) for each in instructions)


class Kernel:
    """The kernel's machine, by the filter of a datagram socket: what passes arrives, cut to what was returned."""

    def __init__(self):
        self.a, self.b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.b.setblocking(False)

    def accepts(self, program):
        code = ctypes.create_string_buffer(program, max(len(program), 1))
        try:
            self.b.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", count(program), ctypes.addressof(code))
            )
        except OSError:
            return False
        return True

    def passes(self, frame):
        """Bytes that came through; None = none did."""
        self.a.send(frame)
        try:
            return len(self.b.recv(1 << 16))
        except BlockingIOError:
            return None


kernel = Kernel()


# ---- the machine against the kernel's ----

LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
WORD, HALF, BYTE = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
K, X, A = 0x00, 0x08, 0x10
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = range(0, 0xB0, 0x10)
JA, JEQ, JGT, JGE, JSET = range(0, 0x50, 0x10)
TAX, TXA = 0x00, 0x80

PLACES = [LD | size | mode for size in (WORD, HALF, BYTE) for mode in (ABS, IND)] + [LDX | BYTE | MSH]
WORDS_OF_M = [LD | MEM, LDX | MEM, ST, STX]
PLAIN = [LD | IMM, LDX | IMM, LD | LEN, LDX | LEN, MISC | TAX, MISC | TXA, ALU | NEG, RET | K, RET | A]
SUMS = [ALU | op | source for op in (ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, MOD, XOR) for source in (K, X)]
BRANCHES = [JMP | op | source for op in (JEQ, JGT, JGE, JSET) for source in (K, X)]
EVERY = PLACES + WORDS_OF_M + PLAIN + SUMS + BRANCHES + [JMP | JA]

numbers = st.sampled_from(
    [0, 1, 2, 4, 5, 31, 32, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
) | st.integers(0, 2**32 - 1)


@st.composite
def instructions(draw):
    kind = draw(st.sampled_from([PLACES, WORDS_OF_M, PLAIN, SUMS, BRANCHES, BRANCHES, SUMS, [JMP | JA]]))
    code = draw(st.sampled_from(kind))
    k = {
        id(PLACES): st.integers(0, 70),
        id(WORDS_OF_M): st.integers(0, 3),
        id(SUMS): st.integers(1, 31) | numbers,
    }.get(id(kind), numbers if code != JMP | JA else st.integers(0, 4))
    return code, draw(st.integers(0, 4)), draw(st.integers(0, 4)), draw(k)


@st.composite
def programs(draw):
    """Programs that the kernel mostly takes: M[0] and M[1] perhaps written, anything behind, a return at the end."""
    start = [(ST, 0, 0, 0), (STX, 0, 0, 1)][: draw(st.integers(0, 2))]
    middle = draw(st.lists(instructions(), max_size=16))
    middle = [
        (c, min(t, left), min(f, left), k)
        for left, (c, t, f, k) in zip(range(len(middle), -1, -1), middle, strict=False)
    ]
    return program(*start, *middle, (RET | draw(st.sampled_from([A, K])), 0, 0, draw(numbers)))


frames = st.binary(min_size=1, max_size=80)


@given(programs(), st.lists(frames, min_size=3, max_size=3))
@settings(max_examples=1500, deadline=None)
def test_random_programs_do_what_they_do_in_the_kernel(code, datagrams):
    assert accepted(code) == kernel.accepts(code), "\n".join(filter.disassemble(code))
    for frame in datagrams if accepted(code) else []:
        kept = run(code, frame)
        assert (min(kept, len(frame)) or None) == kernel.passes(frame), "\n".join(filter.disassemble(code))


@pytest.mark.parametrize("code", SUMS)
def test_arithmetic_to_the_last_bit(code):
    """The result is compared a byte at a time: what a filter returns is cut to the datagram's length."""
    frame = bytes(300)
    for a, v, shift in product(
        [0, 1, 7, 2**31, 2**32 - 1], [0, 1, 3, 31, 32, 33, 2**31 + 1, 2**32 - 1], [0, 8, 16, 24]
    ):
        one_byte = (ALU | RSH, 0, 0, shift), (ALU | AND, 0, 0, 0xFF), (ALU | ADD, 0, 0, 1), (RET | A, 0, 0, 0)
        whole = program((LD | IMM, 0, 0, a), (LDX | IMM, 0, 0, v), (code, 0, 0, v), *one_byte)
        assert accepted(whole) == kernel.accepts(whole), (a, v)
        if accepted(whole):
            assert (run(whole, frame) or None) == kernel.passes(frame), (a, v, shift)


def test_the_same_instructions_are_known_as_in_the_kernel():
    for code, k in product(range(0x100), (1, 15, 16, 31, 32)):
        alone = program((ST, 0, 0, 1), (ST, 0, 0, 15), (code, 0, 0, k), *[(RET, 0, 0, 1)] * 40)
        assert accepted(alone) == kernel.accepts(alone), (code, k)


GOOD = program((RET, 0, 0, 1))
MALFORMED = {
    "nothing": b"",
    "no return at the end": program((RET, 0, 0, 1), (LD | IMM, 0, 0, 1)),
    "a jump past the end": program((JMP | JEQ, 0, 1, 0), (RET, 0, 0, 1)),
    "a jump past the end when false": program((JMP | JEQ, 1, 0, 0), (RET, 0, 0, 1)),
    "a long jump past the end": program((JMP | JA, 0, 0, 1), (RET, 0, 0, 1)),
    "a jump back": program((LD | IMM, 0, 0, 1), (JMP | JA, 0, 0, 0xFFFFFFFE), (RET, 0, 0, 1)),
    "a long jump that wraps": program((JMP | JA, 0, 0, 0xFFFFFFFF), (RET, 0, 0, 1)),
    "a division by zero": program((ALU | DIV, 0, 0, 0), (RET, 0, 0, 1)),
    "a remainder by zero": program((ALU | MOD, 0, 0, 0), (RET, 0, 0, 1)),
    "a shift by 32": program((ALU | LSH, 0, 0, 32), (RET, 0, 0, 1)),
    "M[16]": program((ST, 0, 0, 16), (RET, 0, 0, 1)),
    "M[0] never written": program((LD | MEM, 0, 0, 0), (RET, 0, 0, 1)),
    "M[0] written on one way only": program((JMP | JEQ, 0, 1, 0), (ST, 0, 0, 0), (LDX | MEM, 0, 0, 0), (RET, 0, 0, 1)),
    "M[0] written on the other way": program((JMP | JA, 0, 0, 1), (ST, 0, 0, 0), (LDX | MEM, 0, 0, 0), (RET, 0, 0, 1)),
    "an unknown instruction": program((0xFF, 0, 0, 0), (RET, 0, 0, 1)),
    "a code of more than a byte": program((0x106, 0, 0, 0), (RET, 0, 0, 1)),
    "too many": GOOD * 4097,
}


@pytest.mark.parametrize("what", MALFORMED)
def test_refused_here_and_by_the_kernel(what):
    assert not accepted(MALFORMED[what]) and not kernel.accepts(MALFORMED[what])


def test_the_longest_program_is_accepted():
    assert accepted(GOOD * 4096) and run(GOOD * 4096, b"x") == 1


def test_a_word_written_on_every_way_may_be_read():
    both = program((JMP | JEQ, 1, 0, 0), (ST, 0, 0, 3), (ST, 0, 0, 3), (LD | MEM, 0, 0, 3), (RET, 0, 0, 7))
    assert accepted(both) and kernel.accepts(both)


@pytest.mark.parametrize("k", [0x80000000, 0xFFFFF000, 0xFFFFF004, 0xFFFFFFFF])
@pytest.mark.parametrize("code", [LD | WORD | ABS, LD | HALF | ABS, LD | BYTE | ABS, LDX | BYTE | MSH])
def test_the_kernels_notes_beside_the_frame_are_refused(code, k):
    assert not accepted(program((code, 0, 0, k), (RET, 0, 0, 1)))


@pytest.mark.parametrize("size, length", [(WORD, 4), (HALF, 2), (BYTE, 1)])
@pytest.mark.parametrize("mode", [ABS, IND])
def test_a_load_reaches_the_last_byte_and_no_further(size, length, mode):
    frame = bytes(range(1, 21))
    for at in (20 - length, 21 - length, 20, 1000, 0x7FFFFFFF):
        code = program(
            (LDX | IMM, 0, 0, at - 5 if mode == IND else 0), (LD | size | mode, 0, 0, 5 if mode == IND else at)
        )
        kept = run(code + program((RET | A, 0, 0, 0)), frame)
        assert kept == (int.from_bytes(frame[-length:], "big") if at == 20 - length else 0)


def test_a_program_sees_what_was_captured_and_is_told_the_length_on_the_wire():
    frame = FRAMES["tcp to 80"]
    assert run(filter.compile("greater 1000"), frame, wirelen=1500) and not run(filter.compile("greater 1000"), frame)
    assert run(program((LDX | LEN, 0, 0, 0), (MISC | TXA, 0, 0, 0), (RET | A, 0, 0, 0)), frame, wirelen=1500) == 1500
    assert run(filter.compile("tcp port 80"), frame, caplen=38)
    assert not run(filter.compile("tcp port 80"), frame, caplen=37), "the destination port is cut in two"


# ---- the compiler, and both together ----

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
FRAMES = {
    "arp": Ether(src=ETHER.src, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1", pdst="10.0.0.2"),
    "tcp to 80": ETHER / V4 / TCP(sport=4000, dport=80, flags="S"),
    "tcp from 80": ETHER / IP(src="10.0.0.2", dst="10.0.0.1") / TCP(sport=80, dport=4000, flags="PA") / (b"y" * 1000),
    "tcp to 80, options": ETHER
    / IP(src="10.1.0.1", dst="10.0.0.2", options=[IPOption(b"\1" * 8)])
    / TCP(dport=80, flags="A"),
    "udp to 53": ETHER / V4 / UDP(sport=4000, dport=53) / b"query",
    "udp fragment": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=100, proto=17) / bytes([0, 53] * 10),
    "icmp": ETHER / V4 / ICMP(),
    "tcp6 to 80": ETHER / V6 / TCP(sport=4000, dport=80, flags="S"),
    "udp6 to 53": ETHER / V6 / UDP(sport=4000, dport=53),
    "vlan 100 udp": ETHER / Dot1Q(vlan=100) / V4 / UDP(sport=4000, dport=53),
    "vlan 200 arp": ETHER / Dot1Q(vlan=200, prio=7) / ARP(),
    "qinq 7 100 tcp": ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=100) / V4 / TCP(sport=4000, dport=80, flags="S"),
    "multicast": Ether(src=ETHER.src, dst="01:00:5e:00:00:01")
    / IP(src="10.0.0.1", dst="224.0.0.1")
    / UDP(sport=1, dport=2),
    "an address": ETHER.copy().build()[:13],
}
FRAMES = {name: bytes(frame) for name, frame in FRAMES.items()}
TCP4 = {"tcp to 80", "tcp from 80", "tcp to 80, options"}
IP4 = TCP4 | {"udp to 53", "udp fragment", "icmp", "multicast"}
VLAN = {"vlan 100 udp", "vlan 200 arp", "qinq 7 100 tcp"}
EXPRESSIONS = {
    "ip": IP4,
    "not ip": set(FRAMES) - IP4 - {"an address"},
    "arp": {"arp"},
    "tcp": TCP4 | {"tcp6 to 80"},
    "tcp port 80": TCP4 | {"tcp6 to 80"},
    "tcp dst port 80": {"tcp to 80", "tcp to 80, options", "tcp6 to 80"},
    "src port 80": {"tcp from 80"},
    "port 53": {"udp to 53", "udp6 to 53"},
    "udp": {"udp to 53", "udp fragment", "udp6 to 53", "multicast"},
    "icmp or ip6": {"icmp", "tcp6 to 80", "udp6 to 53"},
    "portrange 50-60": {"udp to 53", "udp6 to 53"},
    "host 10.0.0.1": {"arp", "tcp to 80", "tcp from 80", "udp to 53", "udp fragment", "icmp", "multicast"},
    "src net 10.1.0.0/16": {"tcp to 80, options"},
    "ip6 host 2001:db8::2 and tcp": {"tcp6 to 80"},
    "ether src 02:00:00:00:00:01 and not ether dst 02:00:00:00:00:02": {"arp", "multicast"},
    "ether broadcast": {"arp"},
    "ether multicast": {"arp", "multicast"},
    "ip multicast or ip broadcast": {"multicast"},
    "ip[6:2] & 0x1fff != 0": {"udp fragment"},
    "tcp[tcpflags] & tcp-syn != 0": {"tcp to 80"},
    "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-ack": {"tcp from 80", "tcp to 80, options"},
    "ip[0] & 0xf > 5": {"tcp to 80, options"},
    "len >= 1000": {"tcp from 80"},
    "less 13": {"an address"},
    "ether[12:2] = 0x88a8": {"qinq 7 100 tcp"},
    "tcp and (ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2) != 0": {"tcp from 80"},
    "(ip[1+1:2] * 2 / 3) % 7 = 1 and udp": {"udp to 53"},
    "vlan": VLAN,
    "vlan 100": {"vlan 100 udp"},
    "vlan 100 and udp": {"vlan 100 udp"},
    "vlan and arp": {"vlan 200 arp"},
    "vlan 7 and vlan 100 and tcp dst port 80": {"qinq 7 100 tcp"},
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_finds_its_frames(expression):
    code = filter.compile(expression)
    assert {name for name, frame in FRAMES.items() if run(code, frame)} == EXPRESSIONS[expression]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_kernel_and_libpcap_find_the_same(expression):
    code, libpcap = filter.compile(expression), pcapy.compile(1, 262144, expression, 1, 0)
    assert kernel.accepts(code)
    for name, frame in FRAMES.items():
        found = bool(run(code, frame))
        assert found == (kernel.passes(frame) is not None) == bool(libpcap.filter(frame)), name


@given(st.sampled_from(sorted(EXPRESSIONS)), st.sampled_from(sorted(FRAMES)), st.data())
@settings(max_examples=500, deadline=None)
def test_spoilt_frames_are_judged_as_the_kernel_does(expression, name, data):
    frame = bytearray(FRAMES[name])
    for at in data.draw(st.lists(st.integers(0, min(len(frame), 60) - 1), max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    frame = bytes(frame[: data.draw(st.integers(1, len(frame)))])
    code = filter.compile(expression)
    assert kernel.accepts(code) and (kernel.passes(frame) is not None) == bool(run(code, frame))


def test_a_match_keeps_as_many_bytes_as_asked_for():
    assert run(filter.compile("tcp", snaplen=96), FRAMES["tcp to 80"]) == 96
    assert run(filter.compile("tcp"), FRAMES["tcp to 80"]) == 262144


@pytest.mark.parametrize("expression", ["", " ", "\n\t "])
def test_an_empty_expression_is_no_program(expression):
    assert filter.compile(expression) == b""


@pytest.mark.parametrize(
    "expression, reason",
    [
        ("tpc port 80", "syntax error"),
        ("tcp port", "syntax error"),
        ("port 99999", "illegal port number 99999 > 65535"),
        ("tcp and udp", "expression rejects all packets"),
        ("net 10.0.0.0/33", "mask length must be <= 32"),
        ("ether[0]/0 = 1", "division by zero"),
        ("inbound", "inbound/outbound not supported on Ethernet"),
        ("ether[-1] = 1", "it reads before the frame begins"),
        ("host m\u00fcller", "'\u00fc' is not a printable ASCII character"),
        ("tcp\0", "'\\x00' is not a printable ASCII character"),
        ("tcp\x1b[2J", "'\\x1b' is not a printable ASCII character"),
    ],
)
def test_a_bad_filter_is_refused_in_one_line(expression, reason):
    with pytest.raises(Error) as refused:
        filter.compile(expression)
    assert refused.value.code == "E_FILTER"
    assert str(refused.value) == f"E_FILTER bad filter {expression!r}: {reason}: see pcap-filter(7)"


def test_a_filter_that_is_too_long_is_refused_at_once():
    ports = " or ".join(f"port {i}" for i in range(5000))
    begun = time.monotonic()
    with pytest.raises(
        Error, match=rf"^E_FILTER bad filter 'port 0 or port 1 .*\.\.\.': {len(ports)} characters, 4096 are the most: "
    ):
        filter.compile(ports)
    hosts = " or ".join(f"host ::{i:x}" for i in range(300))
    with pytest.raises(Error, match=r": it becomes \d+ instructions, 4096 are the most: see"):
        filter.compile(hosts)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("snaplen", [0, -1, 2**31])
def test_a_snap_length_that_keeps_nothing_is_refused(snaplen):
    with pytest.raises(Error, match=f"^E_FILTER snaplen {snaplen}: "):
        filter.compile("tcp", snaplen)


def test_compiling_keeps_nothing_open():
    def compile_both():
        filter.compile("tcp")
        with pytest.raises(Error):
            filter.compile("tpc")

    compile_both()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        compile_both()
    assert set(os.listdir("/proc/self/fd")) == before


def test_threads_may_compile_at_once():
    wanted = {text: filter.compile(text) for text in EXPRESSIONS}
    with ThreadPoolExecutor(8) as pool:
        again = pool.map(filter.compile, list(wanted) * 20)
        assert list(again) == list(wanted.values()) * 20


# ---- programs as text ----


def test_text_of_a_program():
    assert filter.disassemble(filter.compile("ip and len > 100", snaplen=96)) == [
        "(000) ldh      [12]",
        "(001) jeq      #0x800           jt 2\tjf 5",
        "(002) ld       #pktlen",
        "(003) jgt      #0x64            jt 4\tjf 5",
        "(004) ret      #96",
        "(005) ret      #0",
    ]


def test_numbers_of_a_program():
    assert filter.decimal(filter.compile("ip", snaplen=96)) == ["4", "40 0 0 12", "21 0 1 2048", "6 0 0 96", "6 0 0 0"]


def test_every_instruction_has_a_text():
    texts = filter.disassemble(program(*((code, 0, 0, 3) for code in EVERY)))
    assert len({text[6:] for text in texts}) == len(set(EVERY)) and not any("unimp" in text for text in texts)
    assert filter.disassemble(program((0xFF, 0, 0, 0))) == ["(000) unimp    0xff"]


@pytest.mark.needs("tcpdump")
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_text_is_tcpdumps(expression):
    def tcpdump(how):
        command = ["tcpdump", how, "-y", "EN10MB", expression]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()

    numbers = tcpdump("-ddd")
    theirs = program(*(map(int, line.split()) for line in numbers[1:]))
    assert filter.disassemble(theirs) == [line.rstrip() for line in tcpdump("-d")]
    assert filter.decimal(theirs) == numbers


def test_random_programs_stay_inside_of_the_frame():
    source = (Path(__file__).parent / "filter_fuzz.c").read_text()
    seed = str(time.time_ns())
    command = [ckernel.program(source), str(FUZZ_S), seed]
    got = subprocess.run(command, capture_output=True, text=True, timeout=FUZZ_S + 60)
    assert got.returncode == 0, f"seed {seed}\n{got.stderr}"
    done = dict(zip(*[iter(got.stdout.split())] * 2, strict=True))
    assert min(map(int, done.values())) > 100, f"the fuzzer reached little: {done}"
