"""Port names, and how a name becomes an open port.

    [driver:]name[?key=value&...]        eth0   af_packet:eth0?take=1   tap:t0?mtu=9000   pcap:trace.pcapng   null:

The name of an existing interface always wins over anything else it might mean. A port is opened *watching* (the host
keeps its traffic) unless `take` says otherwise.
"""

from __future__ import annotations

import atexit
import difflib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pktring.engine.port import Port, Watch
from pktring.shm.device import Device
from pktring.shm.errors import Error
from pktring.shm.region import DEFAULT_SLOTS, Region

COMMON = {
    "take": "1 = receive in place of the host's stack (0: the host keeps its traffic)",
    "promisc": "0 = only frames for this interface's address (1: all)",
    "queues": "receive queues, flows spread over them (1)",
    "slots": f"slots of each ring ({DEFAULT_SLOTS})",
    "netns": "network namespace: a name of `ip netns`, or pid:N",
    "gso": "whole = super-frames come whole (cut: as wire frames)",
    "strict": "1 = refuse where a frame could only be guessed right (0)",
}
LATER = ("af_xdp", "pipe", "vale", "netmap")  # names that the contract reserves


@dataclass(frozen=True)
class PortName:
    """A parsed port name."""

    driver: str
    name: str
    options: dict[str, str] = field(default_factory=dict)
    why: str = ""


def parse(text: str, find: Callable[[str, str | None], Any], **given: str) -> PortName:
    """Take a port name apart; `given`: options from elsewhere, which win. `find(name, netns)` raises when there is no such interface.

    Raises E_PORT, E_NO_INTERFACE, E_DRIVER.
    """
    base, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True)) | given
    if not base:
        raise Error("E_PORT", "empty port name: give an interface, tap:NAME, pcap:FILE or null:")
    driver, colon, name = base.partition(":")
    try:
        find(base, options.get("netns"))
    except Error as why:
        if colon and driver in DRIVERS:
            return PortName(driver, name, options, "asked for by name")
        if colon and driver.startswith(LATER):
            raise Error("E_DRIVER", f"{driver}: not in this version: there are {', '.join(DRIVERS)}") from None
        if colon and driver.isidentifier():
            near = difflib.get_close_matches(driver, DRIVERS, 1, 0.0)[0]
            raise Error("E_DRIVER", f"{driver}: no such driver: did you mean {near}:{name}?") from None
        raise why from None
    return PortName("af_packet", base, options, "an interface, and this version has no faster driver for those")


def open(
    name: str,
    *,
    region: Region | None = None,
    directions: str = "rxtx",
    yes: bool = False,
    engine: str | None = None,
    filter: str = "",
    **keys: Any,
) -> Port:
    """Open a port by name; keyword arguments are the same keys as behind the `?`.

    What a running engine owns is attached to: copies of the frames that match `filter` (pcap-filter(7)), with take=1 the frames
    themselves. `engine` names one of several, whose ports may then be given by the names of its configuration.

    Watching unless `take=1`. Without `region` the port's rings lie in this process's own region, shared by all ports it
    opens. `directions`: rx, tx or rxtx. `yes` takes an interface even if this host is reached through it.
    Raises E_NO_INTERFACE, E_PORT, E_OPTION, E_PERM, E_WOULD_CUT_HOST and what the driver and the region raise.
    """
    given = {k: _text(v) for k, v in keys.items() if v is not None}
    if region is None and (owner := _owner_of(name, engine)):
        from pktring.attaching import open_attached

        seen, its_name = owner
        return open_attached(seen, its_name, dict(parse_qsl(name.partition("?")[2])) | given, filter)
    port = _known(name, given)
    options = port.options
    wanted = _wanted(port, directions=directions, port_number=next(_numbers) & 0xFFFF, yes=yes)
    directions = wanted.directions
    slots = _number(options, "slots", min(region.slots, DEFAULT_SLOTS) if region else DEFAULT_SLOTS, 2, 1 << 16)
    home = region or own_region(wanted.queues * (2 if directions == "rxtx" else 1), slots)
    try:
        device, watch = DRIVERS[port.driver].opener(port.name, wanted)
        try:
            opened = Port(name, home, device, watch, slots=slots, directions=directions, why=port.why)
        except BaseException:
            device.close()
            raise
    except BaseException:
        _left(home)
        raise
    opened.on_close = lambda: _left(home)
    _users[home] = _users.get(home, 0) + 1
    opened.carry_whole(options.get("gso") == "whole")
    return opened


