"""What an interface is, and what becomes of it: facts asked once, and a watch. rtnetlink(7), netdevice(7).

The watch is needed because a packet socket keeps silent. When its interface is deleted or moved an AF_PACKET socket reports ENETDOWN once
and then nothing, an AF_XDP socket not even that, and neither follows a new interface of the same name. The kernel tells it all on one
multicast group, within a millisecond:

    what the kernel says of our ifindex            the event    its line
    NEWLINK, another IFLA_IFNAME                   renamed      I_PORT_RENAMED va→vz ifindex=7
    NEWLINK, another IFLA_MTU                      mtu          W_PORT_MTU 1500→600 if=va ifindex=7
    NEWLINK, flags without IFF_UP                  down         W_PORT_DOWN if=va ifindex=7
    NEWLINK, IFF_UP without IFF_LOWER_UP           no_carrier   W_PORT_NO_CARRIER if=va ifindex=7 ...
    NEWLINK, both                                  up           I_PORT_UP if=va ifindex=7
    DELLINK                                        gone         E_PORT_GONE if=va ifindex=7 deleted; waiting for it
    DELLINK with IFLA_NEW_NETNSID                  moved        E_PORT_GONE if=va ifindex=7 moved to another network namespace; ...
    (of any ifindex) NEWLINK with the name we miss back         I_PORT_BACK if=va ifindex=9

The label follows the ifindex: after `renamed` the new name is the one waited for, should that interface go. The kernel takes an interface
down before it deletes or moves it, so `down` comes before `gone`; a new one comes `back` down, and `up` follows. A message of family
AF_BRIDGE tells of membership in a bridge, and leaving one is a DELLINK too: not ours. When messages were lost (ENOBUFS) we ask for the
present and report how it differs from what we knew. A carrier that comes may be told up to a second late (linkwatch): until `up`, frames
may arrive already, while the kernel drops what is sent and send(2) does not say so.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from pktring.drivers import ethtool
from pktring.shm.errors import Error

if TYPE_CHECKING:  # pyroute2 takes 0.15 s to import: below, only when something is asked
    from pktring.drivers.netlink import Message

NETLINK_ROUTE, RTMGRP_LINK = 0, 1
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
HEADERS = struct.Struct("=4xH10xBxxxi")  # nlmsghdr's type, ifinfomsg's family and index
NLMSG_ERROR = 2
IFF_UP, IFF_LOWER_UP = 1 << 0, 1 << 16
IFNAMSIZ = 16
RTEXT_FILTER_SKIP_STATS = 1 << 3  # a third of the message, and nobody reads it here
MOST_READS = 256  # datagrams taken in one call: a storm costs a bounded step, and the descriptor stays readable for the rest

LINES = {
    "renamed": "I_PORT_RENAMED {was.name}→{now.name} ifindex={now.ifindex}",
    "mtu": "W_PORT_MTU {was.mtu}→{now.mtu} if={now.name} ifindex={now.ifindex}",
    "down": "W_PORT_DOWN if={now.name} ifindex={now.ifindex}",
    "no_carrier": "W_PORT_NO_CARRIER if={now.name} ifindex={now.ifindex} it is up, its cable or other end is not",
    "up": "I_PORT_UP if={now.name} ifindex={now.ifindex}",
    "gone": "E_PORT_GONE if={was.name} ifindex={was.ifindex} deleted; waiting for it",
    "moved": "E_PORT_GONE if={was.name} ifindex={was.ifindex} moved to another network namespace; waiting for it",
    "back": "I_PORT_BACK if={now.name} ifindex={now.ifindex}",
}


@dataclass(frozen=True)
class LinkFacts:
    """What a driver needs to know of an interface before it opens it."""

    ifindex: int
    name: str
    kind: str  # veth, tun, bridge, vlan ...; "" where no rtnl kind made it (hardware, lo)
    driver: str  # virtio_net, ixgbe, veth ...; "" where there is none
    mtu: int
    mac: bytes
    up: bool  # IFF_UP: an administrator wants it
    carrier: bool  # IFF_LOWER_UP: up, and so is its cable, the peer, the process behind the TAP
    arp_type: int  # ARPHRD_*: 1 Ethernet, 772 loopback, 65534 none (a TUN)
    n_rx_queues: int  # in use, where the driver says; else allocated
    n_tx_queues: int
    peer: int | None  # veth: ifindex of the other end, in the namespace that peer_netnsid means here, or in this one if that is None
    peer_netnsid: int | None
    gso_max_size: int  # bytes a frame may have where gso or gro is on, before the kernel cuts it up
    offloads: dict[str, bool]  # by the names of ethtool.OFFLOADS
    default_route: bool  # packets to the world leave here

    @property
    def seen(self) -> Link:
        """What a watch compares."""
        return Link(self.ifindex, self.name, self.mtu, "down" if not self.up else "up" if self.carrier else "no_carrier")

    def heard(self, event: LinkEvent) -> LinkFacts:
        """Return what they are after an event."""
        up, carrier = STATES.get(event.kind, (self.up, self.carrier))
        return replace(self, name=event.name, mtu=event.mtu, up=up, carrier=carrier)

    def as_told(self, was: LinkFacts) -> LinkFacts:
        """Return them with what events tell as it was told last; all as it was, where it is another interface by now."""
        if self.ifindex != was.ifindex:
            return was
        return replace(self, name=was.name, mtu=was.mtu, up=was.up, carrier=was.carrier)

    def told(self) -> dict:
        """Return them for JSON, and for `recalled` in another process."""
        return asdict(self) | {"mac": self.mac.hex()}


class Link(NamedTuple):
    """The part of an interface that the watch compares."""

    ifindex: int
    name: str
    mtu: int
    state: str  # down, no_carrier, up


@dataclass(frozen=True)
class LinkEvent:
    """One thing that happened to the watched interface; `line` is what a person is told."""

    kind: str  # a key of LINES
    ifindex: int
    name: str
    mtu: int
    line: str


# By event: is it up, has it a carrier.
STATES = {"up": (True, True), "no_carrier": (True, False), "down": (False, False), "gone": (False, False), "moved": (False, False)}


def recalled(told: dict) -> LinkFacts:
    """Return facts that another process told."""
    return LinkFacts(**told | {"mac": bytes.fromhex(told["mac"])})


def facts(ifname: str, netns: str | None = None) -> LinkFacts:
    """Return the facts about one interface of the namespace `netns`. Raises E_NO_INTERFACE with the nearest names there are."""
    with _socket(netns) as sock, _named(sock, ifname, netns):
        return _facts(sock, _asked(sock, ifname), _default_routes(sock))


def find(ifname: str, netns: str | None = None) -> Link:
    """Look up only the index, full name, MTU and state of an interface (0.3 ms). Raises E_NO_INTERFACE."""
    with _socket(netns) as sock, _named(sock, ifname, netns):
        return _link(_asked(sock, ifname))


def interfaces(netns: str | None = None) -> list[LinkFacts]:
    """Return the facts about every interface of the namespace, by ifindex."""
    found = []
    with _socket(netns) as sock:
        routes = _default_routes(sock)
        for message in messages(sock):
            with contextlib.suppress(OSError):  # one that is deleted while we list it is not listed
                found.append(_facts(sock, message, routes))
    return sorted(found, key=lambda link: link.ifindex)


def messages(sock: socket.socket) -> list[Message]:
    """Return the kernel's message about every interface, undigested."""
    return _ask(sock, [], dump=True)


