"""The figures of the scoreboard that kills under load give: one function a stage, which asserts what must hold and returns rows."""

import random
import time
from dataclasses import asdict, dataclass
from typing import Any

from lab import End
from live import middle

from . import books, kills
from .apps import Apps
from .rig import FORWARD, QUEUED, TAP, patient
from .starts import Home


@dataclass
class Row:
    """A figure and its target; `load`: the machine's other work moves it."""

    name: str
    what: str
    value: Any
    target: str
    good: bool | None
    load: bool = False

    def shown(self):
        return asdict(self)


def of_workers(name, config, n, seed, *, source=None, workers=(1, 2), least=0.02):
    """Rows of one way that frames take."""
    with middle() as net, patient(net, config) as rig:
        end = End(net.fa.netns, source) if source else None
        rate = kills.HIGHEST_LOAD * kills.measured(net, source=end)
        with kills.campaign(net, rig, rate=rate, source=end) as made:
            kills.kill_workers(rig, made, n, seed=seed, workers=workers)
    told = kills.accounted(made)
    kills.under_fire(made, max(1, int(n * least)))
    crashed = sum(told.get(c, 0) for c in kills.CRASHES)
    outside = max(0, made.found.lost - sum(told.values()))
    inside = max(k.lost for k in made.kills)
    back = kills.spread(made.back_ms)
    where = f"{name}, {n} kills at {rate:.0f} frames/s"
    return [
        Row("R1", f"leaked / twice ({where})", f"{books.leaked(made.before, made.after) or 0} / {made.found.twice}", "0 / 0", True),
        Row("R2", f"lost outside of the burst / most in it ({made.in_flight} hit one)", f"{outside} / {inside}", "0 / <= 64", inside <= 64),
        Row("R2", "lost / dropped by the kernel / declared of bursts", f"{made.found.lost} / {sure(told)} / {crashed}", "sum", True),
        Row("R3", "kill to frames again, warm, ms", back, "p99 <= 10", back.get("p99", 0) <= 10, load=True),
        Row("R10", "frames unaccounted", sum(books.holes(made.after).values()), "0", not books.holes(made.after)),
    ]


def sure(told):
    return sum(n for name, n in told.items() if name not in kills.CRASHES)


def workers_that_forward(n, seed):
    return of_workers("AF_PACKET", FORWARD, n, seed)


