"""Checksums in C against a big integer (2**16 is 1 modulo 0xffff) and against scapy, at every alignment and split."""

import ctypes
import os

import ckernel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData

KERNEL = """
#include "csum.h"
#include <stdlib.h>

uint16_t fold(const uint8_t *p, size_t skip, size_t n, uint32_t start)
{
    return pr_csum_fold(pr_csum_add(p + skip, n, start));
}

int complete(uint8_t *frame, size_t len, uint16_t start, uint16_t offset)
{
    return pr_csum_complete(frame, len, start, offset);
}

/* The frame taken apart into pieces of their own, each at an odd address, completed, and put together again. */
int complete_pieces(uint8_t *frame, const uint32_t *lens, size_t n, uint16_t start, uint16_t offset)
{
    struct iovec iov[n + 1];
    uint8_t *at = frame;
    for (size_t i = 0; i < n; at += lens[i++]) {
        iov[i] = (struct iovec){(uint8_t *)malloc(lens[i] + 1) + 1, lens[i]};
        memcpy(iov[i].iov_base, at, lens[i]);
    }
    int done = pr_csum_complete_iov(iov, n, start, offset);
    for (size_t i = 0; i < n; i++) {
        memcpy(frame, iov[i].iov_base, lens[i]);
        frame += lens[i];
        free((uint8_t *)iov[i].iov_base - 1);
    }
    return done;
}
"""
lib = ckernel.load(KERNEL, sanitize=True)
lib.fold.restype = ctypes.c_uint16
lib.fold.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint32]
lib.complete.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint16, ctypes.c_uint16]
lib.complete_pieces.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint16, ctypes.c_uint16]

TCP_CHECK, UDP_CHECK, SCTP_CHECK = 16, 6, 8
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # without, scapy asks the network who that is
ADDRESSES = {4: {"src": "192.0.2.1", "dst": "198.51.100.77"}, 6: {"src": "2001:db8::1", "dst": "2001:db8:ffff::2:1"}}


def reference(data, start=0):
    """The field over these bytes: sums never come back to zero once they left it."""
    total = start + int.from_bytes(data + bytes(len(data) % 2), "little")
    return 0xFFFF ^ (total % 0xFFFF or (0xFFFF if total else 0))


def complete(frame, start, offset, pieces=None):
    """The completed frame, None = refused; `pieces` are lengths."""
    buffer = ctypes.create_string_buffer(frame, len(frame))
    if pieces is None:
        done = lib.complete(buffer, len(frame), start, offset)
    else:
        lens = (ctypes.c_uint32 * len(pieces))(*pieces)
        done = lib.complete_pieces(buffer, lens, len(pieces), start, offset)
    if done < 0:
        assert buffer.raw == frame, "a frame that is refused stays as it was"
        return None
    return buffer.raw


def partial(frame, l4, offset):
    """The frame as a stack leaves it to the device: the pseudo header's sum in the field."""
    blank = bytearray(frame)
    blank[l4 + offset : l4 + offset + 2] = bytes(2)
    field = int.from_bytes(frame[l4 + offset : l4 + offset + 2], "little")
    pseudo = (0xFFFF - field - (0xFFFF ^ reference(bytes(blank[l4:])))) % 0xFFFF
    blank[l4 + offset : l4 + offset + 2] = pseudo.to_bytes(2, "little")
    return bytes(blank)


def splits(draw, total):
    """Lengths of pieces, also empty ones, that make up `total`."""
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=6)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


@given(data=st.binary(max_size=300), skip=st.integers(0, 9), start=st.integers(0, 2**32 - 1))
@settings(max_examples=600, deadline=None)
def test_a_sum_is_the_big_numbers_remainder(data, skip, start):
    skip = min(skip, len(data))
    assert lib.fold(data, skip, len(data) - skip, start) == reference(data[skip:], start)