class LinkWatch:
    """Watch one interface: poll `fileno()`, take `events()`. Raises E_NO_INTERFACE when there is none of that name to begin with."""

    def __init__(self, ifname: str, netns: str | None = None):
        with self._opened(netns), _named(self._asker, ifname, netns):
            self._link: Link | None = _link(_asked(self._asker, ifname))
            self.name = self._link.name

    @classmethod
    def resumed(cls, ifname: str, was: Link | None, netns: str | None = None) -> LinkWatch:
        """Go on where another watch ended, which saw `was` last (None: it was gone). What changed since is told first, as events."""
        watch = cls.__new__(cls)
        watch._link, watch.name = was, ifname
        with watch._opened(netns):
            watch._news.send(_question(was.ifindex if was else 0))  # the answer makes it readable, whatever it is
        return watch

    @contextlib.contextmanager
    def _opened(self, netns: str | None) -> Iterator[None]:
        with contextlib.ExitStack() as undo:
            self._news = undo.enter_context(_socket(netns, RTMGRP_LINK))  # before we ask: a change in between is told twice, not never
            self._news.setblocking(False)
            self._asker = undo.enter_context(_socket(netns))
            yield
            undo.pop_all()

    def fileno(self) -> int:
        """Return a descriptor for poll, select and epoll: readable when there may be events."""
        return self._news.fileno()

    @property
    def ifindex(self) -> int | None:
        """The interface as of the last event; None while it is gone."""
        return self._link.ifindex if self._link else None

    @property
    def state(self) -> str:
        """up, no_carrier, down or gone, as of the last event."""
        return self._link.state if self._link else "gone"

    def events(self) -> list[LinkEvent]:
        """Take what happened since the last call, in order; never blocks."""
        happened: list[LinkEvent] = []
        for _ in range(MOST_READS):
            try:
                happened += self._told(self._news.recv(1 << 16))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                happened += self._compared()
        return happened

    def close(self) -> None:
        """Stop watching."""
        self._news.close()
        self._asker.close()

    def __enter__(self) -> LinkWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told(self, datagram: bytes) -> list[LinkEvent]:
        # A notification is one message. Most are about other interfaces: the fixed headers say so, decoding the rest costs 0.2 ms.
        kind, family, ifindex = HEADERS.unpack_from(datagram)
        if kind == NLMSG_ERROR:  # what `resumed` asked for is not there any more
            return self._compared()
        if kind not in (RTM_NEWLINK, RTM_DELLINK) or family != socket.AF_UNSPEC or self.ifindex not in (None, ifindex):
            return []
        message = _decoded(datagram)
        if kind == RTM_DELLINK:
            return self._became(None, moved=message.get_attr("IFLA_NEW_NETNSID") is not None)
        link = _link(message)
        return self._became(link) if self._link or link.name == self.name else []

    def _compared(self) -> list[LinkEvent]:
        with contextlib.suppress(OSError):  # what was queued before the gap is older than the present
            for _ in range(MOST_READS):
                self._news.recv(1)
        links = [_link(message) for message in messages(self._asker)]
        happened = self._became(next((link for link in links if link.ifindex == self.ifindex), None))
        if self._link is None:
            happened += self._became(next((link for link in links if link.name == self.name), None))
        return happened

    def _became(self, now: Link | None, moved: bool = False) -> list[LinkEvent]:
        was, self._link = self._link, now
        self.name = now.name if now else self.name
        return changes(was, now, moved)


