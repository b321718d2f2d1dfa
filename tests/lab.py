"""Real networks for tests and the demo: namespaces, veth pairs, TAPs and bridges that are gone when the `with` block is.

    with Lab() as lab:
        a, b = lab.pair()                                  # two hosts, 10.0.0.1 and 10.0.0.2, joined by a veth
        lab.run(a.netns, ["ping", "-c1", "10.0.0.2"])
        with lab.listening(b) as ear:
            lab.send(a, [frame])
            assert ear.take(1) == [frame]

Works as root, and as any user inside `unshared([...])`. Nothing here touches an interface outside the namespaces it made. IPv6 is off
unless asked for, so that a test that counts sees no neighbour discovery. Children die with the thread that started them, and their process
groups at the end of the block.
"""

import contextlib
import ctypes
import fcntl
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

from pyroute2 import IPRoute
from pyroute2 import netns as pyroute2_netns

from pktring.drivers import ethtool
from pktring.drivers.netns import entered, named

PREFIX = "pr"
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
ETH_P_ALL = 3
IFF_RUNNING = 0x40
SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 6, 8, 23
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid
TP_STATUS_VLAN_VALID = 1 << 4
SO_RCVBUFFORCE = 33
RECEIVE_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class End:
    """One interface: where it is, and what it is given when it is made."""

    netns: str
    name: str
    address: str | None = None  # "10.0.0.1/24"
    mac: str | None = None

    @property
    def host(self) -> str:
        """The address without its prefix length."""
        return (self.address or "").split("/")[0]


