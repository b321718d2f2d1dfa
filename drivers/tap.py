"""TAP devices: an Ethernet interface of the host whose other end is us (Documentation/networking/tuntap.rst of the kernel).

One that does not exist is made, and goes with us unless it is told to persist; a persistent one is attached to. The frames flow in tap.c.
What crosses is virtio-net headers and super-frames, so that TCP runs at the size of a TSO frame and not of the MTU.

Of several queues each receives and sends, for the kernel has no others. It deals flows to them by their hash, but a flow that was
written to a queue comes out of that one. Who only sends writes to the queue of another: a write is a frame, whoever else writes.
The interface is there, with its carrier, as long as any process holds a descriptor of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import _drivers, netns
from .link import LinkEvent, LinkFacts, LinkWatch, facts, recalled
from .live import Live

DEVICE = "/dev/net/tun"
NET_DEV = "/proc/thread-self/net/dev"
TUNSETIFF, TUNGETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x800454D2, 0x400454CB, 0x400454D0
TUNSETVNETHDRSZ, TUNSETCARRIER, TUNGETDEVNETNS = 0x400454D8, 0x400454E2, 0x54E3
IFF_TAP, IFF_MULTI_QUEUE, IFF_PERSIST, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x0800, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 1, 2, 4, 8, 0x20, 0x40  # USO: Linux 6.2
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, SIOCSIFHWADDR = 0x8913, 0x8914, 0x8922, 0x8924
IFF_UP, ARPHRD_ETHER = 1, 1
IFREQ = 40  # struct ifreq
VNET_HDR_SIZE = 10
NAME_MAX = 15
MTU_MIN, MTU_MAX = 68, 65521
QUEUES_MAX = 256

# From all that we can carry down to nothing, a step for each thing that some kernel lacks.
OFFLOADS = {
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6: ["csum", "tso4", "tso6", "ecn", "uso4", "uso6"],
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN: ["csum", "tso4", "tso6", "ecn"],
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6: ["csum", "tso4", "tso6"],
    TUN_F_CSUM: ["csum"],
    0: [],
}

OPTIONS = {
    "mac": "its address, as 02:00:00:00:00:01 (the kernel picks one)",
    "mtu": f"{MTU_MIN} to {MTU_MAX} (1500 when it is made)",
    "persist": "1 = it stays when we go, 0 = it goes with us (0 when it is made)",
    "up": "0 = leave it down or up as it is (1: bring it up)",
    "offload": "0 = the host's stack completes checksums and cuts super-frames itself (1: we take them as they are)",
}


@dataclass
class Queue:
    """One queue: its descriptor, for both directions, and the C device over it. One that only sends has no `rx_fd`."""

    device: object
    rx_fd: int
    tx_fd: int
    core: _drivers.TapQueue
    sends = True

    @property
    def receives(self) -> bool:
        """Whether a receive ring is to be bound to it."""
        return self.rx_fd >= 0


@dataclass(frozen=True)
class Wanted:
    """The options, checked; None = leave it as it is."""

    mac: bytes | None
    mtu: int | None
    persist: bool | None
    up: bool
    offload: bool


class Tap(Device):
    """A TAP device and its queues. Raises E_NAME, E_OPTION, E_PERM, E_TAP_BUSY, E_NOT_TAP.

    Frames are read straight into the ring's own slots. `queues` receive and send; with a larger `tx_queues` those beyond only send.
    `handed`: what `hand_on` returned in another process.
    """

    kind = "tap"

    def __init__(
        self,
        name: str,
        *,
        queues: int = 1,
        tx_queues: int = 0,
        netns_name: str | None = None,
        port: int = 0,
        options: dict[str, str] | None = None,
        handed: tuple[dict, list[int]] | None = None,
    ):
        self.interface = _checked_name(name)
        self.options = options or {}
        self.wanted = _wanted(self.options)
        if not 1 <= queues <= QUEUES_MAX:
            raise Error("E_OPTION", f"queues={queues}: a TAP has 1 to {QUEUES_MAX}")
        self.n_queues, self.n_tx_queues = queues, max(queues, tx_queues)
        self.home = self._given_home = netns_name  # where it is made, whatever namespace it is moved to later
        self.netns = netns_name
        self.port = port
        self.offloads: list[str] = []
        self.queues: list[Queue] = []
        self.link: LinkFacts
        self._gone = False  # the interface, as of the last event
        self._flags = 0
        self._home_inode = handed[0]["home_inode"] if handed else netns.identity(netns_name)
        fds = list(handed[1]) if handed else []
        self._live = Live(fds.pop() if handed else -1)
        self._net_dev = -1
        self._quiet = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            if handed:
                self._adopt(handed[0], fds)
            else:
                self._open(fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            self.queues = []
            self.let_go()
            raise

    def _open(self, fds: list[int]) -> None:
        with netns.entered(self.home):
            for i in range(self.n_tx_queues):
                fds.append(self._attached() if i < self.n_queues else os.dup(fds[i % self.n_queues]))
            self._dress(fds[0])
        self.link = facts(self.interface, self.home)
        self._add(fds)
        self._look(anew=True)

    def _add(self, fds: list[int]) -> None:
        for fd in fds:
            core = _drivers.TapQueue(self._live.map, fd, self._quiet, self.port)
            self.queues.append(Queue(core.device, fd if len(self.queues) < self.n_queues else -1, fd, core))
        with netns.entered(self.home):
            self._net_dev = os.open(NET_DEV, os.O_RDONLY | os.O_CLOEXEC)
        self.queues[0].core.net_dev = self._net_dev  # one counts the drops of them all

    # ---- the driver interface ----

    def facts(self) -> dict:
        """What this port is and how it is served."""
        return {
            "driver": self.kind,
            "interface": self.interface,
            "ifindex": self.link.ifindex,
            "mac": self.link.mac.hex(":"),
            "mtu": self.link.mtu,
            "up": self.link.up,
            "mode": "taking",  # what the host sends into a TAP is for us alone
            "queues": self.n_queues,
            "tx_queues": self.n_tx_queues,
            "multi_queue": bool(self._flags & IFF_MULTI_QUEUE),
            "persist": self.persistent,
            "carries_gso": True,
            "offloads": self.offloads,
        }

    def warnings(self) -> list[str]:
        """What the user should know at start-up."""
        lines = []
        if self.wanted.offload and "tso4" not in self.offloads:
            lines.append(f"{self.interface}: this kernel hands TAPs no super-frames: TCP will be several times slower")
        if not self.link.up:
            lines.append(f"{self.interface} is down: the host drops what is sent to it until `ip link set {self.interface} up`")
        return lines

    def follow(self, event: LinkEvent) -> bool:
        """Keep up with what became of the interface. True = there is another TAP behind our descriptors now."""
        if event.kind == "back":
            return self.rebind()
        self._gone = event.kind == "gone"
        if not self._gone:
            try:
                self.refresh()
            except Error as why:
                if why.code not in ("E_PORT_GONE", "E_NO_INTERFACE"):  # gone since: the next event says so
                    raise
        return False

    def rebind(self) -> bool:
        """Attach again after the TAP was deleted, to the one that has its name now or else to a new one. True = it had to be."""
        lost = [i for i, queue in enumerate(self.queues) if _getiff(queue.tx_fd) is None]
        with netns.entered(self.home):
            for i in lost:
                fd = self._attached() if i < self.n_queues else os.dup(self.queues[i % self.n_queues].tx_fd)
                os.dup2(fd, self.queues[i].tx_fd, inheritable=False)  # the number stays, for all who know it
                os.close(fd)
                self.queues[i].core.gone = 0
            if lost:
                self._dress(self.queues[0].tx_fd)
        self._look(anew=bool(lost))
        self._gone = False
        return bool(lost)

    def refresh(self) -> None:
        """Look at it again after it was renamed, moved to another namespace, or given another MTU. Raises E_PORT_GONE."""
        self._look(anew=False)

    def _look(self, anew: bool) -> None:
        found = _getiff(self.queues[0].tx_fd)
        if found is None:
            raise Error("E_PORT_GONE", f"{self.interface} is deleted: `rebind` makes or finds another")
        self.interface, self._flags = found
        self.netns = _where(self.queues[0].tx_fd, self.home)
        self.link = facts(self.interface, self.netns)
        where, inode = "", 0
        if self.netns != self.home:
            where, inode = netns.path(self.netns) if self.netns else netns.OWN, netns.identity(self.netns)
        self.queues[0].core.follow(self.link.mtu, self.interface, where, inode, anew)

    def carrier(self, on: bool) -> None:
        """Plug the cable in or out, as the host sees it. Frames are taken either way: only a down interface refuses them."""
        fcntl.ioctl(self.queues[0].tx_fd, TUNSETCARRIER, struct.pack("i", on))

    @property
    def persistent(self) -> bool:
        """Whether the interface outlives us."""
        return bool(self._flags & IFF_PERSIST)

    def close(self) -> None:
        """Give it back: it vanishes, unless it persists, with its offloads off: whoever comes next may not know of them."""
        if self.queues and self.persistent and not self._flags & IFF_MULTI_QUEUE:  # of many queues others may be at work
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.queues[0].tx_fd, TUNSETOFFLOAD, 0)
        self.let_go()

    def let_go(self) -> None:
        """Drop our descriptors; the TAP stays as it is for the processes that hold copies, and goes with the last."""
        for queue in self.queues:
            queue.core.gone = 1
            queue.core.net_dev = -1
            os.close(queue.tx_fd)
        self.queues = []
        for fd in (self._net_dev, self._quiet):
            if fd >= 0:
                os.close(fd)
        self._net_dev = self._quiet = -1
        self._live.close()
        if self.home != self._given_home:
            netns.let_go(self.home)
            self.home = self._given_home

    # ---- from process to process ----

    def watch(self) -> LinkWatch:
        """Watch the link where it was made, from what we know of it on: what we have not been told yet is told first."""
        there = not self._gone and self.netns == self.home
        return LinkWatch.resumed(self.interface, self.link.seen if there else None, self.home)

    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to be this device too: facts for JSON, and a descriptor a queue. Both stay ours."""
        state = {
            "driver": self.kind,
            "interface": self.interface,
            "how": {
                "queues": self.n_queues,
                "tx_queues": self.n_tx_queues,
                "netns_name": self.home,
                "port": self.port,
                "options": self.options,
            },
            "home_inode": self._home_inode,
            "moved_to": self.netns if self.netns != self.home else None,
            "flags": self._flags,
            "offloads": self.offloads,
            "link": self.link.told(),
            "gone": self._gone,
            "drops": self.queues[0].core.queue_drops,
            "serials": [queue.core.serial for queue in self.queues],
        }
        return state, [*(queue.tx_fd for queue in self.queues), self._live.fd]

    @classmethod
    def adopt(cls, state: dict, fds: list[int]) -> Tap:
        """Be a device that another process handed on. The descriptors are ours from now on, also when this fails."""
        return cls(state["interface"], **state["how"], handed=(state, fds))

    def _adopt(self, state: dict, fds: list[int]) -> None:
        self.home = netns.of_socket(fds[0], self.home, self._home_inode)
        self.netns = state["moved_to"] or self.home
        self._flags, self.offloads, self._gone = state["flags"], state["offloads"], state["gone"]
        self.link = recalled(state["link"])
        self._add(fds)
        for queue, serial in zip(self.queues, state["serials"], strict=True):
            queue.core.gone, queue.core.serial = _getiff(queue.tx_fd) is None, serial
        self.queues[0].core.queue_drops = state["drops"]
        with contextlib.suppress(Error):  # gone: our watch will tell
            self._look(anew=False)
            self.link = self.link.as_told(recalled(state["link"]))

    # ---- opening ----

    def _attached(self) -> int:
        """Open one queue. Whether the device has many is a thing only the attempt tells: the wrong kind is EINVAL."""
        multi = self.n_queues > 1
        fd = _open_device()
        try:
            for more in (IFF_MULTI_QUEUE,) if multi else (0, IFF_MULTI_QUEUE):
                request = struct.pack("16sH22x", self.interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more)
                try:
                    self.interface = _text(fcntl.ioctl(fd, TUNSETIFF, request))
                    return fd
                except OSError as why:
                    refusal = why
                if refusal.errno != errno.EINVAL:
                    break
            raise self._explained(refusal)
        except BaseException:
            os.close(fd)
            raise

    def _explained(self, why: OSError) -> Error:
        name = self.interface
        if why.errno == errno.EBUSY:
            pids = ", ".join(str(pid) for pid in holders(name)) or "another process"
            return Error("E_TAP_BUSY", f"if={name} held by pid {pids}: end it, or make the TAP with more queues")
        if why.errno == errno.EPERM:
            return Error("E_PERM", f"need CAP_NET_ADMIN to open tap {name}: run as root, or `ip tuntap add {name} mode tap user NAME` once")
        if why.errno == errno.E2BIG:
            return Error("E_OPTION", f"{name}: all {QUEUES_MAX} queues of it are in use: ask for fewer")
        if why.errno == errno.EINVAL:
            return self._mismatch()
        return Error("E_TAP", f"attach to {name}: {why.strerror}: see `ip -d link show {name}`")

    def _mismatch(self) -> Error:
        name = self.interface
        if name not in (there for _, there in socket.if_nameindex()):
            return Error("E_NAME", f"{name!r}: the kernel takes no such name: use letters and digits")
        link = facts(name)  # we are in its namespace
        if link.kind != "tun" or link.arp_type != ARPHRD_ETHER:
            kind = "a tun" if link.kind == "tun" else link.kind or "hardware"
            return Error("E_NOT_TAP", f"{name} exists and is {kind}, not a tap: choose another name, or open it without `tap:`")
        if self.n_queues > 1:
            return Error("E_OPTION", f"{name} was made with one queue: ask for one, or `ip tuntap add {name} mode tap multi_queue`")
        return Error("E_TAP", f"attach to {name}: the kernel refuses: see `ip -d link show {name}`")

    def _dress(self, fd: int) -> None:
        """Set what is wanted, in the namespace of the device. The address and the MTU before it is up, so that none sees another."""
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_SIZE))  # a persistent one keeps what it was told last
        self.offloads = _offloaded(fd, self.wanted.offload)
        if self.wanted.persist is not None:
            fcntl.ioctl(fd, TUNSETPERSIST, int(self.wanted.persist))
        name = self.interface.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if self.wanted.mac is not None:
                address = struct.pack("16sH6s", name, ARPHRD_ETHER, self.wanted.mac)
                self._set(sock, SIOCSIFHWADDR, address, f"mac={self.wanted.mac.hex(':')}")
            if self.wanted.mtu is not None:
                self._set(sock, SIOCSIFMTU, struct.pack("16si", name, self.wanted.mtu), f"mtu={self.wanted.mtu}")
            (now,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, name.ljust(IFREQ, b"\0")), 16)
            if self.wanted.up and not now & IFF_UP:
                self._set(sock, SIOCSIFFLAGS, struct.pack("16sH", name, now | IFF_UP), "up=1")

    def _set(self, sock: socket.socket, request: int, value: bytes, what: str) -> None:
        try:
            fcntl.ioctl(sock, request, value.ljust(IFREQ, b"\0"))
        except OSError as why:
            code = "E_PERM" if why.errno == errno.EPERM else "E_OPTION"
            raise Error(code, f"{self.interface} {what}: {why.strerror}: leave it out, or set it with `ip link`") from None


