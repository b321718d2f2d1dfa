"""pcap-filter(7): compiled by libpcap (in pcapy-ng's wheel), run by filter.h after VLAN tags are back in the frame."""

from __future__ import annotations

import struct
import threading

from pktring.shm.errors import Error

LINK_ETHERNET = 1
SNAPLEN = 262144
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_one_at_a_time = threading.Lock()  # libpcap's compiler keeps its state in globals


def compile(expression: str, snaplen: int = SNAPLEN) -> bytes:
    """Compile an expression for Ethernet frames to instructions of 8 bytes; "" matches everything and is b"". Raises E_FILTER."""
    if not expression.strip():
        return b""
    import pcapy

    try:
        expression.encode("ascii")
        with _one_at_a_time:
            program = pcapy.compile(LINK_ETHERNET, snaplen, expression, 1, 0)
    except UnicodeEncodeError:
        raise Error("E_FILTER", f"bad filter {expression!r}: not ASCII: see pcap-filter(7)") from None
    except Exception as why:  # pcapy's BPFError, and PcapError before it
        raise Error("E_FILTER", f"bad filter {expression!r}: {why}: see pcap-filter(7)") from None
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in program.get_bpf())
