"""The handler of the demo's engine: what netisr calls in a worker with bursts of frames, up to 64 at a time."""

from __future__ import annotations

from typing import Any


def across(batch: Any) -> None:
    """Send every frame out of the other port: in at left is out at right. Ports have the numbers of their order in the configuration."""
    from_left = batch.ports == 0
    batch.forward("right", where=from_left)
    batch.forward("left", where=~from_left)
