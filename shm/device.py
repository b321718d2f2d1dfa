"""The contract between whoever runs rings and the drivers that serve them; its C half is device.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Queue(Protocol):
    """One queue of a device: the capsule to bind a ring to, and the descriptors to wait on (-1 = always worth a call)."""

    device: object
    rx_fd: int
    tx_fd: int


class Device:
    """What a driver opens. Frames flow through its queues, in C; the rest is here, with what most drivers have no need to say."""

    queues: Sequence[Any] = ()

    def facts(self) -> dict:
        """What it is and how it is served."""
        return {}

    def warnings(self) -> list[str]:
        """What a user should know at start-up, one line each."""
        return []

    def follow(self, event: Any) -> None:
        """Keep up with a link event."""

    def proceed(self) -> bool:
        """Act on PR_DEV_PAUSED; True = it goes on."""
        return False

    def check(self) -> None:
        """Raise what made the input end before its time."""

    def close(self) -> None:
        """Give everything back."""
