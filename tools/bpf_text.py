"""A compiled filter as people read it: `tcpdump -d`, `-dd` and `-ddd`. The instructions are those of linux/filter.h and bpf(4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

INSTRUCTION = struct.Struct("=HBBI")
EVERYTHING = INSTRUCTION.pack(0x06, 0, 0, 262144)  # no filter: ret #262144

LOADS = {0x00: "ld", 0x08: "ldh", 0x10: "ldb"}
MODES = {0x00: "#0x{k:x}", 0x20: "[{k}]", 0x40: "[x + {k}]", 0x60: "M[{k}]", 0x80: "#pktlen", 0xA0: "4*([{k}]&0xf)"}
ALU = {0x00: "add", 0x10: "sub", 0x20: "mul", 0x30: "div", 0x40: "or", 0x50: "and", 0x60: "lsh", 0x70: "rsh", 0x90: "mod", 0xA0: "xor"}
JUMPS = {0x10: "jeq", 0x20: "jgt", 0x30: "jge", 0x40: "jset"}
NEGATE, ALWAYS, BY_X = 0x80, 0x00, 0x08


def _ld(code: int, k: int) -> tuple[str, str]:
    return LOADS.get(code & 0x18, "?"), MODES.get(code & 0xE0, "?").format(k=k)


def _ldx(code: int, k: int) -> tuple[str, str]:
    return "ldxb" if code & 0xE0 == 0xA0 else "ldx", MODES.get(code & 0xE0, "?").format(k=k)


def _alu(code: int, k: int) -> tuple[str, str]:
    if code & 0xF0 == NEGATE:
        return "neg", ""
    shown = f"#0x{k:x}" if code & 0xF0 in (0x40, 0x50, 0xA0) else f"#{k}"
    return ALU.get(code & 0xF0, "?"), "x" if code & BY_X else shown


def _jump(code: int, k: int) -> tuple[str, str]:
    if code & 0xF0 == ALWAYS:
        return "ja", str(k)
    return JUMPS.get(code & 0xF0, "?"), "x" if code & BY_X else f"#0x{k:x}"


def _return(code: int, k: int) -> tuple[str, str]:
    return "ret", "" if code & 0x18 == 0x10 else f"#{k}"


CLASSES: tuple[Callable[[int, int], tuple[str, str]], ...] = (
    _ld,
    _ldx,
    lambda code, k: ("st", f"M[{k}]"),
    lambda code, k: ("stx", f"M[{k}]"),
    _alu,
    _jump,
    _return,
    lambda code, k: ("txa" if code & NEGATE else "tax", ""),
)


def assembly(program: bytes) -> str:
    """One instruction a line, jumps as the numbers of lines."""
    return "\n".join(_assembled(n, *instruction) for n, instruction in enumerate(_instructions(program)))


def _assembled(n: int, code: int, jt: int, jf: int, k: int) -> str:
    word, operand = CLASSES[code & 7](code, k)
    line = f"({n:03d}) {word:8} {operand}"
    if code & 7 == 5:
        return f"({n:03d}) ja       {n + 1 + k}" if code & 0xF0 == ALWAYS else f"{line:31} jt {n + 1 + jt}\tjf {n + 1 + jf}"
    return line.rstrip()


def c_source(program: bytes) -> str:
    """As an initialiser of struct bpf_insn, or struct sock_filter."""
    return "\n".join(f"{{ 0x{code:x}, {jt}, {jf}, 0x{k:08x} }}," for code, jt, jf, k in _instructions(program))


def numbers(program: bytes) -> str:
    """As decimal numbers, how many first."""
    return "\n".join([str(len(program) // INSTRUCTION.size), *(f"{code} {jt} {jf} {k}" for code, jt, jf, k in _instructions(program))])


def _instructions(program: bytes) -> Iterator[tuple[int, int, int, int]]:
    return INSTRUCTION.iter_unpack(program)  # type: ignore[return-value]


FORMS: dict[int, Callable[[bytes], str]] = {1: assembly, 2: c_source, 3: numbers}
