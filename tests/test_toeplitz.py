"""The Toeplitz hash: the published suite, what follows from its definition, and the definition itself."""

import ipaddress

import flows
import pytest
from flows import KEY, RSS
from hypothesis import given
from hypothesis import strategies as st

import pktring
from pktring.engine.toeplitz import MICROSOFT_KEY, SYMMETRIC_KEY

HASH_OF = {"hash_ip_only": "input_2tuple_hex", "hash_tcp": "input_4tuple_hex"}
SUITE = [pytest.param(row, id=row["src"]) for row in RSS["suite"]]
inputs = st.binary(max_size=60)
keys = st.binary(max_size=60)


def tuple_of(row, ports=True, reverse=False):
    ends = [(row[end], row[end + "_port"]) for end in ("src", "dst")][:: -1 if reverse else 1]
    addresses = b"".join(ipaddress.ip_address(address).packed for address, _ in ends)
    return addresses + (b"".join(port.to_bytes(2) for _, port in ends) if ports else b"")


def key_bits(key, first):
    """The 32 bits of a key from a bit on, zeros behind its end."""
    return int("".join(f"{byte:08b}" for byte in key + bytes(70))[first : first + 32], 2)


def test_the_keys_are_the_published_ones():
    assert MICROSOFT_KEY == KEY and SYMMETRIC_KEY == bytes.fromhex(RSS["symmetric_key_hex"])


@pytest.mark.parametrize("hash, data", HASH_OF.items())
@pytest.mark.parametrize("row", SUITE)
def test_microsofts_suite(row, hash, data):
    assert pktring.toeplitz(bytes.fromhex(row[data])) == int(row[hash], 16)


@pytest.mark.parametrize("row", SUITE)
def test_the_input_is_source_destination_ports(row):
    assert tuple_of(row).hex() == row["input_4tuple_hex"] and tuple_of(row, ports=False).hex() == row["input_2tuple_hex"]


@pytest.mark.parametrize("ports, name", [(False, "ip_only"), (True, "tcp")])
@pytest.mark.parametrize("row", SUITE)
def test_the_way_back_has_a_hash_of_its_own_unless_the_key_is_symmetric(row, ports, name):
    there, back = tuple_of(row, ports), tuple_of(row, ports, reverse=True)
    assert pktring.toeplitz(back) == int(row["derived"]["reversed_hash_" + name], 16)
    same = int(row["derived"]["symmetric_key_" + name], 16)
    assert pktring.toeplitz(there, SYMMETRIC_KEY) == pktring.toeplitz(back, SYMMETRIC_KEY) == same


@given(st.binary(max_size=40).map(lambda data: data + data[: len(data) % 2]))
def test_both_halves_of_a_symmetric_hash_are_equal(data):
    hash = pktring.toeplitz(data[:36], SYMMETRIC_KEY)
    assert hash >> 16 == hash & 0xFFFF


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20), keys)
def test_it_is_linear(a, b, key):
    both = bytes(x ^ y for x, y in zip(a, b, strict=True))
    assert pktring.toeplitz(both, key) == pktring.toeplitz(a, key) ^ pktring.toeplitz(b, key)


@given(st.integers(0, 60), keys)
def test_zeros_hash_to_zero(n, key):
    assert pktring.toeplitz(bytes(n), key) == 0


@given(st.integers(0, 479), keys)
def test_one_bit_gives_the_32_bits_of_the_key_from_there(bit, key):
    assert pktring.toeplitz((1 << (479 - bit)).to_bytes(60), key) == key_bits(key, bit)


@given(inputs, keys)
def test_it_is_what_its_definition_says(data, key):
    assert pktring.toeplitz(data, key) == flows.toeplitz(data, key)


@given(st.binary(min_size=41, max_size=200))
def test_P_H11_zeros_follow_the_key(data):
    assert pktring.toeplitz(data) == pktring.toeplitz(data, KEY + bytes(200)) == pktring.toeplitz(data[:40])


@given(st.binary(max_size=36))
def test_P_H11_up_to_36_bytes_a_key_that_begins_anew_hashes_alike(data):
    assert pktring.toeplitz(data) == pktring.toeplitz(data, KEY + KEY)


def test_P_H11_behind_that_it_does_not():
    assert pktring.toeplitz(bytes(36) + b"\xff" * 8) != pktring.toeplitz(bytes(36) + b"\xff" * 8, KEY + KEY)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_will_do(kind):
    row = RSS["suite"][0]
    assert pktring.toeplitz(kind(bytes.fromhex(row["input_2tuple_hex"]))) == int(row["hash_ip_only"], 16)


def test_text_will_not():
    with pytest.raises(TypeError):
        pktring.toeplitz("66.9.149.187")
