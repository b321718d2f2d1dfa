"""Frames for tests: small ones that carry a number, and what reads it back."""

import struct
import time
from array import array

BROADCAST = bytes(6 * [0xFF])
SOURCE = bytes.fromhex("020000000001")
ETHERTYPE = 0x88B5  # IEEE local experimental: no stack answers it
HEADER = 14


def numbered(i: int, size: int = 64, ethertype: int = ETHERTYPE) -> bytes:
    """A frame of `size` bytes that says `i` behind its header, filled with a pattern that depends on it."""
    head = BROADCAST + SOURCE + struct.pack("!HQ", ethertype, i)
    body = bytes((i + k) & 0xFF for k in range(size - len(head)))
    return (head + body)[:size]


def number(frame: bytes | memoryview) -> int:
    """What `numbered` put there."""
    return struct.unpack_from("!Q", frame, HEADER)[0]


def tagged(frame: bytes, tci: int, tpid: int = 0x8100) -> bytes:
    """The frame with a VLAN tag in front of its ethertype."""
    return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]


def numbers(region, ring, n: int, timeout_s: float = 3.0) -> list[int]:
    """Receive from a ring and give the slots back. -> the numbers of so many frames, or of those that came in time"""
    got, starts, deadline = [], array("I", bytes(4 * n)), time.monotonic() + timeout_s
    while len(got) < n and time.monotonic() < deadline:
        ring.sync()
        found, end = ring.peek(starts, n - len(got))
        for i in starts[:found]:
            offset, length = ring.frame(i)
            got.append(number(region.mem[offset : offset + length]))
        ring.release(end, found)
    return got