def holders(name: str) -> list[int]:
    """List the processes that have a TUN or TAP of this name open (in whatever namespace), by /proc/PID/fdinfo."""
    return sorted({pid for pid, file in _open_tuns() if f"iff:\t{name}\n" in _read(file)})


def _open_tuns() -> Iterator[tuple[int, str]]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == DEVICE:
                    yield int(pid), f"/proc/{pid}/fdinfo/{fd}"


def _read(file: str) -> str:
    try:
        with open(file) as f:
            return f.read()
    except OSError:
        return ""


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as why:
        fix = {
            errno.ENOENT: f"`modprobe tun`; in a container pass it in (--device {DEVICE})",
            errno.ENODEV: "this kernel has no tun driver: `modprobe tun`",
            errno.ENXIO: "this kernel has no tun driver: `modprobe tun`",
        }.get(why.errno or 0, f"run as root, or `chmod 666 {DEVICE}` (udev's default: the rights are checked later)")
        raise Error("E_PERM", f"open {DEVICE}: {why.strerror}: {fix}") from None


def _offloaded(fd: int, wanted: bool) -> list[str]:
    for bits, names in OFFLOADS.items():
        if bits and not wanted:
            continue
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, TUNSETOFFLOAD, bits)
            return names
    return []


def _getiff(fd: int) -> tuple[str, int] | None:
    """The name and flags of the device behind a descriptor, None when there is none (any more)."""
    try:
        answer = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ))
    except OSError:  # EBADFD: deleted; ENOTTY: `quiet` took its place
        return None
    return _text(answer), struct.unpack_from("H", answer, 16)[0]


