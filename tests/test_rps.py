"""Receive packet steering: each routine, by the row of the specification that it follows; and FreeBSD's buckets."""

import random
import struct
import subprocess

import ckernel
import flows
import pytest
from flows import RSS
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

import pktring
from pktring.engine import rps
from pktring.engine.rps import buckets, routine, rps_hash

SUITE = [pytest.param(row, id=row["src"]) for row in RSS["suite"]]
NAMES = ["zero", "curcpu", "toeplitz", "toeplitz-othercpus"]
ETHER = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")  # or scapy asks the network for them
ARP_FRAME = bytes(ETHER / ARP(hwsrc=ETHER.src, psrc="0.0.0.0"))
cpus = st.integers(1, 300).flatmap(lambda ncpu: st.tuples(st.just(ncpu), st.integers(0, ncpu - 1)))


def tcp_frame(row):
    network = (IP if row["family"] == 4 else IPv6)(src=row["src"], dst=row["dst"])
    return bytes(ETHER / network / TCP(sport=row["src_port"], dport=row["dst_port"]))


def some_tcp(seed, n):
    """Frames of n flows, from a seed."""
    frame, rand = bytearray(tcp_frame(RSS["suite"][0])), random.Random(seed)
    for _ in range(n):
        frame[26:38] = rand.randbytes(12)
        yield bytes(frame)


FRAME = tcp_frame(RSS["suite"][0])


# ---- the routines ----


@given(cpus, st.binary(max_size=100))
def test_P_H1_zero_is_always_zero(cpus, frame):
    assert rps_hash("zero", frame, *cpus) == 0


@given(cpus, st.binary(max_size=100))
def test_P_H2_curcpu_is_the_cpu_it_came_in_on(cpus, frame):
    assert rps_hash("curcpu", frame, *cpus) == cpus[1]


@pytest.mark.parametrize("row", SUITE)
def test_P_H3_toeplitz_is_the_flow_hash(row):
    assert rps_hash("toeplitz", tcp_frame(row), 4, 1) == int(row["hash_tcp"], 16)


@pytest.mark.parametrize("frame", [b"", ARP_FRAME, FRAME[:33], FRAME[:14] + b"\x65" + FRAME[15:]], ids=["empty", "arp", "cut", "version"])
def test_P_H3_toeplitz_of_no_ip_header_is_zero(frame):
    assert rps_hash("toeplitz", frame, 4, 1) == 0


@pytest.mark.parametrize("row", SUITE)
def test_P_H4_othercpus_as_published(row):
    for case, cpu in row["derived"]["netbsd_othercpus"].items():
        ncpu, cur = (int(word.lstrip("ncpur")) for word in case.split("_"))
        assert rps_hash("toeplitz-othercpus", tcp_frame(row), ncpu, cur) == cpu, case


@given(st.binary(max_size=100) | st.integers(0, 10**9).map(lambda seed: next(some_tcp(seed, 1))))
def test_P_H4_one_cpu_gets_all_and_of_two_the_other(frame):
    assert rps_hash("toeplitz-othercpus", frame, 1, 0) == 0
    assert [rps_hash("toeplitz-othercpus", frame, 2, cur) for cur in (0, 1)] == [1, 0]


@given(cpus, st.integers(0, 10**9))
def test_P_H4_never_the_current_cpu(cpus, seed):
    (frame,), (ncpu, cur) = some_tcp(seed, 1), cpus
    cpu, hash = rps_hash("toeplitz-othercpus", frame, ncpu, cur), flows.toeplitz(frame[26:38])
    assert cpu == (0 if ncpu == 1 else [other for other in range(ncpu) if other != cur][hash % (ncpu - 1)])


@pytest.mark.parametrize("ncpu, cur", [(4, 0), (4, 1), (4, 3), (8, 5)])
def test_P_H4_the_others_get_about_the_same(ncpu, cur):
    got = [0] * ncpu
    for frame in some_tcp(ncpu, 1000 * (ncpu - 1)):
        got[rps_hash("toeplitz-othercpus", frame, ncpu, cur)] += 1
    assert got.pop(cur) == 0 and 800 < min(got) <= max(got) < 1200


def test_P_H5_the_default_does_for_every_protocol():
    assert rps.DEFAULT == "curcpu" and rps_hash(rps.DEFAULT, ARP_FRAME, 4, 3) == 3


