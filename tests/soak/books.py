"""The books of a running engine, from its status: what was lost must be declared, and nothing may be missing in them.

    sent by the host = rx_kernel + drop_kernel             the kernel gave it to us, or counts that it did not
    rx_*, tx_*                                             the laws of shm/counters.h, ring by ring (conservation.py)
    queued or dispatched = handled + purged + crashed      netisr, workstream by workstream
    lost <= drops + drop_crash + crashed                   what a dead worker was sending may have gone all the same
"""

import time
from types import SimpleNamespace

from conservation import DRIVER_RX, DRIVER_TX, PATH, unaccounted

DROPS = {*DRIVER_RX, *DRIVER_TX, *PATH, "drop_kernel", "drop_tap_queue"} - {"drop_direction"}  # what we sent ourselves is not lost
MOVING = sorted(DROPS | {"rx_kernel", "rx_frames", "forwarded", "classified", "delivered", "tx_queued", "tx_frames", "drop_crash"})
REST_S = 15.0


def at_rest(ask):
    """The status once nothing moves any more. `ask`: gives the status."""
    deadline, last = time.monotonic() + REST_S, None
    while True:
        now = ask()
        moving = {name: [port["counters"][c] for c in MOVING] for name, port in now["ports"].items()}, now["pool"]
        if moving == last and all(worker["state"] == "running" for worker in now["workers"]):
            return now
        assert time.monotonic() < deadline, "the engine does not come to rest"
        last = moving
        time.sleep(0.15)


def counted(status, name):
    """A counter over all ports."""
    return sum(port["counters"][name] for port in status["ports"].values())


def netisr_sum(status, *names):
    """Figures of netisr's tables over all workstreams and protocols."""
    return sum(work[name] for stream in status["netisr"]["workstreams"] for work in stream["work"] for name in names)


def declared(status):
    """Frames that the engine says it lost: by reason, zeros left out."""
    found = {name: counted(status, name) for name in sorted(DROPS)}
    found["drop_crash"] = counted(status, "drop_crash")
    found["crashed"] = netisr_sum(status, "crashed")
    found["queue-drops"] = netisr_sum(status, "queue-drops")
    found["purged"] = netisr_sum(status, "purged")
    found["in hand"] = sum(worker["drop_tx_full"] for worker in status["workers"])
    return {name: n for name, n in found.items() if n}


def holes(status):
    """What the books are out by, row by row: {} is what must be (R10)."""
    rows = [ring for port in status["ports"].values() for ring in port["rings"]]
    out = unaccounted(SimpleNamespace(counters=lambda: rows))
    for stream in status["netisr"]["workstreams"]:
        for work in stream["work"]:
            row = f"ws {work['workstream']} {work['name']}"
            came = work["queued"] + work["dispatched"] + work["hybrid-dispatched"]
            out[row] = came - work["handled"] - work["purged"] - work["crashed"] - work["length"]
    return {row: n for row, n in out.items() if n}


def leaked(before, after):
    """Buffers that are not where they were when both are statuses at rest."""
    return {state: after["pool"][state] - n for state, n in before["pool"].items() if after["pool"][state] != n}
