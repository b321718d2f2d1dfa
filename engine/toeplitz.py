"""The Toeplitz hash of receive-side scaling, over bytes and with any key. toeplitz.h has the rule, and its fast form for frames."""

from __future__ import annotations

from . import _engine

MICROSOFT_KEY: bytes = _engine.MICROSOFT_KEY  # 40 bytes, the default of Windows and the BSDs
SYMMETRIC_KEY: bytes = _engine.SYMMETRIC_KEY  # 6d5a x 20: both directions of a connection alike, but only 65536 hashes


def toeplitz(data: bytes, key: bytes = MICROSOFT_KEY) -> int:
    """Hash to 32 bits; zeros follow a key that is shorter than the data. For a connection: source, destination, their ports."""
    return _engine.toeplitz(data, key)