def changes(was: Link | None, now: Link | None, moved: bool = False) -> list[LinkEvent]:
    """Say what lies between two sights of an interface, in the order of LINES; None is its absence."""
    seen = now or was
    if seen is None:
        return []
    return [LinkEvent(kind, seen.ifindex, seen.name, seen.mtu, LINES[kind].format(was=was, now=now)) for kind in _kinds(was, now, moved)]


def _kinds(was: Link | None, now: Link | None, moved: bool) -> list[str]:
    if now is None:
        return ["moved" if moved else "gone"]
    if was is None:
        return ["back"] if now.state == "down" else ["back", now.state]
    differs = {"renamed": was.name != now.name, "mtu": was.mtu != now.mtu, now.state: was.state != now.state}
    return [kind for kind, is_so in differs.items() if is_so]


def _link(message: Message) -> Link:
    return Link(message["index"], message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU"), _state(message["flags"]))


def _state(flags: int) -> str:
    if not flags & IFF_UP:
        return "down"
    return "up" if flags & IFF_LOWER_UP else "no_carrier"


def _facts(sock: socket.socket, message: Message, routes: frozenset[int]) -> LinkFacts:
    name, fd = message.get_attr("IFLA_IFNAME"), sock.fileno()
    about = message.get_attr("IFLA_LINKINFO")
    kind = about.get_attr("IFLA_INFO_KIND") if about else ""
    n_rx_queues, n_tx_queues = ethtool.queues(fd, name) or (message.get_attr("IFLA_NUM_RX_QUEUES"), message.get_attr("IFLA_NUM_TX_QUEUES"))
    return LinkFacts(
        ifindex=message["index"],
        name=name,
        kind=kind,
        driver=ethtool.driver(fd, name),
        mtu=message.get_attr("IFLA_MTU"),
        mac=bytes.fromhex((message.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        arp_type=message["ifi_type"],
        n_rx_queues=n_rx_queues,
        n_tx_queues=n_tx_queues,
        peer=message.get_attr("IFLA_LINK") if kind == "veth" else None,
        peer_netnsid=message.get_attr("IFLA_LINK_NETNSID") if kind == "veth" else None,
        gso_max_size=message.get_attr("IFLA_GSO_MAX_SIZE"),
        offloads=ethtool.offloads(fd, name),
        default_route=message["index"] in routes,
    )


@contextlib.contextmanager
def _named(sock: socket.socket, ifname: str, netns: str | None) -> Iterator[None]:
    """Turn the kernel's "no such device" about `ifname` into advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ERANGE):
            raise
        names = [message.get_attr("IFLA_IFNAME") for message in messages(sock)]
        near = difflib.get_close_matches(ifname, names, 3)
        where = f" in network namespace {netns}" if netns else ""
        advice = f"did you mean {', '.join(near)}?" if near else "see `ip link`"
        raise Error("E_NO_INTERFACE", f"{ifname}: no such interface{where}: {advice}") from None


def _socket(netns: str | None, groups: int = 0) -> socket.socket:
    from pktring.drivers import netlink

    return netlink.opened(NETLINK_ROUTE, groups, netns)


def _default_routes(sock: socket.socket) -> frozenset[int]:
    from pktring.drivers import route

    return route.default_routes(sock)


def _asked(sock: socket.socket, ifname: str) -> Message:
    return _ask(sock, [("IFLA_IFNAME" if len(ifname) < IFNAMSIZ else "IFLA_ALT_IFNAME", ifname)])[0]


def _ask(sock: socket.socket, attributes: list[tuple[str, str]], *, dump: bool = False) -> list[Message]:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    from pktring.drivers import netlink

    question = ifinfmsg()
    question["attrs"] = [*attributes, ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return netlink.ask(sock, question, RTM_GETLINK, dump=dump)


def _question(ifindex: int) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    from pktring.drivers import netlink

    question = ifinfmsg()
    question["index"] = ifindex
    question["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return netlink.encoded(question, RTM_GETLINK, 0)


def _decoded(datagram: bytes) -> Message:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg(datagram)
    message.decode()
    return message
