"""Take an interface from the host although an AF_PACKET socket only gets copies: drop, behind the socket, what the host would receive.

A received frame passes, in the kernel's __netif_receive_skb_core():

    XDP ─▶ AF_PACKET sockets on ETH_P_ALL ─▶ tc ingress ─▶ nf_tables netdev ingress ─▶ VLANs, bridge, IP, ARP, sockets on one protocol ...
           (we have our copy)                              policy drop: ours

So one base chain without rules at the netdev ingress hook, first in its order, leaves the host nothing: no ARP, no tagged frame, nothing
through a bridge. tc rules of the user come before it, and what the host sends is not touched.

Nothing is left behind after a crash: the chain's table is owned by the netlink socket that made it (NFT_TABLE_F_OWNER, Linux >= 5.12), and
the kernel deletes it when the last descriptor of that socket closes, SIGKILL or not: nf_tables_api.c, nft_rcv_nl_event(). Nobody else can
change it, `nft flush ruleset` and a reload of firewalld included. `nft list ruleset` shows it as pktring-<pid>-<ifindex>-<port>.

The hook belongs to the name since Linux 6.16 (measured on 6.18): a rename gives the interface back to the host, and a new interface of
the old name is taken at once. Before, it belonged to the interface and went with it. Either way `follow`, called on a LinkWatch's
`renamed` and `back`, puts it where it should be. Between a rename and that call, 0.7 ms here and 1.5 at most, the host receives.

Another process can have the socket handed to it and go on with the taking when we are dead: `HostDrop.adopt`.

Importing this imports pyroute2 (0.15 s): import it where something is taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import psutil
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_table_msg

from pktring.drivers import link, netlink, route
from pktring.drivers.netns import identity
from pktring.shm.errors import Error

NETLINK_NETFILTER, NFPROTO_NETDEV, NFNL_SUBSYS_NFTABLES = 12, 5, 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWTABLE, NEWCHAIN, GETCHAIN, DELCHAIN = 0, 3, 4, 5
NFT_TABLE_F_OWNER = 2
NF_NETDEV_INGRESS, NF_DROP, FIRST = 0, 0, -(1 << 31)
ACK, ADD = 0x4, 0x4 | 0x400 | 0x200  # NLM_F_ACK; and NLM_F_CREATE | NLM_F_EXCL

LACKS = {
    errno.EPROTONOSUPPORT: "this kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)",
    errno.EOPNOTSUPP: "this kernel has no nf_tables netdev chains with an owner (Linux >= 5.12, CONFIG_NF_TABLES_NETDEV)",
    errno.ENOENT: "it is gone, or this kernel has no nf_tables netdev chains (CONFIG_NF_TABLES_NETDEV, CONFIG_NETFILTER_INGRESS)",
}


class HostDrop:
    """While it is open, the host's stack receives nothing from the interface; packet sockets on ETH_P_ALL still see every frame.

    Raises E_NO_INTERFACE, E_PERM without CAP_NET_ADMIN there, and E_TAKE where the kernel lacks what it takes.
    """

    def __init__(self, ifname: str, netns: str | None = None):
        found = link.find(ifname, netns)
        try:
            self._sock = netlink.opened(NETLINK_NETFILTER, netns=netns)
        except OSError as error:
            raise _refusal(ifname, error) from None
        # The port number makes it unique in its namespace, where containers may all be process 1.
        self._table = f"pktring-{os.getpid()}-{found.ifindex}-{self._sock.getsockname()[0]}"
        self._chains = [f"take-{found.name}"]
        try:
            self._transact(found.name, _new_table(self._table), _new_chain(self._table, self._chains[0], found.name))
        except Error:
            self.close()
            raise

    @classmethod
    def adopt(cls, state: dict, fd: int) -> HostDrop:
        """Go on with a taking that another process began: what `hand_on` said there, and its descriptor, which is ours from now on."""
        drop = cls.__new__(cls)
        drop._sock = netlink.adopted(fd)
        drop._table = state["table"]
        drop._chains = []
        try:
            drop._chains = drop._hooked()
        except BaseException:
            drop.close()
            raise
        return drop

    def hand_on(self) -> tuple[dict, int]:
        """Return what another process needs to go on with the taking. Not which hook is in place: that the kernel is asked."""
        return {"table": self._table}, self._sock.fileno()

    def follow(self, ifname: str) -> None:
        """Hook onto `ifname` instead. The new hook is there before the old one goes: one transaction for both lets frames slip between."""
        old, self._chains = self._chains, [f"take-{ifname}-{os.urandom(4).hex()}"]
        self._transact(ifname, _new_chain(self._table, self._chains[0], ifname))
        for chain in old:
            with contextlib.suppress(FileNotFoundError):  # before Linux 6.16 it went with its interface
                netlink.transact(self._sock, _batch(_del_chain(self._table, chain)))

    def _hooked(self) -> list[str]:
        """The chains of our table, by the kernel; of a follow that was cut short there are two."""
        question = nft_chain_msg()
        question["nfgen_family"] = NFPROTO_NETDEV
        found = netlink.ask(self._sock, question, NFNL_SUBSYS_NFTABLES << 8 | GETCHAIN, dump=True, marshal=_Chains())
        return [chain.get_attr("NFTA_CHAIN_NAME") for chain in found if chain.get_attr("NFTA_CHAIN_TABLE") == self._table]

    def fileno(self) -> int:
        """Return the descriptor that is the taking: as long as anyone holds a copy, the interface stays taken."""
        return self._sock.fileno()

    def close(self) -> None:
        """Give the interface back to the host."""
        self._sock.close()

    def __enter__(self) -> HostDrop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transact(self, ifname: str, *requests: bytes) -> None:
        try:
            netlink.transact(self._sock, _batch(*requests))
        except OSError as error:
            raise _refusal(ifname, error) from None


def would_cut_host(ifname: str, netns: str | None = None) -> str | None:
    """Say why taking this interface would cut the host off: it carries the default route or this ssh connection; None when it would not.

    What is stacked on it counts as it: a bridge or bond that it is a port of, a VLAN.
    """
    found = link.find(ifname, netns)
    with netlink.opened(link.NETLINK_ROUTE, netns=netns) as sock:
        stack = _stacked_on(found.ifindex, link.messages(sock))
        if lost := route.default_routes(sock) & stack.keys():
            return f"{_named(stack, found, lost)} carries the default route"
        client, server = _ssh_connection() if identity(netns) == identity(None) else ("", "")
        if lost := _ways(sock, client, server, stack) & stack.keys():
            return f"{_named(stack, found, lost)} carries this ssh connection, from {client}"
    return None


def _stacked_on(ifindex: int, messages: list[netlink.Message]) -> dict[int, str]:
    """Return the interface and whatever receives through it, by ifindex, with their names."""
    floors = [floor for message in messages for floor in _floors(message)]
    stack = {ifindex}
    while new := {upper for upper, lower in floors if lower in stack} - stack:
        stack |= new
    return {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages if message["index"] in stack}


def _floors(message: netlink.Message) -> Iterator[tuple[int, int]]:
    """Pair upper with lower: a port is below its master, a VLAN or macvlan above its link; the link of a veth is beside it."""
    if master := message.get_attr("IFLA_MASTER"):
        yield master, message["index"]
    about = message.get_attr("IFLA_LINKINFO")
    beside = about is not None and about.get_attr("IFLA_INFO_KIND") == "veth"
    below = message.get_attr("IFLA_LINK")
    if below and not beside and message.get_attr("IFLA_LINK_NETNSID") is None:
        yield message["index"], below


def _ssh_connection() -> tuple[str, str]:
    """Return the addresses of client and server of the ssh connection we run in; sudo hides it from us, not from our ancestors."""
    environments = [os.environ, *(_environment(parent) for parent in psutil.Process().parents())]
    words = next((environment["SSH_CONNECTION"] for environment in environments if "SSH_CONNECTION" in environment), "").split()
    return (words[0], words[2]) if len(words) == 4 else ("", "")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # another user's: not ours to read
        return {}


def _ways(sock: socket.socket, client: str, server: str, stack: dict[int, str]) -> frozenset[int]:
    """Return where the replies leave and where the requests arrive; a link-local address says it by its zone (fe80::1%eth0)."""
    if not client:
        return frozenset()
    address, _, zone = client.partition("%")
    if zone:
        return frozenset(ifindex for ifindex, name in stack.items() if name == zone)
    return route.exits_to(sock, address) | route.holders(sock, server.partition("%")[0])


def _named(stack: dict[int, str], found: link.Link, lost: frozenset[int]) -> str:
    return found.name if found.ifindex in lost else f"{found.name}, below {stack[min(lost)]},"


class _Chains(Marshal):
    """What nf_tables answers when it is asked for chains."""

    msg_map = {NFNL_SUBSYS_NFTABLES << 8 | NEWCHAIN: nft_chain_msg}


def _batch(*requests: bytes) -> list[bytes]:
    """Frame requests as one transaction of nf_tables."""
    begin, end = nfgen_msg(), nfgen_msg()
    begin["res_id"] = end["res_id"] = NFNL_SUBSYS_NFTABLES
    return [netlink.encoded(begin, BATCH_BEGIN, 0), *requests, netlink.encoded(end, BATCH_END, 0)]


def _new_table(table: str) -> bytes:
    return _request(nft_table_msg(), NEWTABLE, ADD, NFTA_TABLE_NAME=table, NFTA_TABLE_FLAGS=NFT_TABLE_F_OWNER)


def _new_chain(table: str, chain: str, ifname: str) -> bytes:
    hook = [("NFTA_HOOK_HOOKNUM", NF_NETDEV_INGRESS), ("NFTA_HOOK_PRIORITY", FIRST), ("NFTA_HOOK_DEV", ifname)]
    what = {"NFTA_CHAIN_TYPE": "filter", "NFTA_CHAIN_HOOK": {"attrs": hook}, "NFTA_CHAIN_POLICY": NF_DROP}
    return _request(nft_chain_msg(), NEWCHAIN, ADD, NFTA_CHAIN_TABLE=table, NFTA_CHAIN_NAME=chain, **what)


def _del_chain(table: str, chain: str) -> bytes:
    return _request(nft_chain_msg(), DELCHAIN, ACK, NFTA_CHAIN_TABLE=table, NFTA_CHAIN_NAME=chain)


def _request(message: netlink.Message, kind: int, flags: int, **attributes: object) -> bytes:
    message["nfgen_family"] = NFPROTO_NETDEV
    message["attrs"] = list(attributes.items())
    return netlink.encoded(message, NFNL_SUBSYS_NFTABLES << 8 | kind, flags)


def _refusal(ifname: str, error: OSError) -> Error:
    if error.errno == errno.EPERM:
        return Error("E_PERM", f"take {ifname}: {error.strerror}: it needs CAP_NET_ADMIN in the interface's network namespace")
    why = LACKS.get(error.errno or 0, error.strerror or str(error))
    return Error("E_TAKE", f"take {ifname} from the host by nf_tables: {why}: watch it without ?take=1, or take it with af_xdp")
