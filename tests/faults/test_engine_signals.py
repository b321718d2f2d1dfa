"""Signals at ten thousand a second (F21), and a clock that jumps by a day (F22): no process of an engine dies of them, no frame is lost."""

import contextlib
import mmap
import os
import signal
import struct
import subprocess
import threading
import time

import ckernel
import pytest
from engine_lab import FORWARD, running
from live import Load, heard, middle, once_in_order
from soak.rig import Rig

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]

STORM_S = 1.5
RATE = 10_000


@pytest.fixture(scope="module")
def net():
    with middle() as made:
        yield made


@contextlib.contextmanager
def storm(pids, number):
    """That signal to each of them in turn, RATE a second each, as long as the block lasts. Yields how many went."""
    over, sent = threading.Event(), [0]

    def go():
        began = time.monotonic()
        while not over.is_set():
            while sent[0] < (time.monotonic() - began) * RATE * len(pids) and not over.is_set():
                os.kill(pids[sent[0] % len(pids)], number)
                sent[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join(10)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGWINCH], ids=lambda n: n.name)
def test_F21_R23_a_storm_of_signals_ends_nobody_and_costs_no_frame(net, number):
    with running(net, FORWARD) as engine:
        rig = Rig(engine)
        rig.pid(2)
        there = dict(rig.crew())
        with heard(net.b.netns) as got, Load(net.a) as load:
            with storm(sorted(there), number) as sent:
                time.sleep(STORM_S)
                assert rig.status()["workers"][0]["state"] == "running", "the controller answers meanwhile"
            load.goes_on(200)
        assert sent[0] > 1000 * STORM_S * len(there), sent
        assert there.keys() <= dict(rig.crew()).keys(), "one of them has ended"
        assert not engine.lines("E_WORKER|I_ADOPTED")
    assert once_in_order(load, got) == []


CLOCK = r"""
/* The wall clock of whoever is started with this: it is off by the seconds in a file, from when they are written there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int64_t off(void)
{
    static const volatile int64_t *p;
    if (!p) {
        int fd = open(getenv("CLOCK_OFF"), O_RDONLY);
        p = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    }
    return *p;
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int got = real(clock, t);
    if (!got && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        t->tv_sec += off();
    return got;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *t = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return where ? *where = now.tv_sec : now.tv_sec;
}
"""


def test_F22_R23_a_wall_clock_that_jumps_by_a_day_ends_nobody_and_costs_no_frame(net, tmp_path):
    library = tmp_path / "clock.so"
    subprocess.run([*ckernel.CC, "-shared", "-fPIC", "-O1", "-o", library, "-x", "c", "-", "-ldl"], input=CLOCK, text=True, check=True)
    file = tmp_path / "off"
    file.write_bytes(bytes(8))
    env = {"LD_PRELOAD": str(library), "CLOCK_OFF": str(file)}
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8) as off, running(net, FORWARD, env=env) as engine:
        rig = Rig(engine)
        rig.pid(2)
        there = rig.crew()
        with heard(net.b.netns) as got, Load(net.a) as load:
            for days in (1, -1, 0):
                struct.pack_into("=q", off, 0, days * 86400)
                load.goes_on(1000)
                time.sleep(1.2)  # as long as it takes to be taken for stuck
                date = engine.net.lab.run(net.fa.netns, ["date", "+%s"], env=engine.env).stdout
                assert abs(int(date) - time.time() - days * 86400) < 60, "the clock does not jump"
                assert rig.status()["workers"][0]["state"] == "running"
        assert {pid for pid, _ in there} <= {pid for pid, _ in rig.crew()} and not engine.lines("E_WORKER|I_ADOPTED")
    assert once_in_order(load, got) == []
