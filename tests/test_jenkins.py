"""lookup3 over words, and epair's addresses: the published vectors, and lookup3 over bytes as its author wrote it."""

import random

import pytest
from flows import JENKINS
from hypothesis import given
from hypothesis import strategies as st

import pktring
from pktring.engine.jenkins import epair_macs, jenkins_hash32

U32 = 2**32 - 1
words = st.lists(st.integers(0, U32), max_size=20)
initvals = st.integers(0, U32)


def rot(x, k):
    return (x << k | x >> (32 - k)) & U32


def hashlittle(data, initval):
    """Hash bytes, lookup3.c line by line: over whole words it is hashword."""
    a = b = c = (0xDEADBEEF + len(data) + initval) & U32
    while len(data) > 12:
        x, y, z = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8))
        a, b, c, data = (a + x) & U32, (b + y) & U32, (c + z) & U32, data[12:]
        a = (a - c) & U32 ^ rot(c, 4)
        c = (c + b) & U32
        b = (b - a) & U32 ^ rot(a, 6)
        a = (a + c) & U32
        c = (c - b) & U32 ^ rot(b, 8)
        b = (b + a) & U32
        a = (a - c) & U32 ^ rot(c, 16)
        c = (c + b) & U32
        b = (b - a) & U32 ^ rot(a, 19)
        a = (a + c) & U32
        c = (c - b) & U32 ^ rot(b, 4)
        b = (b + a) & U32
    if not data:
        return c
    x, y, z = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8))
    a, b, c = (a + x) & U32, (b + y) & U32, (c + z) & U32
    c = (c ^ b) - rot(b, 14) & U32
    a = (a ^ c) - rot(c, 11) & U32
    b = (b ^ a) - rot(a, 25) & U32
    c = (c ^ b) - rot(b, 16) & U32
    a = (a ^ c) - rot(c, 4) & U32
    b = (b ^ a) - rot(a, 14) & U32
    return (c ^ b) - rot(b, 24) & U32


@pytest.mark.parametrize("row", JENKINS["words3"] + JENKINS["variable_length"], ids=str)
def test_published_words(row):
    assert jenkins_hash32([int(word, 16) for word in row["key"]], int(row["initval"], 16)) == int(row["hash"], 16)


@pytest.mark.parametrize("row", JENKINS["published_lookup3_selftest"], ids=str)
def test_the_yardstick_is_right(row):
    assert hashlittle(row["bytes"].encode(), int(row["initval"], 16)) == int(row["hash"], 16)


@pytest.mark.parametrize("initval", [0, 0xDEADBEEF])
def test_no_words_are_hashed_to_what_the_self_test_says(initval):
    assert jenkins_hash32([], initval) == hashlittle(b"", initval)


@given(words, initvals)
def test_words_are_hashed_as_their_bytes(words, initval):
    assert jenkins_hash32(words, initval) == hashlittle(b"".join(word.to_bytes(4, "little") for word in words), initval)


def test_the_initial_value_is_0_if_none_is_given():
    assert pktring.jenkins_hash32([1, 2, 3]) == jenkins_hash32([1, 2, 3], 0) == 0xA46158F5


@pytest.mark.parametrize("words, initval", [([2**32], 0), ([0, -1], 0), ([1, 2, 3], 2**32), ([], -1)])
def test_what_is_no_word_is_refused(words, initval):
    with pytest.raises(pktring.Error, match="not a word of 32 bits") as e:
        jenkins_hash32(words, initval)
    assert e.value.code == "E_WORD"


# ---- epair's addresses ----


@pytest.mark.parametrize("row", JENKINS["epair_mac"]["rows"], ids=str)
def test_E_M1_published_addresses(row):
    assert epair_macs(row["index"], int(row["hostid"], 16)) == (row["mac_a"], row["mac_b"])


def test_E_M1_the_row_with_both_halves_of_a_hostid():
    assert epair_macs(5, 0xDEADBEEFCAFEF00D)[0] == "02:0c:77:fa:12:0a"


@given(st.integers(0, U32), st.integers(0, 2**64 - 1))
def test_E_M1_02_then_the_hash_from_its_low_byte_then_the_side(index, hostid):
    hash = jenkins_hash32([index, hostid & U32, hostid >> 32])
    for mac, side in zip(epair_macs(index, hostid), (0x0A, 0x0B), strict=True):
        octets = bytes.fromhex(mac.replace(":", ""))
        assert (octets[0], octets[1:5], octets[5]) == (0x02, hash.to_bytes(4, "little"), side)
        assert octets[0] & 3 == 2  # locally administered, to one host


def test_E_M1_a_thousand_pairs_have_addresses_of_their_own():
    hostid = random.Random(1).getrandbits(64)
    assert len({mac for index in range(1, 1001) for mac in epair_macs(index, hostid)}) == 2000


@pytest.mark.parametrize("index, hostid", [(2**32, 1), (-1, 1), (1, 2**64), (1, -1)])
def test_a_number_that_is_too_large_is_refused(index, hostid):
    with pytest.raises(pktring.Error) as e:
        epair_macs(index, hostid)
    assert e.value.code == "E_WORD"