def _owner_of(name: str, engine: str | None) -> tuple[Any, str] | None:
    """The engine that owns it, if there is any engine at all: asking costs an import."""
    own = os.environ.get("PKTRING_RUNDIR"), os.environ.get("XDG_RUNTIME_DIR", "/") + "/pktring", f"/tmp/pktring-{os.geteuid()}"
    places = ["/run/pktring", *own]
    if engine is None and not any(place and os.path.isdir(place) for place in places):
        return None
    from pktring.attaching import owner_of

    return owner_of(name, engine)


def open_device(
    name: str,
    *,
    queues: int = 1,
    tx_queues: int = 0,
    directions: str = "rxtx",
    take: bool = False,
    port_number: int = 0,
    yes: bool = False,
) -> tuple[Device, Watch | None, str]:
    """Open what is behind a port name, without rings: the device, the watch over its link, and why this driver.

    `queues` and `take` hold where the name says nothing. `tx_queues` more than `queues`: the device's queues beyond only send.
    `port_number` is put into the metadata of every frame. Raises as `open`.
    """
    port = _known(name, {})
    wanted = _wanted(
        port, queues=queues, tx_queues=tx_queues, directions=directions, take=take, port_number=port_number, yes=yes, numbered=True
    )
    return *DRIVERS[port.driver].opener(port.name, wanted), port.why


def adopt_device(state: dict, fds: list[int]) -> tuple[Device, Watch | None]:
    """Rebuild a device that another process handed on (`Device.hand_on`), and watch its link from what was known there on.

    The descriptors are the device's from now on, also when this fails. Raises what the driver raises.
    """
    return DRIVERS[state["driver"]].adopter(state, fds)


# ---- drivers ----


@dataclass(frozen=True)
class Wanted:
    """How a device is to be opened."""

    options: dict[str, str]
    queues: int
    tx_queues: int
    directions: str  # rx, tx or rxtx
    take: bool
    port_number: int
    yes: bool
    numbered: bool  # the frames of a file say the port's number too, not their interface's in the file

    @property
    def netns(self) -> str | None:
        return self.options.get("netns")


def _wanted(
    port: PortName,
    *,
    directions: str,
    port_number: int,
    yes: bool,
    queues: int = 1,
    tx_queues: int = 0,
    take: bool = False,
    numbered: bool = False,
) -> Wanted:
    options = port.options
    if directions == "rxtx" and not DRIVERS[port.driver].both_ways:
        directions = "rx"
    n = _number(options, "queues", queues, 1, 64)
    return Wanted(options, n, max(n, tx_queues), directions, _flag(options, "take", take), port_number, yes, numbered)


def _known(name: str, keys: dict[str, str]) -> PortName:
    from pktring.drivers.link import find

    port = parse(name, find, **keys)
    _check(port.options, port.driver)
    return port


def _open_af_packet(name: str, wanted: Wanted) -> tuple[Device, Watch | None]:
    from pktring.drivers.af_packet import AfPacket
    from pktring.drivers.link import LinkWatch

    if wanted.take and not wanted.yes:
        from pktring.drivers.taking import would_cut_host

        if why := would_cut_host(name, wanted.netns):
            raise Error("E_WOULD_CUT_HOST", f"{name}: {why}: say --yes if you mean it")
    device = AfPacket(
        name,
        take=wanted.take,
        promisc=_flag(wanted.options, "promisc", True),
        queues=0 if wanted.directions == "tx" else wanted.queues,
        tx_queues=wanted.tx_queues,
        netns_name=wanted.netns,
        port=wanted.port_number,
        options=wanted.options,
    )
    return _watched(device, lambda: LinkWatch(device.interface, wanted.netns))


def _open_tap(name: str, wanted: Wanted) -> tuple[Device, Watch | None]:
    from pktring.drivers.link import LinkWatch
    from pktring.drivers.tap import Tap

    device = Tap(
        name,
        queues=wanted.queues,
        tx_queues=wanted.tx_queues,
        netns_name=wanted.netns,
        port=wanted.port_number,
        options=wanted.options,
    )
    return _watched(device, lambda: LinkWatch(device.interface, wanted.netns))


