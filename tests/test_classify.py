"""Ethertypes, behind VLAN tags, are netisr's protocols."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktring.engine import _engine

MACS = bytes(range(12))
TYPES = {0x0800: 1, 0x0806: 4, 0x86DD: 6}
TAGS = (0x8100, 0x88A8, 0x9100)


def tagged(ethertype, *tags):
    return MACS + b"".join(tag.to_bytes(2) + b"\x00\x05" for tag in tags) + ethertype.to_bytes(2) + bytes(20)


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8, 0x8100), (0x9100, 0x9100, 0x8100), (0x8100,) * 26])
@pytest.mark.parametrize(("ethertype", "proto"), [*TYPES.items(), (0x88CC, 5), (0x0600, 5), (40, 5), (0, 5)])
def test_an_ethertype_is_a_protocol(ethertype, proto, tags):
    assert _engine.classify(tagged(ethertype, *tags)) == proto


def test_more_tags_than_anybody_looks_through_are_just_a_frame():
    assert _engine.classify(tagged(0x0800, *[0x8100] * 29)) == 5


@given(st.binary(max_size=160))
def test_every_frame_has_a_protocol(frame):
    at = 12
    while frame[at : at + 2] and int.from_bytes(frame[at : at + 2]) in TAGS and len(frame[at : at + 2]) == 2:
        at += 4
    whole = len(frame[at : at + 2]) == 2 and at + 2 <= 128
    assert _engine.classify(frame) == (TYPES.get(int.from_bytes(frame[at : at + 2]), 5) if whole else 5)


@pytest.mark.parametrize("length", range(14))
def test_a_runt_is_just_a_frame(length):
    assert _engine.classify(tagged(0x0800)[:length]) == 5
