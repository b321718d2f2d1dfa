"""Which flow a frame belongs to. flow.h has the rules, and the same over whole bursts."""

from __future__ import annotations

from . import _engine
from .toeplitz import MICROSOFT_KEY

KINDS: tuple[str, ...] = _engine.FLOW_KINDS


def flow_hash(frame: bytes, key: bytes = MICROSOFT_KEY) -> tuple[int, str]:
    """Hash a frame's flow with Toeplitz to 32 bits, and name what was found: tcp4 udp4 ip4 tcp6 udp6 ip6 none.

    TCP is hashed by addresses and ports; UDP, fragments and the rest of IP by addresses; what is not IP has 0. VLAN tags
    are passed over. Another key than Microsoft's is made ready anew by each call (7 µs, not 0.3).
    """
    value, kind = _engine.flow_hash(frame) if key == MICROSOFT_KEY else _engine.flow_hash(frame, key)
    return value, KINDS[kind]
