"""Where the bench jobs run: a network namespace of this process's own, veth pairs in it, a load on one CPU.

    s0 ===== f0   whoever is measured   f1 ===== s1
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from pktring.shm.errors import Error

from . import probes

LOAD_CPU, WORK_CPU = 0, 1


@functools.cache
def enter() -> None:
    """Move this process, and so all its children, into a new namespace with the two pairs in it."""
    try:
        probes.unshare(user=os.geteuid() != 0)
    except OSError as error:
        raise Error("E_PERM", f"no network namespace of our own: {error.strerror}: run as root, or see `pktring doctor`") from None
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        for one, other in (("s0", "f0"), ("f1", "s1")):
            ipr.link("add", ifname=one, kind="veth", peer={"ifname": other})
        for name in ("lo", "s0", "f0", "f1", "s1"):
            _quiet(name)
            ipr.link("set", index=socket.if_nametoindex(name), state="up")


def _quiet(name: str) -> None:
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        pass  # a kernel without IPv6 has nothing to say


def pinned(cpu: int = WORK_CPU) -> None:
    """Pin the calling process."""
    os.sched_setaffinity(0, {cpu})


def start(argv: Sequence[str], cpu: int | None = WORK_CPU) -> subprocess.Popen[str]:
    """Start a program, pinned to a CPU; None: it pins itself."""
    pin = functools.partial(pinned, cpu) if cpu is not None else None
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=pin)


def pktring(*words: str) -> subprocess.Popen[str]:
    """Start one of our own commands, pinned."""
    return start([sys.executable, "-m", "pktring.tools.main", *words])


def load(seconds: float, pps: int = 0, size: int = 64) -> int:
    """Send from s0, on the other CPU, at a rate or as fast as it goes (0). Returns how many frames went."""
    argv = [sys.executable, "-m", "pktring.tools.bench_load", "s0", str(size), str(seconds), str(pps)]
    child = start(argv, LOAD_CPU)
    out, err = child.communicate(timeout=seconds + 30)
    if child.returncode:
        raise Error("E_BENCH", f"the load ended: {err.strip().splitlines()[-1] if err.strip() else child.returncode}: see above")
    return int(out)


def received(name: str) -> int:
    """Frames that have arrived at an interface."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        (link,) = ipr.get_links(socket.if_nametoindex(name))
        return int(link.get_attr("IFLA_STATS64")["rx_packets"])
