"""The crew of a running engine: who is there, and that nobody comes and goes without need."""

import signal
import time

import psutil
import pytest
from command import eventually
from engine_lab import running
from live import middle

pytestmark = pytest.mark.needs("root")


def spares(engine):
    return [p.pid for p in psutil.Process(engine.child.pid).children(recursive=True) if p.name().startswith("pktring: spare")]


def test_after_a_replacement_one_spare_waits_and_the_controller_rests():
    with middle() as net, running(net) as engine:
        before = [worker["generation"] for worker in engine.status()["workers"]]
        engine.child.send_signal(signal.SIGHUP)
        eventually(lambda: all(w["generation"] > n for w, n in zip(engine.status()["workers"], before, strict=True)), 10)
        eventually(lambda: len(spares(engine)) == 1, 5)
        controller, found = psutil.Process(engine.controller()), set()
        begun = sum(controller.cpu_times()[:2])
        for _ in range(20):
            found.update(spares(engine))
            time.sleep(0.05)
        assert len(found) == 1, "it stays who it is"
        assert sum(controller.cpu_times()[:2]) - begun < 0.3
