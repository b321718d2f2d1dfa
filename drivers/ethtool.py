"""What ethtool(8) shows of an interface, by the SIOCETHTOOL ioctl: offload features, queues in use, driver. linux/ethtool.h, netdevice(7).

Each function takes the descriptor of any socket made in the interface's namespace. It takes microseconds: ethtool's generic netlink
would say the same and cost an import of 0.15 s.
"""

import array
import errno
import fcntl
import fnmatch
import struct

SIOCETHTOOL = 0x8946
GDRVINFO, GSTRINGS, GSSET_INFO, GFEATURES, SFEATURES, GCHANNELS = 0x03, 0x1B, 0x37, 0x3A, 0x3B, 0x3C
SS_FEATURES = 4
NAME_SIZE = 32
BLOCK_BITS = 32

# The names of `ethtool -K` and the kernel's names that each stands for.
OFFLOADS = {
    "rx-checksum": "rx-checksum",
    "tx-checksum": "tx-checksum-*",
    "tso": "tx-tcp*-segmentation",
    "uso": "tx-udp-segmentation",
    "gso": "tx-generic-segmentation",
    "gro": "rx-gro",
    "lro": "rx-lro",
    "rx-vlan": "rx-vlan-hw-parse",
    "tx-vlan": "tx-vlan-hw-insert",
}


def offloads(fd: int, ifname: str) -> dict[str, bool]:
    """Return which of OFFLOADS are on; a group is on when any of its kernel features is active."""
    names = _feature_names(fd, ifname)
    active = _active(fd, ifname, len(names))
    on = {name for index, name in enumerate(names) if active[index // BLOCK_BITS] >> index % BLOCK_BITS & 1}
    return {offload: bool(fnmatch.filter(on, pattern)) for offload, pattern in OFFLOADS.items()}


def set_offloads(fd: int, ifname: str, wanted: dict[str, bool]) -> None:
    """Switch offloads by the names of OFFLOADS, as `ethtool -K`. What a device has fixed stays as it is: read back to know."""
    names = _feature_names(fd, ifname)
    blocks = [[0, 0] for _ in range(_n_blocks(len(names)))]
    for offload, on in wanted.items():
        for name in fnmatch.filter(names, OFFLOADS[offload]):
            block, bit = divmod(names.index(name), BLOCK_BITS)
            blocks[block][0] |= 1 << bit
            blocks[block][1] |= on << bit
    words = [word for block in blocks for word in block]
    _call(fd, ifname, struct.pack(f"II{len(words)}I", SFEATURES, len(blocks), *words))


def queues(fd: int, ifname: str) -> tuple[int, int] | None:
    """Return how many receive and transmit queues are in use, or None where the driver does not say (a TAP, a bridge)."""
    try:
        answer = _call(fd, ifname, struct.pack("I32x", GCHANNELS))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    _, _, _, _, _, rx, tx, _, combined = struct.unpack("9I", answer)
    return rx + combined, tx + combined


def driver(fd: int, ifname: str) -> str:
    """Return the name of the kernel driver behind the interface, or "" where it has none (lo)."""
    try:
        answer = _call(fd, ifname, struct.pack("I192x", GDRVINFO))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ""
        raise
    return answer[4:36].split(b"\0", 1)[0].decode()


def _feature_names(fd: int, ifname: str) -> list[str]:
    count = struct.unpack("IIQI4x", _call(fd, ifname, struct.pack("IIQI4x", GSSET_INFO, 0, 1 << SS_FEATURES, 0)))[3]
    answer = _call(fd, ifname, struct.pack(f"III{count * NAME_SIZE}x", GSTRINGS, SS_FEATURES, count))
    text = answer[12:]
    return [text[i * NAME_SIZE : (i + 1) * NAME_SIZE].split(b"\0", 1)[0].decode() for i in range(count)]


def _active(fd: int, ifname: str, n_features: int) -> list[int]:
    n_blocks = _n_blocks(n_features)
    answer = _call(fd, ifname, struct.pack(f"II{n_blocks * 16}x", GFEATURES, n_blocks))
    return [active for _, _, active, _ in struct.iter_unpack("4I", answer[8:])]  # available, requested, active, never changed


def _n_blocks(n_features: int) -> int:
    return -(-n_features // BLOCK_BITS)


def _call(fd: int, ifname: str, request: bytes) -> bytes:
    """Run one ethtool command: `struct ifreq` is the name and a pointer to the command's structure, answered in place."""
    data = array.array("B", request)
    fcntl.ioctl(fd, SIOCETHTOOL, struct.pack("16sP16x", ifname.encode(), data.buffer_info()[0]))
    return data.tobytes()
