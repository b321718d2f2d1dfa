"""Frames for tests: small ones that carry a number, and what reads it back."""

import struct

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