def _open_pcap(name: str, wanted: Wanted) -> tuple[Device, Watch | None]:
    from pktring.drivers import pcap

    direction = "tx" if wanted.directions == "tx" else "rx"
    return pcap.open(name, wanted.options, direction=direction, port=wanted.port_number if wanted.numbered else None), None


def _open_null(name: str, wanted: Wanted) -> tuple[Device, Watch | None]:
    from pktring.drivers import null

    return null.open(name, wanted.options, port=wanted.port_number), None


def _adopt_af_packet(state: dict, fds: list[int]) -> tuple[Device, Watch | None]:
    from pktring.drivers.af_packet import AfPacket

    device = AfPacket.adopt(state, fds)
    return _watched(device, device.watch)


def _adopt_tap(state: dict, fds: list[int]) -> tuple[Device, Watch | None]:
    from pktring.drivers.tap import Tap

    device = Tap.adopt(state, fds)
    return _watched(device, device.watch)


def _adopt_pcap(state: dict, fds: list[int]) -> tuple[Device, Watch | None]:
    from pktring.drivers import pcap

    return pcap.adopt(state, fds), None


def _adopt_null(state: dict, fds: list[int]) -> tuple[Device, Watch | None]:
    from pktring.drivers import null

    return null.Null.adopt(state, fds), None


def _watched(device: Device, watch: Callable[[], Watch]) -> tuple[Device, Watch | None]:
    try:
        return device, watch()
    except BaseException:
        device.let_go()
        raise


def _options_of(module: str) -> dict[str, str]:
    from importlib import import_module

    return import_module(f"pktring.drivers.{module}").OPTIONS


@dataclass(frozen=True)
class Driver:
    """How a kind of port is opened, and what it is for, in a line."""

    opener: Callable[[str, Wanted], tuple[Device, Watch | None]]
    adopter: Callable[[dict, list[int]], tuple[Device, Watch | None]]
    about: str
    both_ways: bool = True


DRIVERS = {
    "af_packet": Driver(_open_af_packet, _adopt_af_packet, "any interface, by AF_PACKET sockets"),
    "tap": Driver(_open_tap, _adopt_tap, "a TAP device, made if it does not exist"),
    "pcap": Driver(_open_pcap, _adopt_pcap, "a capture file: read (pcap, pcapng), or written (pcapng)", both_ways=False),
    "null": Driver(_open_null, _adopt_null, "nowhere: swallows everything, or makes frames at full speed"),
}


# ---- options ----


def _check(options: dict[str, str], driver: str) -> None:
    known = [*COMMON, *_options_of(driver)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise Error("E_OPTION", f"unknown key {key!r} for {driver}: {hint} (`pktring help ports`)")


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _flag(options: dict[str, str], key: str, default: bool) -> bool:
    value = options.get(key, "1" if default else "0")
    if value not in ("0", "1"):
        raise Error("E_OPTION", f"{key}={value}: 0 or 1")
    return value == "1"


def _number(options: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    text = options.get(key, str(default))
    if not text.isdecimal() or not low <= int(text) <= high:
        raise Error("E_OPTION", f"{key}={text}: a number from {low} to {high}")
    return int(text)


# ---- the process's own regions: made for the first port that needs room, gone with the last ----

_own: list[Region] = []
_users: dict[Region, int] = {}
_numbers = itertools.count(1)


def own_region(n_rings: int, slots: int) -> Region:
    """A region of this process's own with room for so many rings; it goes with the process, if not with the last port in it."""
    for region in _own:
        if region.made_here and region.has_room(n_rings, slots):
            return region
    if not _own:
        atexit.register(_close_all)
    region = Region.create(f"{os.getpid()}-{next(_numbers)}", rings=max(n_rings, 16), slots=max(slots, DEFAULT_SLOTS))
    _own.append(region)
    return region


def _left(region: Region) -> None:
    """A port of this region was closed, or never came to be."""
    _users[region] = max(_users.get(region, 0) - 1, 0)
    if not _users[region]:
        del _users[region]
        if region in _own:
            _own.remove(region)
            region.close()


def _close_all() -> None:
    for region in _own:
        region.close()