SWITCHED = """
#include "rps.h"
#include <pthread.h>
#include <stdio.h>

static uint32_t word; /* the routine: one thread writes it, the other reads it for each frame */
static int done;

static void *switching(void *unused)
{
    for (uint32_t i = 0; !__atomic_load_n(&done, __ATOMIC_RELAXED); i++)
        __atomic_store_n(&word, i % 7 == 6 ? UINT32_MAX - i : i % 7, __ATOMIC_RELAXED);
    return unused;
}

int main(void)
{
    enum { FRAMES = 1000000, NCPU = 5 };
    static struct pr_toeplitz_table t;
    static uint32_t got[NCPU];
    uint8_t frame[60] = {[12] = 8, [14] = 0x45, [23] = 6};
    pthread_t thread;
    pr_toeplitz_prepare(&t, pr_toeplitz_microsoft, PR_TOEPLITZ_KEY);
    pthread_create(&thread, NULL, switching, NULL);
    for (uint32_t i = 0; i < FRAMES; i++) {
        pr_set_be32(frame + 26, i);
        uint32_t routine = __atomic_load_n(&word, __ATOMIC_RELAXED);
        got[pr_rps_hash(routine, frame, sizeof frame, &t, NCPU, 3) % NCPU]++;
    }
    __atomic_store_n(&done, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    for (int cpu = 0; cpu < NCPU; cpu++)
        printf("%u ", got[cpu]);
}
"""


def test_P_H6_the_routine_may_be_switched_at_any_frame_and_none_is_lost():
    exe = ckernel.program(SWITCHED, flags=["-pthread"])
    got = subprocess.run([exe], capture_output=True, text=True, check=True, timeout=60).stdout
    assert sum(map(int, got.split())) == 1_000_000


def test_P_H7_only_tcp_has_its_ports_in_the_hash():
    other = bytearray(FRAME)
    other[34:36] = struct.pack("!H", 1)
    assert rps_hash("toeplitz", FRAME, 4, 0) != rps_hash("toeplitz", other, 4, 0)
    for frame in (other, first := bytearray(FRAME)):
        frame[23] = 17
    assert rps_hash("toeplitz", first, 4, 0) == rps_hash("toeplitz", other, 4, 0) == int(RSS["suite"][0]["hash_ip_only"], 16)


# ---- hash to CPU ----


@pytest.mark.parametrize("row", SUITE)
def test_P_H10_a_pktqueue_takes_the_hash_modulo_its_cpus(row):
    for ncpu, cpu in row["derived"]["netbsd_cpu_hash_mod"].items():
        assert rps_hash("toeplitz", tcp_frame(row), int(ncpu), 0) % int(ncpu) == cpu


@pytest.mark.parametrize("ncpu, bits", [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5), (33, 7), (64, 7), (65, 7), (500, 7)])
def test_P_H10_there_are_at_least_two_buckets_a_cpu_and_at_most_128(ncpu, bits):
    assert len(buckets(ncpu)) == 2**bits
    assert bits == 7 or len(buckets(ncpu)) >= 2 * ncpu


@given(st.integers(1, 200))
def test_P_H10_buckets_are_dealt_in_turn(ncpu):
    assert buckets(ncpu) == [bucket % ncpu for bucket in range(len(buckets(ncpu)))]


@pytest.mark.parametrize("row", SUITE)
def test_P_H10_the_bucket_is_the_hash_under_a_mask(row):
    bucket_of = {f"bits{bits}": int(row["hash_tcp"], 16) & (2**bits - 1) for bits in (1, 2, 3, 7)}
    assert bucket_of == row["derived"]["freebsd_bucket_mask"]


# ---- names and refusals ----


def test_the_routines_have_netbsds_names():
    assert list(rps.ROUTINES) == NAMES and [routine(name) for name in NAMES] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["", "Toeplitz", "toeplitz ", "rss"])
def test_P_S2_an_unknown_name_is_refused(name):
    with pytest.raises(pktring.Error, match="one of zero, curcpu, toeplitz, toeplitz-othercpus") as e:
        rps_hash(name, FRAME, 4, 0)
    assert e.value.code == "E_RPS" and repr(name) in e.value.text


@pytest.mark.parametrize("ncpu, curcpu", [(0, 0), (-1, 0), (4, 4), (4, -1), (2**32, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_that_cannot_be_is_refused(name, ncpu, curcpu):
    with pytest.raises(pktring.Error, match=f"CPU {curcpu} of {ncpu}") as e:
        rps_hash(name, FRAME, ncpu, curcpu)
    assert e.value.code == "E_RPS"
