"""AF_PACKET: any interface of this host, by packet(7).

Watching (the default of an opened port) leaves the host its traffic and sees both directions; taking receives in place
of the host's stack (`taking.py` drops behind us). The sockets are set up here, once; frames flow in af_packet_*.c.

Everything that serves the interface hangs on descriptors: rings, fanout group and promiscuity on the sockets, the taking on
its own. So whoever holds copies of them is this device too (`hand_on`, `adopt`), and closing one's copies takes nothing
from the others. Only what `follow` puts behind the same numbers, when several queues are bound again, is not in the copies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
from dataclasses import dataclass, replace

from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import _drivers, netns
from .link import LinkEvent, LinkFacts, LinkWatch, facts, find, recalled
from .live import Live
from .taking import HostDrop

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_RX_RING, PACKET_COPY_THRESH, PACKET_VERSION = 1, 5, 7, 10
PACKET_VNET_HDR, PACKET_FANOUT, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 15, 18, 20, 23
PACKET_MR_PROMISC, TPACKET_V2, TPACKET_V3 = 1, 1, 2
PACKET_FANOUT_HASH, PACKET_FANOUT_FLAG_IGNORE_OUTGOING, PACKET_FANOUT_FLAG_DEFRAG = 0, 0x4000, 0x8000
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 26, 27, 32, 33

BLOCK_SIZE = 1 << 18  # holds the longest super-frame several times over
RETIRE_MS = 2  # a block that is not full is handed over after this long: the latency of a quiet watching port
CARRIER = {"up": True, "down": False, "no_carrier": False, "gone": False, "moved": False}  # by event, whether frames can leave
FRAME_ROOM = 128  # what the kernel puts in front of a frame in a TPACKET_V2 ring, and a little
COPIES = 32 << 20  # bytes of super-frames that may wait in the socket
SNDBUF = 8 << 20

OPTIONS = {
    "rx": "blocks or frames: how frames are received (watching: blocks, taking: frames, as each measures better)",
    "buffer": "MiB of kernel receive ring a queue (32)",
    "bypass": "1 = send past the queueing discipline (0); nothing is gained on veth, and shaping by tc is passed over",
}


@dataclass
class Queue:
    """One queue: its sockets, the C device over them, and the descriptors to wait on. One that only sends has no `rx`."""

    device: object
    rx_fd: int
    tx_fd: int
    core: _drivers.AfPacketQueue
    rx: socket.socket | None
    tx: socket.socket
    vnet: bool  # what is sent has a virtio-net header in front
    piece: int  # bytes of a block or frame of the receive ring
    sends = True

    @property
    def receives(self) -> bool:
        """Whether a receive ring is to be bound to it."""
        return self.rx is not None


class AfPacket(Device):
    """An interface served by AF_PACKET sockets.

    `queues` receive and send; with a larger `tx_queues` those beyond only send. `handed`: what `hand_on` returned in another process.
    """

    kind = "af_packet"

    def __init__(
        self,
        interface: str,
        *,
        take: bool = False,
        promisc: bool = True,
        queues: int = 1,
        tx_queues: int = 0,
        netns_name: str | None = None,
        port: int = 0,
        options: dict[str, str] | None = None,
        handed: tuple[dict, list[int]] | None = None,
    ):
        options = options or {}
        self.interface = interface
        self.netns = self._given_netns = netns_name
        self.take = take
        self.promisc = promisc
        self.n_queues = queues
        self.n_tx_queues = max(queues, tx_queues)
        self.port = port
        self.options = options
        self.mode = options.get("rx", "frames" if take else "blocks")
        if self.mode not in ("blocks", "frames"):
            raise Error("E_OPTION", f"rx={self.mode}: blocks or frames")
        self.buffer = _mib(options.get("buffer", "32"))
        self.bypass = options.get("bypass", "0") == "1"
        self.queues: list[Queue] = []
        self._sockets: list[socket.socket] = []
        self._drop: HostDrop | None = None
        self._live = Live(handed[1].pop() if handed else -1)
        self._gone = False  # the interface, as of the last event
        self._netns_inode = handed[0]["netns_inode"] if handed else netns.identity(netns_name)
        self.link: LinkFacts
        try:
            self._adopt(*handed) if handed else self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.link = facts(self.interface, self.netns)
        with netns.entered(self.netns):
            for i in range(self.n_tx_queues):
                rx, piece, map_ = self._receiver() if i < self.n_queues else (None, 0, None)
                self._sockets += [rx] if rx else []
                tx, vnet = self._sender()
                self._sockets.append(tx)
                self._add(rx, tx, vnet, piece, map_)
        if self.n_queues > 1:
            self._fan_out()
        if self.take:
            self._drop = HostDrop(self.interface, self.netns)

    def _add(self, rx: socket.socket | None, tx: socket.socket, vnet: bool, piece: int, map_: mmap.mmap | None) -> None:
        rx_fd = rx.fileno() if rx else -1
        core = _drivers.AfPacketQueue(self._live.map, rx_fd, tx.fileno(), self.port, vnet, map_, piece, self.mode == "blocks")
        self.queues.append(Queue(core.device, rx_fd, tx.fileno(), core, rx, tx, vnet, piece))

    def _sender(self) -> tuple[socket.socket, bool]:
        tx = self._socket()
        try:
            self._set(tx, SO_SNDBUFFORCE, SNDBUF, fallback=socket.SO_SNDBUF)
            vnet = self._try(tx, PACKET_VNET_HDR, 1)
            if self.bypass:
                self._try(tx, PACKET_QDISC_BYPASS, 1)
            self._bind(tx, 0)
        except BaseException:
            tx.close()
            raise
        return tx, vnet

    def _receiver(self, piece: int = 0) -> tuple[socket.socket, int, mmap.mmap]:
        rx = self._socket()
        try:
            piece, map_ = self._ring(rx, piece)
            if self.take:
                self._try(rx, PACKET_IGNORE_OUTGOING, 1)
            self._listen_to_all(rx)
            if self.n_queues > 1:
                _deafen(rx)
            self._bind(rx, ETH_P_ALL)
        except BaseException:
            rx.close()
            raise
        return rx, piece, map_

    def _socket(self) -> socket.socket:
        try:
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)  # protocol 0: nothing arrives before bind
        except PermissionError:
            raise Error("E_PERM", f"need CAP_NET_RAW to open {self.interface}: run as root, or in `unshare -Urn`") from None

    def _listen_to_all(self, rx: socket.socket) -> None:
        """Frames for other addresses too; ends with the socket."""
        if self.promisc:
            rx.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8s", self.link.ifindex, PACKET_MR_PROMISC, 0, b""))

    def _ring(self, rx: socket.socket, piece: int) -> tuple[int, mmap.mmap]:
        """The receive ring, with a virtio-net header in front of each frame (to be asked for before the ring exists)."""
        blocks = self.mode == "blocks"
        rx.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3 if blocks else TPACKET_V2)
        rx.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        if blocks:
            piece, n = BLOCK_SIZE, max(self.buffer // BLOCK_SIZE, 2)
            request = struct.pack("7I", piece, n, 2048, n * (piece // 2048), RETIRE_MS, 0, 0)
        else:
            rx.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, 1)
            self._set(rx, SO_RCVBUFFORCE, COPIES, fallback=socket.SO_RCVBUF)
            piece = piece or max(2048, 1 << min(self.link.mtu + FRAME_ROOM, 1 << 14).bit_length())
            block = max(piece, mmap.PAGESIZE)
            request = struct.pack("4I", block, self.buffer // block, piece, self.buffer // piece)
        try:
            rx.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            return piece, self._mapped(rx)
        except OSError as why:
            raise Error("E_RING", f"{self.interface}: a ring of {self.buffer} bytes: {why.strerror}: ask for less, ?buffer=8") from None

    def _mapped(self, rx: socket.socket) -> mmap.mmap:
        return mmap.mmap(rx.fileno(), self.buffer, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def _bind(self, sock: socket.socket, protocol: int) -> None:
        try:
            sock.bind((self.interface, protocol))
        except OSError as why:
            if why.errno in (errno.ENODEV, errno.ENXIO):
                raise Error("E_NO_INTERFACE", f"{self.interface} vanished while it was opened") from None
            if why.errno != errno.ENETDOWN:
                raise Error("E_BIND", f"bind {self.interface}: {why.strerror}") from None

    def _fan_out(self) -> None:
        """Spread flows over the queues; fragments are put together first, or their pieces would part company."""
        receivers = [queue.rx for queue in self.queues if queue.rx]
        group = (os.getpid() ^ self.link.ifindex << 8 ^ self.port << 4) & 0xFFFF
        flags = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_DEFRAG
        deaf = PACKET_FANOUT_FLAG_IGNORE_OUTGOING if self.take else 0  # the group hears by itself, whatever its sockets were told
        for attempt in range(64):
            word = group | (flags | (deaf if attempt < 60 else 0)) << 16  # a kernel without it sees through the direction in the frames
            try:
                for rx in receivers:
                    rx.setsockopt(SOL_PACKET, PACKET_FANOUT, struct.pack("I", word))
                break
            except OSError as why:
                if why.errno != errno.EINVAL or rx is not receivers[0]:
                    raise Error("E_FANOUT", f"{self.interface}: {why.strerror}: ask for one queue") from None
                group = (group + 1) & 0xFFFF  # somebody else's group, of another kind
        else:
            raise Error("E_FANOUT", f"{self.interface}: no fanout group is free: ask for one queue")
        for rx in receivers:
            rx.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    @staticmethod
    def _try(sock: socket.socket, option: int, value: int) -> bool:
        """Set what some kernels lack. False = this one does."""
        try:
            sock.setsockopt(SOL_PACKET, option, value)
        except OSError as why:
            if why.errno not in (errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return False
        return True

    @staticmethod
    def _set(sock: socket.socket, option: int, value: int, fallback: int) -> None:
        """Set a buffer beyond the limit where we may, up to the limit where not."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, fallback, value)

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
            "mode": "taking" if self.take else "watching",
            "rx": self.mode,
            "queues": self.n_queues,
            "tx_queues": self.n_tx_queues,
            "carries_gso": True,
        }

    def warnings(self) -> list[str]:
        """What the user should know at start-up."""
        on = [name for name in ("tso", "gso", "gro", "lro") if self.link.offloads.get(name)]
        if not on:
            return []
        off = " ".join(f"{name} off" for name in on)
        return [
            f"W_OFFLOADS if={self.interface} {' '.join(on)} on: super-frames are cut into wire frames or carried whole; what cannot be "
            f"(tunnels) is dropped as drop_gso: if that grows, `ethtool -K {self.interface} {off}`"
        ]

    def follow(self, event: LinkEvent) -> bool:
        """Keep up with what became of the interface. True = there are other sockets behind our descriptors now."""
        if event.kind in CARRIER:
            self._gone = event.kind in ("gone", "moved")
            self.queues[0].core.carrier = CARRIER[event.kind]
        self.link = self.link.heard(event)
        try:
            if event.kind == "renamed":
                self.interface = event.name
                if self._drop:
                    self._drop.follow(event.name)
            elif event.kind == "back":
                return self._rebind()
        except (Error, OSError):
            if self._is(event):
                raise
        return False

    def _is(self, event: LinkEvent) -> bool:
        """Whether the interface is still what the event says; else it is gone again already, and the next event says so."""
        try:
            return find(event.name, self.netns).ifindex == event.ifindex
        except Error:
            return False

    def _rebind(self) -> bool:
        """Bind again after the interface came back under its name: the old sockets, with all they hold, can be.

        But not to receive once they were in a fanout group, which only their end would take them out of.
        """
        self.link = facts(self.interface, self.netns)
        self._gone = False
        renewed = self.n_queues > 1
        with netns.entered(self.netns):
            for queue in self.queues:
                self._bind(queue.tx, 0)
                if queue.rx and renewed:
                    self._replace(queue)
                elif queue.rx:
                    self._bind(queue.rx, ETH_P_ALL)
                    self._listen_to_all(queue.rx)
        if renewed:
            self._fan_out()
        if self._drop:
            self._drop.follow(self.interface)
        return renewed

    def _replace(self, queue: Queue) -> None:
        new, _, map_ = self._receiver(queue.piece)
        with new:
            os.dup2(new.fileno(), queue.rx_fd, inheritable=False)
        queue.core.renew(map_)

    # ---- from process to process ----

    def watch(self) -> LinkWatch:
        """Watch the link, from what we know of it on: what we have not been told yet is told first."""
        return LinkWatch.resumed(self.interface, None if self._gone else self.link.seen, self.netns)

    @property
    def carrier(self) -> bool:
        """Whether what is sent can leave, as of the last event."""
        return bool(self.queues[0].core.carrier)

    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to be this device too: facts for JSON, and descriptors, in order, for SCM_RIGHTS.

        Both stay ours. What the copies do not show (a rename, a carrier lost) the adopter learns from its own watch.
        """
        drop, drop_fd = self._drop.hand_on() if self._drop else (None, -1)
        state = {
            "driver": self.kind,
            "interface": self.interface,
            "how": {
                "take": self.take,
                "promisc": self.promisc,
                "queues": self.n_queues,
                "tx_queues": self.n_tx_queues,
                "netns_name": self.netns,
                "port": self.port,
                "options": self.options,
            },
            "netns_inode": self._netns_inode,
            "link": self.link.told(),
            "gone": self._gone,
            "pieces": [queue.piece for queue in self.queues],
            "vnet": [queue.vnet for queue in self.queues],
            "drop": drop,
        }
        fds = [fd for queue in self.queues for fd in (queue.rx_fd, queue.tx_fd)]
        return state, [fd for fd in (*fds, drop_fd, self._live.fd) if fd >= 0]

    @classmethod
    def adopt(cls, state: dict, fds: list[int]) -> AfPacket:
        """Be a device that another process handed on. The descriptors are ours from now on, also when this fails."""
        return cls(state["interface"], **state["how"], handed=(state, list(fds)))

    def _adopt(self, state: dict, left: list[int]) -> None:
        try:
            while len(left) > self.take:
                self._sockets.append(socket.socket(fileno=left[0]))
                left.pop(0)
            if self.take:
                self._drop = HostDrop.adopt(state["drop"], left.pop())
        finally:
            for fd in left:
                os.close(fd)
        self.netns = netns.of_socket(self._sockets[0].fileno(), self.netns, self._netns_inode)
        sockets = iter(self._sockets)
        for i, (piece, vnet) in enumerate(zip(state["pieces"], state["vnet"], strict=True)):
            rx = next(sockets) if i < self.n_queues else None
            self._add(rx, next(sockets), vnet, piece, self._mapped(rx) if rx else None)
        self.link, self._gone = recalled(state["link"]), state["gone"]
        with contextlib.suppress(Error):  # gone, or renamed: our watch will tell
            self.link = facts(self.interface, self.netns).as_told(self.link)
        self.link = replace(self.link, up=self.carrier or self.link.up, carrier=self.carrier)  # what is written is of the last event

    def close(self) -> None:
        """Give everything back, and the host its traffic; not before the last process that holds copies does."""
        if self._drop:
            self._drop.close()
            self._drop = None
        for sock in self._sockets:
            sock.close()
        self._live.close()
        self._sockets, self.queues = [], []
        if self.netns != self._given_netns:
            netns.let_go(self.netns)
            self.netns = self._given_netns


def _deafen(rx: socket.socket) -> None:
    """Let nothing through for now: before they are a fanout group, each of several sockets would receive every frame."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET 0
    rx.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))


def _mib(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 1024:
        raise Error("E_OPTION", f"buffer={text}: MiB, 1 to 1024")
    return value << 20
