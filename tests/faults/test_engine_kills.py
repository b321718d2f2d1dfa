"""Workers of a running engine are killed at random microseconds under load: on AF_PACKET, on a TAP, between workers, beside an app (F1).

The numbers in the frames are the truth: none comes twice, none out of its flow's order, and what is missing is declared, a burst a kill at
most. At length: `./run soak`.
"""

import collections
import os
import random
import signal
import struct
import sys
import time

import pytest
from command import eventually
from lab import End
from live import middle
from soak import books, kills
from soak.rig import FORWARD, SLOTS, patient

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
