"""Kills under load, and what each of them cost. A campaign returns figures; what must hold of them is asserted here, at its end.

The suite runs these in short form, `./run soak` at length.
"""

import random
import re
import select
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import books
from .rig import kill
from .traffic import Traffic

BURST = 64
CRASHES = ("drop_crash", "crashed")
HIGHEST_LOAD = 0.6  # of what the machine carried just before: the figure of PROOF is "at least half"
BACK_S = 3.0  # how long after a kill a silence is still put down to it


@dataclass
class Kill:
    """One of them: when, whom, and what the engine said of it."""

    at: float
    worker: int
    lost: int  # at most so many, says the engine
    reclaimed: int
    resumed_ms: float  # as the controller sees it
    gone_ms: float  # from the signal to the end of the process


@dataclass
class Campaign:
    """All of them, and the truth of both ends."""

    kills: list = field(default_factory=list)
    found: object = None
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    back_ms: list = field(default_factory=list)  # from the signal to the next frame of a flow that stood still

    @property
    def in_flight(self):
        """Kills that hit a burst."""
        return sum(1 for k in self.kills if k.lost)

    def silence(self, kill_, until):
        """From a kill to the end of the silence that it made, ms; None where no flow stood still."""
        ends = [p[2] for p in self.found.pauses if p[1] - 0.002 <= kill_.at <= p[2] or kill_.at <= p[1] <= kill_.at + 0.002]
        ends = [end for end in ends if end <= until]
        return (max(ends) - kill_.at) * 1000 if ends else None


def measured(net, seconds=0.6, source=None, sink=None):
    """Frames a second that the running engine carries at most, now."""
    with Traffic(net.lab, source or net.a, sink or net.b, rate=0) as traffic:
        began, n = time.monotonic(), traffic.heard
        time.sleep(seconds)
        carried = (traffic.heard - n) / (time.monotonic() - began)
    return carried


@contextmanager
def campaign(net, rig, *, rate, source=None, sink=None, flows=16):
    """Traffic at `rate` while the block kills; then the books. Yields the Campaign."""
    made = Campaign(before=books.at_rest(rig.status))
    with Traffic(net.lab, source or net.a, sink or net.b, rate=rate, flows=flows) as made.traffic:
        yield made
    made.found = made.traffic.found
    made.after = books.at_rest(rig.status)
    ends = [*(k.at for k in made.kills[1:]), time.time()]
    made.back_ms = [ms for k, end in zip(made.kills, ends) if (ms := made.silence(k, min(end, k.at + BACK_S))) is not None]  # noqa: B905


def kill_workers(rig, made, n, *, seed, workers=(1, 2), wait=(0.005, 0.03), number=9):
    """Kill workers in turn at random microseconds; the next one runs before the next kill. Up to 4 n, until one hit a burst."""
    dice = random.Random(seed)
    pids = {w: rig.pid(w) for w in workers}
    for i in range(4 * n):
        if i >= n and made.in_flight:
            break
        worker = workers[i % len(workers)]
        pattern = rf"E_WORKER_DIED worker={worker} "
        time.sleep(dice.uniform(*wait))
        told = len(rig.lines(pattern))
        made.kills.append(killed(rig, pids[worker], worker, pattern, told, number))
        pids[worker] = rig.pid(worker, pids[worker])


def killed(rig, pid, worker, pattern, told, number=9):
    """Kill one and hear what the engine says of it."""
    import os

    fd = os.pidfd_open(pid)
    at = kill(pid, number)
    select.select([fd], [], [], 5)
    gone = (time.time() - at) * 1000
    os.close(fd)
    said = re.search(r"reclaimed=(\d+) lost<=(\d+) resumed_ms=([\d.]+)", rig.told_more(pattern, told))
    return Kill(at, worker, int(said[2]), int(said[1]), float(said[3]), gone)


def kill_controllers(rig, n, *, seed, wait=(0.0, 0.03)):
    """Kill the controller at random microseconds, also of its adoption. -> ms from each signal to the next adoption that is complete"""
    dice, times, pid = random.Random(seed), [], 0
    for _ in range(n):
        time.sleep(dice.uniform(*wait))
        pid, told = rig.controller(not_=pid), len(rig.lines("is ready"))
        at = kill(pid)
        rig.told_more("is ready", told)
        times.append((time.time() - at) * 1000)
    return times


def kill_apps(rig, apps, n, *, seed=1, wait=(0.0, 0.02)):
    """Kill n apps, each when it holds all that it can get. -> ms from each signal to the word that all is back"""
    dice, times = random.Random(seed), []
    for _ in range(n):
        pid = apps.start("hold")
        time.sleep(dice.uniform(*wait))
        at, pattern = time.time(), rf"W_APP_GONE app=\d+ pid={pid} "
        apps.killed(pid)
        line = rig.told_more(pattern, 0)
        times.append((time.time() - at) * 1000)
        found = re.search(r"lent=(\d+) returned=(\d+)", line)
        assert found[1] == found[2], line
    return times


@contextmanager
def silent(net, rate=1000):
    """Traffic that nobody listens to."""
    traffic = Traffic(net.lab, net.a, net.b, rate=rate)
    try:
        yield traffic.send_only()
    finally:
        traffic.close()


def balanced(made):
    """R1, R10: nothing twice, in order, nothing unaccounted, no buffer gone. -> what is declared as lost"""
    found = made.found.whole()
    assert not books.holes(made.after), books.holes(made.after)
    assert not books.leaked(made.before, made.after), books.leaked(made.before, made.after)
    before, after = books.declared(made.before), books.declared(made.after)
    told = {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
    sure = sum(n for name, n in told.items() if name not in CRASHES)
    assert sure <= found.lost <= sum(told.values()), (found.lost, told)
    return told


def accounted(made):
    """F1, R2: as `balanced`, and a burst a kill at most."""
    told = balanced(made)
    crashed = sum(told.get(name, 0) for name in CRASHES)
    assert crashed == sum(k.lost for k in made.kills), (crashed, [k.lost for k in made.kills])
    assert all(k.lost <= BURST for k in made.kills), [k for k in made.kills if k.lost > BURST]
    return told


def under_fire(made, at_least=1):
    """PROOF 7: a run in which no kill hit a burst in flight shows nothing."""
    assert made.in_flight >= at_least, f"none of {len(made.kills)} kills hit a burst in flight"


def spread(values):
    """Median and 99th percentile of what was measured."""
    values = sorted(values)
    if not values:
        return {"n": 0}
    at = lambda share: values[min(len(values) - 1, int(len(values) * share))]  # noqa: E731
    return {"n": len(values), "median": round(at(0.5), 2), "p99": round(at(0.99), 2), "max": round(values[-1], 2)}


def told(label, **figures):
    """One line for `pytest -s` and the report's reader."""
    print(f"{label}: " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)


