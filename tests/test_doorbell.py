"""Doorbells: waking, not waking, waiting with an end; the fences on real CPUs. The exhaustive search of the protocol is in test_spin.py."""

import mmap
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import ckernel
import pytest

from pktring.shm import _shm
from pktring.shm.doorbell import MAX_S, Doorbell


@pytest.fixture
def memory():
    """A doorbell's word at 0 and a counter at 64 that processes share."""
    return memoryview(mmap.mmap(-1, 4096))


@pytest.fixture
def bell(memory):
    bell = Doorbell(memory[:4])
    yield bell
    bell.close()


def forked(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_what_is_ready_is_not_waited_for(bell):
    assert bell.wait(lambda: True, timeout_s=0)


def test_waiting_ends_at_its_time(bell):
    began = time.monotonic()
    assert not bell.wait(lambda: False, timeout_s=0.25)
    assert 0.24 < time.monotonic() - began < 1


def test_a_ring_that_was_missed_costs_a_tenth_of_a_second(bell, memory):
    pid = forked(lambda: (time.sleep(0.05), memory.__setitem__(64, 1)))
    began = time.monotonic()
    assert bell.wait(lambda: memory[64], timeout_s=5)
    assert time.monotonic() - began < MAX_S + 0.5
    os.waitpid(pid, 0)


def test_nobody_is_rung_who_did_not_arm(bell):
    bell.kick()
    assert not select.select([bell], [], [], 0)[0]
    _shm.doorbell_arm(bell.word)
    bell.kick()
    assert select.select([bell], [], [], 0)[0]


def test_the_word_is_set_while_asleep_and_cleared_after(bell, memory):
    def work():
        while not _shm.doorbell_needed(bell.word):
            os.sched_yield()
        memory[64] = 1
        bell.kick()

    pid = forked(work)
    began = time.monotonic()
    assert bell.wait(lambda: memory[64], timeout_s=5)
    assert time.monotonic() - began < 2 and not _shm.doorbell_needed(bell.word)
    os.waitpid(pid, 0)


def test_a_full_eventfd_does_not_stop_the_one_who_rings(bell):
    os.eventfd_write(bell.fd, 2**64 - 2)
    bell.ring()
    _shm.doorbell_arm(bell.word)
    bell.kick()


def test_two_sleepers_wake_each_other_in_turn(memory):
    here, there = Doorbell(memory[:4]), Doorbell(memory[128:132])
    rounds = 300

    def turn(mine, other, who):
        slow = 0
        for i in range(rounds):
            began = time.monotonic()
            assert mine.wait(lambda i=i: memory[64] == (2 * i + who) % 256, timeout_s=5, spins=0)
            slow += time.monotonic() - began > 0.9 * MAX_S
            memory[64] = (2 * i + who + 1) % 256
            other.kick()
        return slow

    pid = forked(lambda: turn(there, here, 1))
    assert turn(here, there, 0) < rounds / 10  # a slow turn may be the machine's; lost wake-ups would be all of them
    assert os.waitpid(pid, 0)[1] == 0


def test_a_doorbell_is_a_word_of_four_bytes():
    for wrong in (bytearray(3), memoryview(bytearray(8))[1:5]):
        with pytest.raises(ValueError, match="4 bytes"):
            _shm.doorbell_arm(wrong)


# ---- the fences, on the CPUs that are here ----


def litmus(seconds, headers=None):
    """How often both sides missed each other; ends at the first time."""
    flags = ["-pthread", *([f"-iquote{headers}"] if headers else [])]
    exe = ckernel.program(Path(__file__).with_name("litmus_doorbell.c").read_text(), flags=flags, sanitize=False)
    env = {**os.environ, "LD_PRELOAD": ""}
    said = subprocess.run([exe, str(seconds)], capture_output=True, text=True, check=True, timeout=60, env=env).stdout
    return int(said.split()[0].removeprefix("lost="))


def test_with_its_fences_no_wake_up_is_lost():
    assert litmus(1) == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="tool: one CPU never disagrees with itself")
@pytest.mark.parametrize("fence", ["pr_doorbell_arm", "pr_doorbell_needed"])
def test_without_a_fence_a_wake_up_is_lost(fence):
    text = (ckernel.TOP / "shm/doorbell.h").read_text()
    at = text.index("__atomic_thread_fence", text.index(f"{fence}("))
    headers = ckernel.BUILD / f"mutant_{fence}"
    headers.mkdir(parents=True, exist_ok=True)
    (headers / "doorbell.h").write_text(text[:at] + text[at:].replace("thread", "signal", 1))
    assert any(litmus(5, headers) for _ in range(4))