@pytest.mark.parametrize("length", [*range(100), 1499, 1500, 65535])
def test_every_length_is_summed_to_its_end(length):
    data = os.urandom(length)
    assert lib.fold(data, 0, length, 0) == reference(data)
    full = b"\xff" * length
    assert lib.fold(full, 0, length, 0xFFFFFFFF) == reference(full, 0xFFFFFFFF), "carries at the most"


def test_a_carry_of_a_carry_is_kept():
    data = b"\xff\xff\xff\xff\x01"
    assert lib.fold(data, 0, 5, 0xFFFFFFFF) == reference(data, 0xFFFFFFFF)


@st.composite
def transport_frames(draw):
    version, protocol = draw(st.sampled_from([4, 6])), draw(st.sampled_from([TCP, UDP]))
    payload = draw(st.binary(max_size=200))
    frame = (
        ETHER
        / (IP if version == 4 else IPv6)(**ADDRESSES[version])
        / protocol(sport=draw(st.integers(0, 65535)))
        / payload
    )
    return bytes(frame), 34 if version == 4 else 54, TCP_CHECK if protocol is TCP else UDP_CHECK


@given(transport_frames(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_partial_checksum_is_completed_as_scapy_fills_it_in(made, data):
    frame, l4, offset = made
    assert complete(partial(frame, l4, offset), l4, offset) == frame
    assert complete(partial(frame, l4, offset), l4, offset, splits(data.draw, len(frame))) == frame


def test_a_field_split_between_pieces_is_written_to_both():
    frame = bytes(ETHER / IP(**ADDRESSES[4]) / TCP() / b"payload")
    at = 34 + TCP_CHECK + 1
    assert complete(partial(frame, 34, TCP_CHECK), 34, TCP_CHECK, [at, len(frame) - at]) == frame


@pytest.mark.parametrize("protocol, offset, zero", [(UDP, UDP_CHECK, 0xFFFF), (TCP, TCP_CHECK, 0)])
def test_a_udp_checksum_of_zero_is_sent_as_all_ones(protocol, offset, zero):
    frame = bytes(ETHER / IP(**ADDRESSES[4]) / protocol() / bytes(2))
    field = int.from_bytes(frame[34 + offset : 34 + offset + 2], "big")
    frame = bytes(
        ETHER / IP(**ADDRESSES[4]) / protocol() / field.to_bytes(2, "big")
    )  # the sum takes up its own complement
    assert int.from_bytes(frame[34 + offset : 34 + offset + 2], "big") == zero
    assert complete(partial(frame, 34, offset), 34, offset) == frame


@given(payload=st.binary(min_size=1, max_size=70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_sctp_is_completed_by_its_crc(payload, data):
    """Linux hands SCTP over with NEEDS_CSUM too, and a zero field that wants a CRC32c."""
    frame = bytes(ETHER / IP(**ADDRESSES[4], proto=132) / SCTP(sport=5, dport=7, tag=9) / SCTPChunkData(data=payload))
    left = frame[:42] + bytes(4) + frame[46:]
    assert complete(left, 34, SCTP_CHECK) == frame
    assert complete(left, 34, SCTP_CHECK, splits(data.draw, len(frame))) == frame


@pytest.mark.parametrize("start, offset", [(60, 0), (59, 0), (65535, 65535), (0, 59), (34, 25), (50, 9), (49, 8)])
def test_a_field_outside_of_the_frame_is_refused(start, offset):
    assert complete(bytes(range(60)), start, offset) is None
    assert complete(bytes(range(60)), start, offset, [20, 20, 20]) is None


@pytest.mark.parametrize("start, offset", [(58, 0), (0, 58), (34, 24), (48, 8)])
def test_a_field_at_the_very_end_is_completed(start, offset):
    assert complete(bytes(range(60)), start, offset)[: start + offset] == bytes(range(start + offset))


def test_an_empty_frame_has_no_field():
    assert complete(b"", 0, 0) is None
    assert complete(b"", 0, 0, []) is None
