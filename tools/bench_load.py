"""The load of the bench jobs: frames out of an interface, as fast as they go or at a rate. `bench_stage.load` starts it."""

from __future__ import annotations

import sys
import time

import pktring
from pktring.engine.forward import Forwarder, Path

TICK_S = 0.001


def main(interface: str, size: int, seconds: float, pps: int) -> int:
    """Send for so long; returns the frames that went."""
    with pktring.open(interface, directions="tx", bypass=1) as port:
        (flat_out if pps == 0 else paced)(port, size, seconds, pps)
        return port.stats()["tx_frames"]


def flat_out(port: pktring.Port, size: int, seconds: float, _pps: int) -> None:
    """The null device makes frames, the C loop sends them."""
    with pktring.open(f"null:?len={size}", directions="rx", region=port.region) as source:
        Forwarder([Path(source, port)]).run(seconds)


def paced(port: pktring.Port, size: int, seconds: float, pps: int) -> None:
    """What the clock asks for, a millisecond at a time."""
    frame = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(size - 14)
    began, sent = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        due = int(now * pps) - sent
        while due > 0:
            accepted = port.send([frame] * min(due, 512))
            sent, due = sent + accepted, due - accepted
        time.sleep(max(0.0, TICK_S - (time.monotonic() - began - now)))


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
