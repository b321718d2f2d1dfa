"""The controller of a running engine is killed, alone (F5), with its supervisor, or with everything (F6): frames go on, what is next takes
over, and nothing needs a hand. At length: `./run soak`.
"""


import contextlib
import random
import signal
import time

import pytest
from command import eventually
from live import LATE_S, Load, heard, middle, once_in_order
from soak import kills
from soak.rig import FORWARD, kill, patient
from soak.starts import Home

from pktring.engine import rundir
from pktring.engine.control import Client
from pktring.shm.errors import Error

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def net():
    with middle() as made:
        yield made


def test_F5_R5_controllers_killed_under_load_lose_no_frame_and_are_followed_by_others(net):
    with patient(net, FORWARD) as rig:
        with kills.campaign(net, rig, rate=20_000) as made:
            adopted = kills.kill_controllers(rig, 30, seed=1)
        workers = [w["restarts"] for w in made.after["workers"]]
    told = kills.accounted(made)
    assert set(told) <= {"drop_kernel"} and made.found.lost == told.get("drop_kernel", 0), (told, made.found.lost)
    assert workers == [0, 0], "a worker was replaced"
    kills.told("F5", lost=made.found.lost, adopted_ms=kills.spread(adopted))


def test_F1_F5_of_a_worker_that_was_adopted_it_is_known_too_how_it_died(net):
    with patient(net, FORWARD) as rig:
        kills.kill_controllers(rig, 1, seed=1)
        for number in (signal.SIGSEGV, signal.SIGTERM):
            pid = rig.pid(1)
            kill(pid, number)
            rig.pid(1, not_=pid)
            rig.engine.told(rf"E_WORKER_DIED worker=1 pid={pid} sig={int(number)} reclaimed=\d+ lost<=\d+ resumed_ms=")


def killed_while_starting(home, dice, whom, longest_s):
    """Start, kill at a random microsecond of the start. -> the life"""
    life = home.start()
    time.sleep(dice.uniform(0, longest_s))
    if whom == "all":
        life.kill()
    else:
        for pid in life.named("controller"):
            life.kill(pid)
    return life


def test_F6_R13_whatever_is_killed_while_it_starts_the_next_start_needs_no_hand(net):
    dice, clean, dirty = random.Random(2), [], []
    with Home(net) as home:
        for _ in range(3):
            life = home.start()
            clean.append(life.ready() * 1000)
            assert life.stop() == 0
        before = home.traces()
        for _ in range(6):
            killed_while_starting(home, dice, "all", 1.3 * max(clean) / 1000)
            life = home.start()
            dirty.append(life.ready() * 1000)
            life.kill()  # and this one while it runs
        assert home.told("I_STALE_STATE removed") >= 3, "no start found anything stale"
        assert home.start().ready() and home.lives[-1].stop() == 0
        assert home.traces() == before
    kills.told("F6 start", clean_ms=kills.spread(clean), dirty_ms=kills.spread(dirty))


def test_F6_a_controller_killed_while_it_starts_is_followed_by_one_that_starts(net):
    dice = random.Random(3)
    with Home(net) as home:
        for _ in range(5):
            life = killed_while_starting(home, dice, "controller", 0.3)
            life.ready()
            assert len(life.named("worker")) == 2
            assert life.stop() == 0
        assert home.traces()[0] == set() == home.traces()[1] - {"lo", "fa", "fb"}


def test_F5_workers_without_supervisor_and_controller_go_on_and_the_next_up_adopts_them(net):
    with Home(net, orphan_timeout_s=5.0) as home, contextlib.ExitStack() as traffic:
        life = home.start()
        life.ready()
        got, load = traffic.enter_context(heard(net.b.netns)), traffic.enter_context(Load(net.a))
        load.goes_on(100)
        workers = sorted(life.named("worker"))
        control = rundir.find("t").control
        life.kill(life.pid, *life.named("controller"))
        began = time.monotonic()
        with pytest.raises(Error, match="E_NO_CONTROLLER|E_NO_ENGINE") as told, Client(control, 5) as client:
            client.call("status")
        assert time.monotonic() - began < 0.5, "a control call fails at once"
        assert "data path still up" in str(told.value), told.value
        load.goes_on(500)
        again = home.start()
        again.ready()
        assert home.told("I_ADOPTED 2 of 2")
        assert sorted(again.named("worker") + life.named("worker")) == workers
        load.goes_on(500)
        traffic.close()
        assert once_in_order(load, got) == [], "a frame was lost"
        assert again.stop() == 0


def test_F5_workers_without_a_controller_end_after_the_orphan_timeout_and_give_the_interfaces_back(net):
    with Home(net, orphan_timeout_s=0.5) as home:
        life = home.start()
        life.ready()
        life.kill(life.pid, *life.named("controller"))
        began = time.monotonic()
        eventually(lambda: not life.named("worker"), 5)
        took = time.monotonic() - began
        assert 0.4 < took < 1.5 + LATE_S, took
        life.over()
        eventually(lambda: "t0" not in home.traces()[1])  # the kernel closes after them
        home.start().ready()
        assert home.told("I_STALE_STATE removed"), "the next start cleans up"
        assert home.lives[-1].stop() == 0