def _where(fd: int, home: str | None) -> str | None:
    """The name of the namespace that the device is in now; for one without a name, a process in it."""
    try:
        here = fcntl.ioctl(fd, TUNGETDEVNETNS)
    except OSError:  # before Linux 5.8, or not ours to know
        return home
    try:
        inode = os.fstat(here).st_ino
    finally:
        os.close(here)
    for name in (home, None, *netns.named(), *(f"pid:{pid}" for pid in filter(str.isdigit, os.listdir("/proc")))):
        with contextlib.suppress(Error):
            if netns.identity(name) == inode:
                return name
    return home


def _text(ifreq: bytes) -> str:
    return ifreq[:16].split(b"\0", 1)[0].decode()


# ---- options ----


def _checked_name(name: str) -> str:
    if len(name.encode()) > NAME_MAX:
        raise Error("E_NAME", f"{name!r}: an interface's name has at most {NAME_MAX} bytes: shorten it (the kernel would, silently)")
    if not name or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise Error("E_NAME", f"{name!r} is no interface's name: use letters and digits")
    return name


def _wanted(options: dict[str, str]) -> Wanted:
    mtu = options.get("mtu")
    if mtu is not None and not (mtu.isdecimal() and MTU_MIN <= int(mtu) <= MTU_MAX):
        raise Error("E_OPTION", f"mtu={mtu}: a TAP allows {MTU_MIN} to {MTU_MAX}")
    return Wanted(
        mac=_mac(options["mac"]) if "mac" in options else None,
        mtu=int(mtu) if mtu is not None else None,
        persist=_flag(options, "persist"),
        up=_flag(options, "up") is not False,
        offload=_flag(options, "offload") is not False,
    )


def _flag(options: dict[str, str], key: str) -> bool | None:
    if options.get(key, "0") not in ("0", "1"):
        raise Error("E_OPTION", f"{key}={options[key]}: 0 or 1")
    return options[key] == "1" if key in options else None


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", "")) if len(text) == 17 else b""
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise Error("E_OPTION", f"mac={text}: six bytes as 02:00:00:00:00:01, not a multicast address")
    return mac
