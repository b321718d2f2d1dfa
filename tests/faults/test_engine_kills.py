"""Workers of a running engine are killed at random microseconds under load: on AF_PACKET, on a TAP, between workers, beside an app (F1).

The numbers in the frames are the truth: none comes twice, none out of its flow's order, and what is missing is declared, a burst a kill at
most. At length: `./run soak`.
"""

import os
import random

import pytest
from lab import End
from live import middle
from soak import kills
from soak.apps import Apps
from soak.rig import FORWARD, QUEUED, TAP, patient

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(180)]

SEED = int(os.environ.get("PKTRING_SOAK_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture(scope="module")
def net():
    with middle() as made:
        yield made


def test_F1_R1_R2_R10_workers_killed_under_load_lose_a_declared_burst_and_nothing_else(net):
    with patient(net, FORWARD) as rig:
        rate = kills.HIGHEST_LOAD * kills.measured(net)
        with kills.campaign(net, rig, rate=rate) as made:
            kills.kill_workers(rig, made, 50, seed=SEED)
    told = kills.accounted(made)
    kills.under_fire(made, 5)
    kills.told(
        f"F1 seed {SEED} at {rate:.0f}/s",
        lost=made.found.lost,
        declared=told,
        in_flight=f"{made.in_flight} of {len(made.kills)}",
        back_ms=kills.spread(made.back_ms),
        resumed_ms=kills.spread([k.resumed_ms for k in made.kills]),
        gone_ms=kills.spread([k.gone_ms for k in made.kills]),
    )


def test_F1_R2_a_worker_killed_on_a_tap_loses_what_it_had_read(net):
    """What was read from a TAP is gone with who read it: it must be declared as well."""
    with patient(net, TAP) as rig:
        source = End(net.fa.netns, "t0")
        with kills.campaign(net, rig, rate=kills.HIGHEST_LOAD * kills.measured(net, 0.3, source), source=source) as made:
            kills.kill_workers(rig, made, 10, seed=SEED, workers=(1,))
    told = kills.accounted(made)
    kills.under_fire(made)
    kills.told("F1 tap", lost=made.found.lost, declared=told, in_flight=made.in_flight)


def test_F1_R2_R10_workers_killed_while_they_queue_to_each_other_lose_a_declared_burst(net):
    with patient(net, QUEUED) as rig:
        with kills.campaign(net, rig, rate=kills.HIGHEST_LOAD * kills.measured(net, 0.3)) as made:
            kills.kill_workers(rig, made, 16, seed=SEED)
        work = [work for stream in made.after["netisr"]["workstreams"] for work in stream["work"] if work["name"] == "ip"]
    assert all(w["queued"] > 100 for w in work), "frames did not go by way of queues"
    told = kills.accounted(made)
    kills.under_fire(made)
    kills.told("F1 deferred", lost=made.found.lost, declared=told, in_flight=made.in_flight)


def test_F1_R2_an_app_goes_on_over_the_deaths_of_the_workers_that_feed_it(net):
    """It gets copies: none twice, and none missing but a burst a kill and what its ring had no room for."""
    with patient(net, FORWARD) as rig, Apps(net, rig.engine) as apps:
        app = apps.start("listen")
        with kills.campaign(net, rig, rate=40_000) as made:
            kills.kill_workers(rig, made, 12, seed=SEED)
        (seen,) = made.after["apps"]
        heard = apps.asked(app)
    told = kills.accounted(made)
    kills.under_fire(made)
    assert heard["again"] == 0 and heard["frames"] > 0
    assert heard["frames"] <= seen["counters"]["copied"]
    lost = sum(made.found.sent) - heard["frames"] - seen["counters"]["drop_app_full"] - told.get("drop_kernel", 0)
    kills.told("F1 app", heard=heard, seen=seen["counters"], lost=lost, in_flight=made.in_flight)
    assert 0 <= lost <= kills.BURST * len(made.kills)
