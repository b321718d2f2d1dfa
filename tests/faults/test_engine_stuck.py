"""Workers that do not get on are found and replaced (F3), those that only wait are left alone (R23), and one that dies again and again is
held off (F2)."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from engine_lab import FORWARD, running
from live import LATE_S, Load, heard, middle
from soak import books, kills
from soak.rig import Rig

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(180)]

STUCK = r"E_WORKER_STUCK worker=(\d) pid=(\d+) no progress ([\d.]+) s at seq=\d+"


@pytest.fixture(scope="module")
def net():
    with middle() as made:
        yield made


@pytest.fixture(scope="module")
def rig(net):
    with running(net, FORWARD) as engine:
        yield Rig(engine)


def owner_of_the_flow(rig):
    """The worker that receives what Load sends: the fanout's choice."""
    rings = rig.status()["ports"]["left"]["rings"]
    return max((ring for ring in rings if " rx" in ring["row"]), key=lambda ring: ring["rx_frames"])["worker"]


def test_F3_R10_a_stopped_worker_with_work_is_replaced_within_a_second_and_a_bit(net, rig):
    with kills.campaign(net, rig, rate=2000) as made:
        made.traffic.flows_on(200)
        worker = owner_of_the_flow(rig)
        pid = rig.pid(worker)
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        at, line = rig.engine.told(STUCK, since=began, timeout_s=4)
        rig.pid(worker, not_=pid)
        made.traffic.flows_on(200)
    found = re.search(STUCK, line)
    assert (int(found[1]), int(found[2])) == (worker, pid)
    assert 0.9 < at - began < 1.1 + LATE_S, at - began
    kills.told("F3", found_s=round(at - began, 2), lost=made.found.lost, declared=kills.balanced(made))


def test_R23_a_worker_stopped_for_less_than_a_second_is_left_alone(net, rig):
    told = len(rig.lines(STUCK))
    with kills.campaign(net, rig, rate=2000) as made:
        made.traffic.flows_on(200)
        pid = rig.pid(owner_of_the_flow(rig))
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.9)
            os.kill(pid, signal.SIGCONT)
            made.traffic.flows_on(100)
    assert len(rig.lines(STUCK)) == told and pid in [p for p, _ in rig.crew()]
    assert kills.balanced(made) == {} and made.found.lost == 0


def test_F3_R23_an_idle_worker_is_left_alone_even_when_it_is_stopped(rig):
    told, pid = len(rig.lines(STUCK)), rig.pid(1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.6)
    os.kill(pid, signal.SIGCONT)
    assert len(rig.lines(STUCK)) == told and rig.pid(1) == pid


def test_F3_R23_workers_that_compete_for_the_cpu_are_left_alone(net, rig):
    told, pids = len(rig.lines(STUCK)), (rig.pid(1), rig.pid(2))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(20)]
    try:
        with kills.campaign(net, rig, rate=5000) as made:
            time.sleep(2.5)
            for child in busy:
                child.kill()
    finally:
        for child in busy:
            child.kill()
            child.wait(10)
    assert len(rig.lines(STUCK)) == told and (rig.pid(1), rig.pid(2)) == pids
    assert set(kills.balanced(made)) <= {"drop_kernel"}


HANDLER = FORWARD.split("[[forward]]")[0].replace('interface = "fa"', 'interface = "fa"\ntake = true') + """
[[protocol]]
name = "ip"
handler = "handlers:ends_never"
policy = "source"
"""
ENDS_NEVER = """
def ends_never(batch):
    while True:
        pass
"""


def test_F3_a_handler_that_does_not_return_is_taken_for_stuck(net):
    with running(net, HANDLER, handlers=ENDS_NEVER) as engine, contextlib.ExitStack() as traffic:
        rig = Rig(engine)
        rig.pid(1)
        began = time.monotonic()
        traffic.enter_context(kills.silent(net))
        at, _ = engine.told(STUCK, since=began, timeout_s=6)
        assert at - began < 1.5 + LATE_S
        engine.told("E_WORKER_DIED", since=began)


def test_F2_a_worker_that_dies_again_and_again_is_held_off_and_the_other_goes_on(net):
    with running(net, FORWARD) as engine:
        rig = Rig(engine)
        numbers = [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGILL]
        with heard(net.b.netns), Load(net.a) as load:
            for number in numbers:
                pid, told = rig.pid(1), len(engine.lines("E_WORKER_DIED worker=1"))
                os.kill(pid, number)
                line = rig.told_more("E_WORKER_DIED worker=1", told)
                assert f"pid={pid} sig={int(number)} " in line, line
                rig.pid(1, not_=pid)
            os.kill(rig.pid(1), signal.SIGKILL)
            at, line = engine.told("E_WORKER_LOOP")
            assert re.search(r"E_WORKER_LOOP worker=1 5 crashes/10 s, holding off 0\.1 s", line), line
            engine.told("E_WORKER_DIED worker=1", since=at)  # and then it comes
            pid = rig.pid(1)
            os.kill(pid, signal.SIGKILL)
            engine.told("holding off 0.2 s")
            assert rig.status()["workers"][0]["state"] in ("held_off", "starting", "running")
            load.goes_on(50)
        assert rig.status()["workers"][1]["restarts"] == 0
        books.at_rest(rig.status)
