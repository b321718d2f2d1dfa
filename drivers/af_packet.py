"""AF_PACKET: any interface of this host, by packet(7).

Watching (the default of an opened port) leaves the host its traffic and sees both directions; taking receives in place
of the host's stack (`taking.py` drops behind us). The sockets are set up here, once; frames flow in af_packet_*.c.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from dataclasses import dataclass

from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import _drivers, netns
from .link import LinkEvent, LinkFacts, facts, find
from .taking import HostDrop

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_RX_RING, PACKET_COPY_THRESH, PACKET_VERSION = 1, 5, 7, 10
PACKET_VNET_HDR, PACKET_FANOUT, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 15, 18, 20, 23
PACKET_MR_PROMISC, TPACKET_V2, TPACKET_V3 = 1, 1, 2
PACKET_FANOUT_HASH, PACKET_FANOUT_FLAG_DEFRAG = 0, 0x8000
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
    """One queue: its sockets, the C device over them, and the descriptors to wait on."""

    device: object
    rx_fd: int
    tx_fd: int
    core: _drivers.AfPacketQueue
    sockets: list[socket.socket]
    piece: int  # bytes of a block or frame of the receive ring


class AfPacket(Device):
    """An interface served by AF_PACKET sockets."""

    kind = "af_packet"

    def __init__(
        self,
        interface: str,
        *,
        take: bool = False,
        promisc: bool = True,
        queues: int = 1,
        netns_name: str | None = None,
        port: int = 0,
        options: dict[str, str] | None = None,
    ):
        options = options or {}
        self.interface = interface
        self.netns = netns_name
        self.take = take
        self.promisc = promisc
        self.n_queues = queues
        self.port = port
        self.mode = options.get("rx", "frames" if take else "blocks")
        if self.mode not in ("blocks", "frames"):
            raise Error("E_OPTION", f"rx={self.mode}: blocks or frames")
        self.buffer = _mib(options.get("buffer", "32"))
        self.bypass = options.get("bypass", "0") == "1"
        self.queues: list[Queue] = []
        self._drop: HostDrop | None = None
        self.link: LinkFacts = facts(interface, netns_name)
        self._open()

    def _open(self) -> None:
        self.link = facts(self.interface, self.netns)
        try:
            with netns.entered(self.netns):
                for _ in range(self.n_queues):
                    self.queues.append(self._queue())
            if self.n_queues > 1:
                self._fan_out()
            if self.take:
                self._drop = HostDrop(self.interface, self.netns)
        except BaseException:
            self.close()
            raise

    def _queue(self) -> Queue:
        rx, piece, map_ = self._receiver()
        try:
            tx = self._socket()
        except BaseException:
            rx.close()
            raise
        try:
            self._set(tx, SO_SNDBUFFORCE, SNDBUF, fallback=socket.SO_SNDBUF)
            vnet = self._try(tx, PACKET_VNET_HDR, 1)
            if self.bypass:
                self._try(tx, PACKET_QDISC_BYPASS, 1)
            self._bind(tx, 0)
        except BaseException:
            rx.close()
            tx.close()
            raise
        core = _drivers.AfPacketQueue(rx.fileno(), tx.fileno(), self.port, vnet, map_, piece, self.mode == "blocks")
        return Queue(core.device, rx.fileno(), tx.fileno(), core, [rx, tx], piece)

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
            return piece, mmap.mmap(rx.fileno(), self.buffer, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as why:
            raise Error("E_RING", f"{self.interface}: a ring of {self.buffer} bytes: {why.strerror}: ask for less, ?buffer=8") from None

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
        group = (os.getpid() ^ self.link.ifindex << 8 ^ self.port << 4) & 0xFFFF
        for _ in range(64):
            word = group | (PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_DEFRAG) << 16
            try:
                for queue in self.queues:
                    queue.sockets[0].setsockopt(SOL_PACKET, PACKET_FANOUT, struct.pack("I", word))
                break
            except OSError as why:
                if why.errno != errno.EINVAL or queue is not self.queues[0]:
                    raise Error("E_FANOUT", f"{self.interface}: {why.strerror}: ask for one queue") from None
                group = (group + 1) & 0xFFFF  # somebody else's group, of another kind
        else:
            raise Error("E_FANOUT", f"{self.interface}: no fanout group is free: ask for one queue")
        for queue in self.queues:
            queue.sockets[0].setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

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
            "queues": len(self.queues),
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

    def follow(self, event: LinkEvent) -> None:
        """Keep up with what became of the interface."""
        if event.kind in CARRIER:
            for queue in self.queues:
                queue.core.carrier = CARRIER[event.kind]
        try:
            if event.kind == "renamed":
                self.interface = event.name
                if self._drop:
                    self._drop.follow(event.name)
            elif event.kind == "back":
                self._rebind()
        except (Error, OSError):
            if self._is(event):
                raise

    def _is(self, event: LinkEvent) -> bool:
        """Whether the interface is still what the event says; else it is gone again already, and the next event says so."""
        try:
            return find(event.name, self.netns).ifindex == event.ifindex
        except Error:
            return False

    def _rebind(self) -> None:
        """Bind again after the interface came back under its name: the old sockets, with all they hold, can be.

        But not to receive once they were in a fanout group, which only their end would take them out of.
        """
        self.link = facts(self.interface, self.netns)
        with netns.entered(self.netns):
            for queue in self.queues:
                rx, tx = queue.sockets
                self._bind(tx, 0)
                if self.n_queues > 1:
                    self._replace(queue)
                else:
                    self._bind(rx, ETH_P_ALL)
                    self._listen_to_all(rx)
        if self.n_queues > 1:
            self._fan_out()
        if self._drop:
            self._drop.follow(self.interface)

    def _replace(self, queue: Queue) -> None:
        new, _, map_ = self._receiver(queue.piece)
        with new:
            os.dup2(new.fileno(), queue.rx_fd, inheritable=False)
        queue.core.renew(map_)

    def close(self) -> None:
        """Give everything back, and the host its traffic."""
        if self._drop:
            self._drop.close()
            self._drop = None
        for queue in self.queues:
            for sock in queue.sockets:
                sock.close()
        self.queues = []


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
