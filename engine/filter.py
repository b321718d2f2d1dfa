"""Filters of pcap-filter(7): text becomes a classic BPF program, as bytes; filter.h checks and runs it.

Programs run over frames whose VLAN tags are back in their place, so they are compiled for frames of a file: `vlan 100`
looks for 0x8100 in the frame, not for the kernel's note beside it.
"""

from __future__ import annotations

import os
import struct
import threading

from pktring.shm.errors import Error

ETHERNET = 1  # LINKTYPE_ETHERNET
NETMASK = 0  # as tcpdump has it: `ip broadcast` is then all ones or all zeros
MAX_TEXT = 4096  # hundreds of terms already take libpcap's optimiser seconds, and the time grows with the cube
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
EMPTY_FILE = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, ETHERNET)  # pcap-savefile(5)
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k

_compiler = threading.Lock()  # libpcap keeps the state of its parser in globals


def compile(expression: str, snaplen: int = 262144) -> bytes:
    """Compile an expression into instructions of 8 bytes, which let `snaplen` bytes of a matching frame pass.

    b"" for an empty expression, which matches everything. Raises E_FILTER.
    """
    if not 0 < snaplen <= 0x7FFFFFFF:
        raise Error("E_FILTER", f"snaplen {snaplen}: give 1 to 2147483647")
    text = expression.strip()
    if not text:
        return b""
    if len(text) > MAX_TEXT:
        raise _bad(text, f"{len(text)} characters, {MAX_TEXT} are the most")
    if strange := next((c for c in text if not (c.isascii() and (c.isprintable() or c.isspace()))), ""):
        raise _bad(text, f"{strange!r} is not a printable ASCII character")
    instructions = _compiled(text, snaplen)
    if len(instructions) > MAX_INSTRUCTIONS:
        raise _bad(text, f"it becomes {len(instructions)} instructions, {MAX_INSTRUCTIONS} are the most")
    if any(_looks_outside(code, k) for code, _, _, k in instructions):
        raise _bad(text, "it reads before the frame begins")
    return b"".join(INSTRUCTION.pack(*each) for each in instructions)


def _compiled(text: str, snaplen: int) -> list[tuple[int, int, int, int]]:
    import pcapy

    with _compiler:
        try:  # first as the filter of a file: pcapy.compile (2.1.0) reads its error text from memory that it has freed
            _empty_file().setfilter(text)
        except pcapy.PcapError as e:
            reason = str(e).removeprefix("can't parse filter expression: ").removesuffix(" when reading savefiles")
            raise _bad(text, reason) from None
        return pcapy.compile(ETHERNET, snaplen, text, 1, NETMASK).get_bpf()


def _empty_file():
    import pcapy

    fd = os.memfd_create("filter")
    try:
        os.write(fd, EMPTY_FILE)
        return pcapy.open_offline(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _looks_outside(code: int, k: int) -> bool:
    """Find loads from a negative place (BPF_LD | BPF_ABS): the kernel keeps its notes beside a frame there."""
    return code & 0xE7 == 0x20 and k > 0x7FFFFFFF


def _bad(text: str, reason: str) -> Error:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return Error("E_FILTER", f"bad filter {shown!r}: {reason}: see pcap-filter(7)")


# ---- programs as text ----


def disassemble(program: bytes) -> list[str]:
    """Write a program as `tcpdump -d` does, a line an instruction."""
    return [_line(pc, *each) for pc, each in enumerate(INSTRUCTION.iter_unpack(program))]


def decimal(program: bytes) -> list[str]:
    """Write a program as `tcpdump -ddd` does: how many instructions, then the four numbers of each."""
    instructions = list(INSTRUCTION.iter_unpack(program))
    return [str(len(instructions)), *(" ".join(map(str, each)) for each in instructions)]


# Code to text: linux/bpf_common.h has the fields of a code. {u} is the constant, {k} the same with a sign.
# fmt: off
_TEXT = {
    0x00: "ld #0x{u:x}", 0x20: "ld [{k}]", 0x40: "ld [x + {k}]", 0x60: "ld M[{k}]", 0x80: "ld #pktlen",
    0x28: "ldh [{k}]", 0x48: "ldh [x + {k}]", 0x30: "ldb [{k}]", 0x50: "ldb [x + {k}]",
    0x01: "ldx #0x{u:x}", 0x61: "ldx M[{k}]", 0x81: "ldx #pktlen", 0xB1: "ldxb 4*([{k}]&0xf)",
    0x02: "st M[{k}]", 0x03: "stx M[{k}]", 0x07: "tax", 0x87: "txa",
    0x04: "add #{k}", 0x14: "sub #{k}", 0x24: "mul #{k}", 0x34: "div #{k}", 0x94: "mod #{k}",
    0x0C: "add x", 0x1C: "sub x", 0x2C: "mul x", 0x3C: "div x", 0x9C: "mod x",
    0x44: "or #0x{u:x}", 0x54: "and #0x{u:x}", 0xA4: "xor #0x{u:x}", 0x64: "lsh #{k}", 0x74: "rsh #{k}",
    0x4C: "or x", 0x5C: "and x", 0xAC: "xor x", 0x6C: "lsh x", 0x7C: "rsh x", 0x84: "neg",
    0x05: "ja {to}", 0x15: "jeq #0x{u:x}", 0x25: "jgt #0x{u:x}", 0x35: "jge #0x{u:x}", 0x45: "jset #0x{u:x}",
    0x1D: "jeq x", 0x2D: "jgt x", 0x3D: "jge x", 0x4D: "jset x",
    0x06: "ret #{k}", 0x16: "ret",
}
# fmt: on


def _line(pc: int, code: int, jt: int, jf: int, u: int) -> str:
    k = u - (u >> 31 << 32)
    text = _TEXT.get(code, "unimp 0x{code:x}").format(code=code, u=u, k=k, to=pc + 1 + k)
    name, _, operand = text.partition(" ")
    branches = f" jt {pc + 1 + jt}\tjf {pc + 1 + jf}" if code & 0x07 == 0x05 and name != "ja" else ""
    return f"({pc:03}) {name:8} {operand:{16 if branches else 0}}{branches}".rstrip()
