"""Processes of netisr killed at any moment: their heirs go on, every frame is done at most once, and `crashed` is what is missing."""

import mmap
import os
import random
import signal
import struct
import time

import pytest
from netisr_lab import Lab, numbered

from pktring.engine.netisr import NO_PORT

N = 1 << 20  # frames that can be numbered


class Shared:
    """What children tell: how often each frame was seen, where a producer is, how far a worker got."""

    def __init__(self):
        self.seen = mmap.mmap(-1, N)
        self.words = memoryview(mmap.mmap(-1, 4096)).cast("Q")


def reap(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid


def until(done, seconds=20):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


class Cast:
    """Two workers in processes of their own; both queue for workstream 1, which worker 1 serves."""

    def __init__(self, lab, shared):
        self.lab, self.shared = lab, shared
        self.gen = [0, 0]
        self.pids = [self.start(0), self.start(1)]

    def start(self, i):
        return child(lambda: self.live(i))

    def live(self, i):
        lab, shared = self.lab, self.shared
        pool = lab.region.pool_of(i + 1, self.gen[i])
        end = lab.end(i, i, pool)

        def handle(proto, descs):
            for frame, *_ in end.read(descs):
                (number,) = struct.unpack("<Q", frame[:8])
                shared.seen[number] += 1

        end.handle = handle
        end.budget = 64
        while True:
            shared.words[16 + i] += 1
            if shared.words[i] < N // 2 - 64 and pool.free > 400:
                frames = []
                for _ in range(random.randint(1, 8)):
                    number = shared.words[i] * 2 + i
                    shared.words[i] += 1
                    frames += end.make(struct.pack("<Q", number) * (1 + number % 90), NO_PORT, 1)
                end.queue_src(1, 0, frames)
            end.serve()

    def kill(self, i):
        """It dies; its books are put right, and another takes its place."""
        reap(self.pids[i])
        self.gen[i] += 1
        pool = self.lab.region.pool_of(i + 1, self.gen[i])
        pool.reclaim_process(i + 1)
        self.lab.netisr.bury(pool, i, self.lab.netisr.bells)
        self.pids[i] = self.start(i)

    def end(self):
        for pid in self.pids:
            reap(pid)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_nothing_is_done_twice_and_the_books_agree(seed):
    r = random.Random(seed)
    shared = Shared()
    with Lab(2, maxqlimit=256, buffers=1500) as lab:
        lab.register("ip", 1, "flow", qlimit=100)
        cast = Cast(lab, shared)
        try:
            for _ in range(25):
                until(lambda before=list(shared.words[16:18]): all(shared.words[16 + i] > before[i] + 3 for i in range(2)))
                time.sleep(r.random() * 0.004)
                cast.kill(r.randrange(2))
        finally:
            cast.end()
        for i in range(2):
            pool = lab.region.pool_of(i + 1, cast.gen[i] + 1)
            pool.reclaim_process(i + 1)
            lab.netisr.bury(pool, i, lab.netisr.bells)
        seen = sum(shared.seen[:])
        pool = lab.region.pool_of(2, cast.gen[1] + 2)
        last = lab.end(1, 1, pool)
        while last.serve():
            pass
        lab.end(0, 0, lab.region.pool_of(1, cast.gen[0] + 2)).serve()
        work = lab.work(1, 1)
        assert max(shared.seen[:]) == 1  # at most once
        assert work["len"] == 0 and work["queued"] == work["handled"] + work["crashed"] + work["purged"]
        served = work["handled"] - len(lab.seen)  # by those that died
        assert served <= seen <= served + work["crashed"]
        assert work["queued"] > 1000 and lab.work(1, 0)["queued"] == 0
        counts = pool.count()
        assert counts["owned"] == counts["inflight"] == counts["broken"] == 0 and counts["free"] == pool.n - 2


# ---- one death at a time ----


@pytest.fixture
def lab():
    with Lab(2, maxqlimit=256) as lab:
        lab.register("ip", 1, qlimit=64)
        yield lab


def die(lab, i, run):
    """Worker i's process does this and is killed."""
    told = mmap.mmap(-1, 4096)

    def live():
        end = lab.end(i, i, lab.pools[i])
        run(end)
        told[0] = 1
        time.sleep(60)

    pid = child(live)
    until(lambda: told[0])
    reap(pid)


def heir(lab, i):
    pool = lab.pools[i] = lab.region.pool_of(i + 1, 7)
    pool.reclaim_process(i + 1)
    lab.netisr.bury(pool, i, lab.netisr.bells)
    lab.ends[i] = lab.end(i, i, pool)
    return lab.ends[i]


def test_frames_that_a_dead_worker_had_in_its_hands_are_crashed(lab):
    lab.queue(1, 1, numbered(10), source=0)

    def stop(end):
        end.handle = lambda proto, descs: (os.kill(os.getpid(), signal.SIGSTOP), time.sleep(60))
        end.serve()

    pid = child(lambda: stop(lab.end(0, 0, lab.pools[0])))
    os.waitpid(pid, os.WUNTRACED)
    assert lab.work() == lab.work() | {"len": 0, "handled": 0, "queued": 10} and lab.flags() == 1  # RUNNING
    lab.queue(1, 1, numbered(5, 10), source=0)
    assert lab.wakes(1) == 1  # it was not woken: it ran
    reap(pid)
    end = heir(lab, 0)
    assert end.adopt() == {"netisr_crashed": 10}
    assert lab.work() == lab.work() | {"len": 5, "handled": 0, "crashed": 10} and lab.pending() == 2
    lab.serve(0)
    assert lab.frames() == numbered(5, 10)
    lab.check()


def test_what_was_detached_and_not_taken_is_queued_again(lab):
    lab.netisr.setqlimit("ip", 256)
    for i in range(3):
        lab.queue(1, 1, numbered(64, 64 * i), source=0)

    def one_burst(end):
        end.handle, end.budget = None, 1
        end.serve()

    die(lab, 0, one_burst)
    assert lab.work() == lab.work() | {"len": 0, "handled": 64}
    heir(lab, 0)
    assert lab.work() == lab.work() | {"len": 128, "crashed": 0}
    lab.serve(0)
    assert lab.frames() == numbered(128, 64)
    lab.check()


def test_a_worker_that_leaves_loses_nothing(lab):
    lab.netisr.setqlimit("ip", 256)
    for i in range(3):
        lab.queue(1, 1, numbered(64, 64 * i), source=0)
    lab.ends[0].budget = 1
    lab.ends[0].serve()
    lab.ends[0].leave()
    assert lab.work()["len"] == 128 and lab.netisr.workstream(0)[1] == 0
    lab.ends[0] = lab.end(0, 0, lab.pools[0])
    assert lab.ends[0].adopt() == {"netisr_crashed": 0}
    lab.serve(0)
    assert lab.frames() == numbered(192)
    lab.check()


def test_a_dead_producers_frames_are_served_without_its_heir(lab):
    die(lab, 0, lambda end: end.queue_src(1, 1, end.make(b"x", NO_PORT, None)))
    assert lab.ends[1].ready()
    lab.serve(1)
    assert lab.frames() == [b"x"]
    heir(lab, 0)
    lab.queue(0, 1, [b"y"], source=1)
    lab.serve(1)
    assert lab.frames() == [b"x", b"y"]
    lab.check()


def test_dispatching_does_not_outlive_its_worker(lab):
    lab.netisr.set_dispatch("hybrid")

    def stop(end):
        end.handle = lambda proto, descs: (os.kill(os.getpid(), signal.SIGSTOP), time.sleep(60))
        end.dispatch_src(1, 0, end.make(b"x", NO_PORT, None))

    pid = child(lambda: stop(lab.end(0, 0, lab.pools[0])))
    os.waitpid(pid, os.WUNTRACED)
    assert lab.flags() == 2
    lab.queue(1, 1, [b"waits"], source=0)
    reap(pid)
    assert lab.ends[0].serve() == 0  # DISPATCHING: nobody may
    heir(lab, 0)
    lab.serve(0)
    assert lab.frames() == [b"waits"] and lab.flags() == 0
    lab.dispatch(0, 1, [b"y"])
    assert lab.work()["hybrid_dispatched"] == 1
    lab.check()


def test_a_purge_that_was_asked_of_the_dead_is_its_heirs(lab):
    lab.netisr.make_vnet()
    lab.netisr.register_vnet("ip", 1)
    lab.netisr.set_port(5, 1, 1)
    lab.queue(1, 1, numbered(4), source=1, port=5)  # 1 + 1: workstream 0
    lab.queue(1, 1, [b"stays"], source=0)
    die(lab, 0, lambda end: None)
    lab.netisr.allow(1, 1, False)
    ticket = lab.netisr.ask_purge(0, -1)
    assert heir(lab, 0).ready() and not lab.netisr.purge_done(0, ticket)
    lab.serve(0)
    assert lab.netisr.purge_done(0, ticket) and lab.frames() == [b"stays"] and lab.work()["purged"] == 4
    lab.check()


def test_holes_are_counted_anew_by_an_heir(lab):
    lab.netisr.make_vnet()
    lab.netisr.register_vnet("ip", 1)
    lab.netisr.set_port(4, 2, 1)
    for i in range(6):
        lab.queue(1, 1, [b"%d" % i], source=0, port=4 if i % 2 else NO_PORT)
    lab.netisr.unregister_vnet("ip", 1)
    assert lab.work()["len"] == 3
    lab.ends[0].leave()
    lab.ends[0] = lab.end(0, 0, lab.pools[0])
    assert lab.work() == lab.work() | {"len": 3, "purged": 3, "crashed": 0}
    lab.serve(0)
    assert lab.frames() == [b"0", b"2", b"4"]
    lab.check()
