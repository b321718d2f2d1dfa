"""What `doctor` tries for itself, each in a child process with namespaces of its own, so that nothing of this machine changes.

A probe returns what it found as a line and raises OSError with the kernel's refusal. capabilities(7), namespaces(7), packet(7), bpf(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Callable

from pktring.shm.errors import Error

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NOBODY = 65534
PR_SET_DUMPABLE = 4
SOL_PACKET, PACKET_VERSION, PACKET_RX_RING, TPACKET_V3 = 263, 10, 5, 2
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
AF_XDP, SOL_XDP, XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 44, 283, 2, 4, 5, 6
XDP_COPY = 2
SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD, BPF_LINK_CREATE, BPF_PROG_TYPE_XDP, BPF_XDP = 5, 28, 6, 37
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 2, 4
RETURN_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit

_libc = ctypes.CDLL(None, use_errno=True)


def apart(probe: Callable[[], str], *, user: bool | None = None, as_nobody: bool = False) -> tuple[bool, str]:
    """Run a probe in a child with a network namespace of its own. -> (it worked, what it said).

    `user`: in a user namespace too (default: unless we are root). `as_nobody`: give up root first.
    """
    user = os.geteuid() != 0 if user is None else user
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(probe, user, as_nobody, write)
    os.close(write)
    with open(read, encoding="utf-8") as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer.startswith("+"), answer[1:] or "the probe died"


def _child(probe: Callable[[], str], user: bool, as_nobody: bool, write: int) -> None:
    try:
        if as_nobody:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            _done(_libc.prctl(PR_SET_DUMPABLE, 1))  # or /proc/self/uid_map stays root's
        unshare(user=user)
        answer = "+" + probe()
    except OSError as error:
        answer = f"-{error.strerror}"
    except Error as error:
        answer = f"-{error.text}"
    except BaseException as error:
        answer = f"-{error!r}"
    finally:
        os.write(write, answer.encode())
        os._exit(0)


def unshare(*, user: bool) -> None:
    """Put this process into a network namespace of its own; `user`: and, first, into a user namespace where it is root."""
    uid, gid = os.geteuid(), os.getegid()
    _done(_libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)))
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
                out.write(text)


def _done(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---- the probes ----


def packet_socket() -> str:
    """Open an AF_PACKET socket that hears nothing."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):
        return "a socket opens"


def tpacket_v3() -> str:
    """Map a receive ring of 1 MiB, of version 3."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("7I", 1 << 18, 4, 2048, 512, 10, 0, 0))
        return "a receive ring opens"


def tap() -> str:
    """Make a TAP with virtio-net headers; it is gone with the child."""
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"pr%d", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        return "a TAP device can be made"


def xdp_socket() -> str:
    """Bind an AF_XDP socket in copy mode to lo, over 64 KiB of memory."""
    import mmap

    memory = mmap.mmap(-1, 1 << 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as xsk:
        xsk.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("QQIII4x", address, 1 << 16, 4096, 0, 0))
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
            xsk.setsockopt(SOL_XDP, ring, 16)
        name = struct.pack("HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex("lo"), 0, 0)
        _done(_libc.bind(xsk.fileno(), name, len(name)))
        return "a socket binds in copy mode"


def xdp_generic() -> str:
    """Load an XDP program and attach it to lo."""
    _attach(socket.if_nametoindex("lo"), XDP_FLAGS_SKB_MODE)
    return "a program loads and attaches"


def xdp_native() -> str:
    """Attach an XDP program inside a driver: that of a veth made for it."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        ipr.link("add", ifname="va", kind="veth", peer="vb")
    _attach(socket.if_nametoindex("va"), XDP_FLAGS_DRV_MODE)
    return "a program runs inside a driver (veth)"


def host_drop() -> str:
    """Put up what keeps received frames from the host's stack: on lo of a namespace of our own."""
    from pktring.drivers.taking import HostDrop

    HostDrop("lo", None).close()
    return "received frames can be kept from the host"


def _attach(ifindex: int, flags: int) -> None:
    code, licence = ctypes.create_string_buffer(RETURN_PASS), ctypes.create_string_buffer(b"BSD")
    load = struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, len(RETURN_PASS) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    program = _bpf(BPF_PROG_LOAD, load.ljust(72, b"\0"))
    _bpf(BPF_LINK_CREATE, struct.pack("=IIII", program, ifindex, BPF_XDP, flags))


def _bpf(command: int, attributes: bytes) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) is not tried on {platform.machine()}")
    data = ctypes.create_string_buffer(attributes, len(attributes))
    return _done(_libc.syscall(number, command, data, len(attributes)))


# ---- what the drivers say (Linux 6.3) ----

NETDEV_CMD_DEV_GET, NLM_F_REQUEST_DUMP = 1, 0x301
XDP_BASIC, XDP_ZERO_COPY = 1 << 0, 1 << 3  # linux/netdev.h: enum netdev_xdp_act


def xdp_features() -> dict[int, int] | None:
    """Ask each driver of this network namespace what XDP it can: bits by ifindex; None where the kernel is older than 6.3."""
    from pyroute2.netlink import genlmsg
    from pyroute2.netlink.generic import GenericNetlinkSocket

    class Device(genlmsg):
        nla_map = (("UNSPEC", "none"), ("IFINDEX", "uint32"), ("PAD", "none"), ("XDP_FEATURES", "uint64"))

    question = Device()
    question["cmd"], question["version"] = NETDEV_CMD_DEV_GET, 1
    with GenericNetlinkSocket() as sock:
        sock.asyncore.module_err_level = "debug"  # else pyroute2 logs what we return
        try:
            sock.bind("netdev", Device)
        except OSError:
            return None
        answers = sock.nlm_request(question, msg_type=sock.prid, msg_flags=NLM_F_REQUEST_DUMP)
        return {device.get_attr("IFINDEX"): device.get_attr("XDP_FEATURES") or 0 for device in answers}
