"""sd_notify(3): tell systemd how the service is doing. Outside of systemd nothing happens."""

from __future__ import annotations

import os
import socket

TIMEOUT_S = 1.0  # systemd's socket is hardly ever full


def notify(text: str) -> bool:
    """Send lines such as "READY=1" or "STATUS=2 workers"; False when nobody wants to know (no $NOTIFY_SOCKET), or nobody hears.

    From a child of the service's main process it counts only with NotifyAccess=all.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    name = "\0" + address[1:] if address[0] == "@" else address  # @: the abstract namespace, unix(7)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.sendto(text.encode(), name)
    except OSError:  # an engine that forwards is not ended because its news did not get through
        return False
    return True
