"""Bob Jenkins' lookup3 over 32-bit words (hashword; FreeBSD's jenkins_hash32), and the addresses of epair(4) made with it.

The source is burtleburtle.net/bob/c/lookup3.c. Each step of its mix and final changes one or two of three words, and the
next step is the same with the words' parts in turn: so here a step is written once and the three change places.
"""

from __future__ import annotations

from collections.abc import Sequence

from pktring.shm.errors import Error

U32 = 0xFFFFFFFF


def jenkins_hash32(words: Sequence[int], initval: int = 0) -> int:
    """Hash words of 32 bits to 32 bits. Raises E_WORD for a number that is not such a word."""
    if strange := [word for word in (*words, initval) if not 0 <= word <= U32]:
        raise Error("E_WORD", f"{strange[0]} is not a word of 32 bits: give 0 to {U32}")
    a = b = c = (0xDEADBEEF + 4 * len(words) + initval) & U32
    for at in range(0, len(words), 3):
        x, y, z = (*words[at : at + 3], 0, 0)[:3]
        a, b, c = (a + x) & U32, (b + y) & U32, (c + z) & U32
        if at + 3 >= len(words):
            return _final(a, b, c)
        a, b, c = _mix(a, b, c)
    return c


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for n in (4, 6, 8, 16, 19, 4):
        a, b, c = b, (c + b) & U32, (a - c & U32) ^ _rotated(c, n)
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for n in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, ((c ^ b) - _rotated(b, n)) & U32, a
    return b


def _rotated(word: int, n: int) -> int:
    return (word << n | word >> (32 - n)) & U32


def epair_macs(index: int, hostid: int) -> tuple[str, str]:
    """Make the addresses of both sides of a pair, 02:..:0a and 02:..:0b, from its number and the 64 bits of the host's id.

    Both are hashed as they are: that a number never comes twice and that a host without an id takes random bits is up to
    the caller. Raises E_WORD.
    """
    middle = jenkins_hash32([index, hostid & U32, hostid >> 32]).to_bytes(4, "little")
    a, b = (bytes([0x02, *middle, side]).hex(":") for side in (0x0A, 0x0B))
    return a, b