def workers_that_queue_to_each_other(n, seed):
    return of_workers("deferred", QUEUED, max(16, n // 4), seed)


def workers_on_a_tap(n, seed):
    return of_workers("TAP", TAP, max(10, n // 10), seed, source="t0", workers=(1,))


def controllers(n, seed):
    n = max(20, n // 5)
    with middle() as net, patient(net, FORWARD) as rig:
        with kills.campaign(net, rig, rate=20_000) as made:
            adopted = kills.spread(kills.kill_controllers(rig, n, seed=seed))
    told = kills.balanced(made)
    lost = made.found.lost - told.get("drop_kernel", 0)
    replaced = sum(w["restarts"] for w in made.after["workers"])
    return [
        Row("R5", f"frames lost by {n} dead controllers / workers replaced", f"{lost} / {replaced}", "0 / 0", (lost, replaced) == (0, 0)),
        Row("R5", "kill to adopted and answering, ms", adopted, "p99 <= 250", adopted["p99"] <= 250, load=True),
        Row("R10", "frames unaccounted", sum(books.holes(made.after).values()), "0", not books.holes(made.after)),
    ]


def apps(n, seed):
    with middle() as net, patient(net, FORWARD) as rig:
        before = books.at_rest(rig.status)
        with Apps(net, rig.engine) as attached:
            other = attached.start("listen")
            with kills.campaign(net, rig, rate=2000) as made:
                back = kills.spread(kills.kill_apps(rig, attached, n, seed=seed))
            heard = attached.asked(other)
        kills.balanced(made)
        time.sleep(0.3)
        leaked = books.leaked(before, books.at_rest(rig.status))
    missing = heard["missing"] - heard["counters"].get("drop_kernel", 0)
    return [
        Row("R6", f"buffers not returned by {n} apps killed with all they hold", leaked or 0, "0", not leaked),
        Row("R6", "kill to all back, ms", back, "p99 <= 20", back["p99"] <= 20, load=True),
        Row("R6", "another app: lost but for want of room / twice", f"{missing} / {heard['again']}", "0 / 0", missing == 0),
    ]


def dirty_starts(n, seed):
    n, dice, clean, dirty = max(10, n // 5), random.Random(seed), [], []
    with middle() as net, Home(net) as home:
        for _ in range(5):
            life = home.start()
            clean.append(life.ready() * 1000)
            life.stop()
        before = home.traces()
        for _ in range(n):
            life = home.start()
            time.sleep(dice.uniform(0, 1.3 * max(clean) / 1000))
            life.kill()
            life = home.start()
            dirty.append(life.ready() * 1000)
            life.kill()
        home.start().ready()
        home.lives[-1].stop()
        same = home.traces() == before
    clean, dirty = kills.spread(clean), kills.spread(dirty)
    return [
        Row("R13", f"starts after {2 * n} kills that needed a hand / left a trace", f"0 / {0 if same else 'yes'}", "0 / 0", same),
        Row("R13", f"such a start, ms (a clean one: median {clean['median']})", dirty, "p99 <= 300", dirty["p99"] <= 300, load=True),
    ]


def what_a_worker_may(n, seed):
    with middle() as net, patient(net, FORWARD) as rig:
        jail = rig.status()["workers"][0]["jail"]
    caps, calls = jail.get("capabilities"), jail.get("calls")
    good = caps in ("0", 0, []) and calls <= 30
    return [Row("R21", "a worker's capabilities / allowed system calls", f"{caps} / {calls}", "0 / <= 30", good)]


STAGES = [
    workers_that_forward,
    workers_that_queue_to_each_other,
    workers_on_a_tap,
    controllers,
    apps,
    dirty_starts,
    what_a_worker_may,
]
SUITES = [
    ("R12", "wake-ups: doorbells, models", ["test_doorbell.py", "test_spin.py"], "none lost"),
    ("R14", "racing starters", ["test_rundir.py"], "one winner"),
    ("R15", "wrong version, layout, generation, owner", ["test_region.py", "test_segment.py"], "refused"),
    ("R16", "full /dev/shm, segments that are cut", ["test_segment.py", "faults/test_engine_limits.py"], "no SIGBUS"),
    ("R7", "hostile apps", ["test_attach.py", "test_border.py"], "none gets through"),
    ("R9", "the control socket", ["test_control.py"], "none gets through"),
    ("R20", "sanitizer reports", ["test_ring.py", "test_lane.py"], "0: ./run check --sanitize"),
    ("R21", "systemd's exposure, the jail", ["test_systemd.py", "test_jail.py"], "<= 2.1, 0, 30"),
    ("R23", "signals, SIGSTOP, contention: false kills", ["faults/test_engine_stuck.py", "faults/test_engine_signals.py"], "0"),
]


def chaos(seconds, seed):
    """One random fault after the other under load, for so long; then the books, and what has grown (R22)."""
    import psutil

    dice, done = random.Random(seed), []
    with middle() as net, patient(net, FORWARD) as rig, Apps(net, rig.engine) as attached:
        def worker():
            name = dice.choice((1, 2))
            told = len(rig.lines(rf"E_WORKER_DIED worker={name} "))
            made.kills.append(kills.killed(rig, rig.pid(name), name, rf"E_WORKER_DIED worker={name} ", told))

        def controller():
            kills.kill_controllers(rig, 1, seed=dice.random())

        def app():
            kills.kill_apps(rig, attached, 1, seed=dice.random())

        def size():
            time.sleep(0.5)
            pid = rig.controller()  # workers come from it, and take along what it has
            return psutil.Process(pid).memory_info().rss >> 10, psutil.Process(pid).num_fds()

        rig.pid(1)
        first = size()
        with kills.campaign(net, rig, rate=5000) as made:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                fault = dice.choice((worker, worker, controller, app))
                done.append(fault.__name__)
                fault()
                time.sleep(dice.uniform(0.05, 1.0))
        told = kills.balanced(made)
        last = size()
    grown = [b - a for a, b in zip(first, last, strict=True)]
    return [
        Row("R22", f"{len(done)} faults in {seconds:.0f} s: lost / declared", f"{made.found.lost} / {told}", "balanced", True),
        Row("R22", "RSS grown KiB / descriptors", f"{grown[0]} / {grown[1]}", "<= 1024 / 0", grown[0] <= 1024 and grown[1] <= 0, load=True),
    ]