class Lab:
    """A context manager that owns namespaces, their interfaces, and the processes started in them."""

    _count = itertools.count()

    def __init__(self, *, ipv6: bool = False):
        self._ipv6 = ipv6
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Lab":
        _sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def namespace(self, label: str = "ns") -> str:
        """Make a network namespace with lo up and return its name, a file in /run/netns."""
        name = f"{PREFIX}-{os.getpid()}-{next(Lab._count)}-{label}"
        self._undo.callback(_removed, name)
        pyroute2_netns.create(name)
        with entered(name):
            if not self._ipv6:
                _sysctl("net/ipv6/conf/all/disable_ipv6", "1")
                _sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            _sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.change(name, "lo", state="up")
        return name

    def pair(self, names: tuple[str, str] = ("va", "vb"), **how: Any) -> tuple[End, End]:
        """Make two namespaces joined by a veth, with addresses 10.0.0.1/24 and 10.0.0.2/24; `how` as for `veth`."""
        a, b = (End(self.namespace(name), name, f"10.0.0.{i}/24") for i, name in enumerate(names, 1))
        self.veth(a, b, **how)
        return a, b

    def veth(self, a: End, b: End, *, mtu: int = 1500, offloads: bool | dict[str, bool] = True) -> None:
        """Make a veth pair, each end up in its namespace; `offloads`: False is every one off, a dict those of ethtool.OFFLOADS."""
        with entered(a.netns), IPRoute() as ipr, contextlib.closing(FileIO(f"/run/netns/{b.netns}")) as there:
            peer = {"ifname": b.name, "net_ns_fd": there.fileno(), "mtu": mtu} | ({"address": b.mac} if b.mac else {})
            ipr.link("add", ifname=a.name, kind="veth", mtu=mtu, peer=peer, **({"address": a.mac} if a.mac else {}))
        for end in (a, b):
            self.offloads(end, offloads)
            self._dressed(end)
        for end in (a, b):
            self.running(end)

    def tap(self, end: End, *, mtu: int = 1500, flags: int = IFF_NO_PI) -> FileIO:
        """Make a TAP that is up and return the file behind it, non-blocking; the interface goes when that is closed."""
        with entered(end.netns):
            tap = self._undo.enter_context(contextlib.closing(FileIO("/dev/net/tun", "r+")))
            fcntl.ioctl(tap.fileno(), TUNSETIFF, struct.pack("16sH22x", end.name.encode(), IFF_TAP | flags))
        os.set_blocking(tap.fileno(), False)
        self.change(end.netns, end.name, mtu=mtu, **({"address": end.mac} if end.mac else {}))
        self._dressed(end)
        self.running(end)
        return tap

    def bridge(self, end: End, members: Sequence[str], *, mtu: int = 1500) -> None:
        """Make a Linux bridge, quiet (no STP, no multicast snooping), of interfaces in its namespace."""
        with entered(end.netns), IPRoute() as ipr:
            ipr.link("add", ifname=end.name, kind="bridge", mtu=mtu, br_stp_state=0, br_mcast_snooping=0)
            (master,) = ipr.link_lookup(ifname=end.name)
        for member in members:
            self.change(end.netns, member, master=master)
        self._dressed(end)
        if members:
            self.running(end)

    def change(self, netns: str, ifname: str, /, **what: Any) -> None:
        """Change an interface as `ip link set` does: state="down", mtu=600, ifname="vz", net_ns_fd=other, master=0 ..."""
        with entered(netns), IPRoute() as ipr:
            ipr.link("set", index=socket.if_nametoindex(ifname), **what)

    def running(self, end: End, timeout_s: float = 5.0) -> None:
        """Wait until the kernel's linkwatch has seen the carrier that came; everything made here has been waited for.

        Before, a frame sent is dropped and send(2) is content: that was one first frame in three, until this function.
        """
        deadline = time.monotonic() + timeout_s
        with entered(end.netns), IPRoute() as ipr:
            index = socket.if_nametoindex(end.name)
            while not ipr.get_links(index)[0]["flags"] & IFF_RUNNING:
                assert time.monotonic() < deadline, f"{end.name} is up but has had no carrier for {timeout_s} s"
                time.sleep(0.001)

    def delete(self, netns: str, ifname: str) -> None:
        """Delete an interface (and, with a veth, its other end)."""
        with entered(netns), IPRoute() as ipr:
            ipr.link("del", index=socket.if_nametoindex(ifname))

    def offloads(self, end: End, wanted: bool | dict[str, bool]) -> None:
        """Switch offloads as `ethtool -K` does; False is every one off, True leaves what the kernel chose."""
        if wanted is True:
            return
        with entered(end.netns), socket.socket() as sock:
            ethtool.set_offloads(sock.fileno(), end.name, wanted or dict.fromkeys(ethtool.OFFLOADS, False))

    def index(self, end: End) -> int:
        """Return the ifindex of an end."""
        with entered(end.netns):
            return socket.if_nametoindex(end.name)

    def inside(self, netns: str) -> contextlib.AbstractContextManager[None]:
        """Hold the calling thread in a namespace for the block: sockets opened there stay there."""
        return entered(netns)

    def run(self, netns: str | None, argv: Sequence[str], *, timeout_s: float = 30, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in a namespace to its end; its output is captured as text, and it is killed after `timeout_s`."""
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        given = how.pop("input", None)
        child = self.start(netns, argv, **how, **({"stdin": subprocess.PIPE} if given is not None else {}))
        try:
            out, err = child.communicate(given, timeout=timeout_s)
        finally:
            _killed(child)
        return subprocess.CompletedProcess(argv, child.returncode, out, err)

    def start(self, netns: str | None, argv: Sequence[str], **how: Any) -> subprocess.Popen[str]:
        """Start a program in a namespace; it and its process group are killed at the end of the block, or with the calling thread."""
        with entered(netns):  # a child inherits the namespace of the thread that forks it
            child = subprocess.Popen(argv, text=True, start_new_session=True, preexec_fn=_dies_with_parent, **how)
        self._undo.callback(_killed, child)
        return child

    def send(self, end: End, frames: Sequence[bytes], count: int = 1) -> int:
        """Send the frames, in order, `count` times over, as they are (AF_PACKET); return how many went."""
        with entered(end.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((end.name, 0))
            for _ in range(count):
                for frame in frames:
                    sock.send(frame)
        return len(frames) * count

    def listening(self, end: End) -> "Ear":
        """Start to receive at an end; what was sent before this call is not heard."""
        return self._undo.enter_context(Ear(end))

    def _dressed(self, end: End) -> None:
        with entered(end.netns), IPRoute() as ipr:
            index = socket.if_nametoindex(end.name)
            if end.address:
                address, length = end.address.split("/")
                ipr.addr("add", index=index, address=address, prefixlen=int(length))
            ipr.link("set", index=index, state="up")


class Ear:
    """A packet socket on one end that hears what arrives there (not what it sends), VLAN tags put back where they were on the wire."""

    def __init__(self, end: End):
        with entered(end.netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            _roomy(self.sock)
            self.sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self.sock.bind((end.name, ETH_P_ALL))  # only now frames come: none of another interface

    def take(self, n: int, timeout_s: float = 2.0) -> list[bytes]:
        """Return the next frames, `n` of them or what came within `timeout_s`."""
        frames: list[bytes] = []
        deadline = time.monotonic() + timeout_s
        while len(frames) < n and (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                frames.append(self._frame())
        return frames

    def dropped(self) -> int:
        """Return how many frames found no room since the last call."""
        return int(struct.unpack("II", self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1])

    def close(self) -> None:
        """Stop listening."""
        self.sock.close()

    def __enter__(self) -> "Ear":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self) -> bytes:
        data, notes, _, _ = self.sock.recvmsg(1 << 17, socket.CMSG_SPACE(AUXDATA.size))
        status, _, _, _, _, tci, tpid = AUXDATA.unpack(notes[0][2][: AUXDATA.size])
        if not status & TP_STATUS_VLAN_VALID:
            return data
        return data[:12] + struct.pack("!HH", tpid, tci) + data[12:]


def unshared(argv: Sequence[str]) -> list[str]:
    """Wrap a command so that it runs as root of user, network and mount namespaces of its own, where a Lab works without privileges."""
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh", *argv]


def can_unshare() -> bool:
    """Say whether this machine and user may make such namespaces."""
    return shutil.which("unshare") is not None and subprocess.run(unshared(["true"]), capture_output=True, check=False).returncode == 0


def _sweep() -> None:
    """Remove what a Lab left behind whose process was killed without a chance to."""
    for name in named():
        match = re.match(rf"{PREFIX}-(\d+)-", name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            _removed(name)


def _removed(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        pyroute2_netns.remove(name)


def _killed(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=10)


def _dies_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite that runs in the background has it ignored, and children inherit that


def _roomy(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
    except PermissionError:  # in a user namespace: net.core.rmem_max is the limit then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


def _sysctl(name: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/{name}", "w", encoding="ascii") as file:  # absent: a kernel without IPv6
        file.write(value)
