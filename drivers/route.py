"""By which interface a packet leaves. rtnetlink(7), ip-rule(8).

It is one question to the kernel's routing, rules included, and never a dump: a router's table has a million lines.
Each function takes a netlink socket of the namespace it is asked about (drivers/netlink.py).
"""

import errno
import socket

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pktring.drivers import netlink

RTM_GETADDR, RTM_GETROUTE = 22, 26
RTM_F_FIB_MATCH = 0x2000  # answer with the table's own line, whose dst_len tells a default route from a better one (Linux >= 4.14)
# What the kernel answers for no route, for unreachable, prohibit and blackhole ones, and where there is no IPv6.
UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}

# (address, the longest prefix that counts as a default route). Addresses that a table hardly ever has a line of its own for, so that what
# leads there leads anywhere: class E (RFC 1112), a public one for hosts that blackhole bogons, a documentation prefix (RFC 9637). A VPN
# installs its default route in two halves, and for IPv6 2000::/3 is one too.
PROBES = (("240.0.0.1", 1), ("8.8.8.8", 1), ("3fff::1", 3))


def default_routes(sock: socket.socket) -> frozenset[int]:
    """Return the ifindexes that carry the default route, as policy routing has it for an ordinary packet; several where it is multipath."""
    lines = [(line, longest) for address, longest in PROBES for line in _lines(sock, address)]
    return frozenset(ifindex for line, longest in lines if line["dst_len"] <= longest for ifindex in _exits(line))


def exits_to(sock: socket.socket, address: str) -> frozenset[int]:
    """Return the ifindexes by which a packet to `address` leaves; none when it is unreachable."""
    return frozenset(ifindex for line in _lines(sock, address) for ifindex in _exits(line))


def holders(sock: socket.socket, address: str) -> frozenset[int]:
    """Return the ifindexes that have `address` as their own."""
    question = ifaddrmsg()
    question["family"] = socket.AF_INET6 if ":" in address else socket.AF_INET
    owned = netlink.ask(sock, question, RTM_GETADDR, dump=True)
    return frozenset(one["index"] for one in owned if address in (one.get_attr("IFA_LOCAL"), one.get_attr("IFA_ADDRESS")))


def _lines(sock: socket.socket, address: str) -> list[netlink.Message]:
    question = rtmsg()
    question["family"], question["dst_len"] = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
    question["flags"] = RTM_F_FIB_MATCH
    question["attrs"] = [("RTA_DST", address)]
    try:
        return netlink.ask(sock, question, RTM_GETROUTE)
    except OSError as error:
        if error.errno in UNREACHABLE:
            return []
        raise


def _exits(line: netlink.Message) -> list[int]:
    hops = line.get_attr("RTA_MULTIPATH") or []
    return [hop["oif"] for hop in hops] or [line.get_attr("RTA_OIF")]
