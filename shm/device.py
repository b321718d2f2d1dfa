"""The contract between whoever runs rings and the drivers that serve them; its C half is device.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .errors import Error


class Queue(Protocol):
    """One queue of a device: the capsule to bind rings to, and the descriptors to wait on (-1 = always worth a call)."""

    device: object
    rx_fd: int
    tx_fd: int

    @property
    def receives(self) -> bool: ...  # a receive ring is to be bound to it

    @property
    def sends(self) -> bool: ...


class Device:
    """What a driver opens. Frames flow through its queues, in C; the rest is here, with what most drivers have no need to say."""

    kind = ""
    queues: Sequence[Any] = ()

    def facts(self) -> dict:
        """What it is and how it is served."""
        return {}

    def warnings(self) -> list[str]:
        """What a user should know at start-up, one line each."""
        return []

    def follow(self, event: Any) -> bool:
        """Keep up with a link event; one process does, for all that hold the device.

        True = there are others behind the numbers of our descriptors now: processes that have copies need new ones.
        """
        return False

    def proceed(self) -> bool:
        """Act on PR_DEV_PAUSED; True = it goes on."""
        return False

    def check(self) -> None:
        """Raise what made the input end before its time."""

    # A device is its descriptors: whoever holds copies of them, by fork or SCM_RIGHTS, is the device too.

    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to be this device too: facts for JSON, and descriptors, in order. All stays ours as well.

        It asks the kernel nothing, so that a process without rights can answer. `adopt(state, fds)` of the driver that state["driver"]
        names makes the device there. Raises E_HAND_ON where that cannot be.
        """
        raise Error("E_HAND_ON", f"{self.kind or type(self).__name__}: this device stays with its process")

    def let_go(self) -> None:
        """Drop what this process holds; the device goes on with those who hold it too."""
        self.close()

    def close(self) -> None:
        """Give everything back: the end, for whoever holds it last."""
