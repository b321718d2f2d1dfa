"""The published vectors, and the hash rules once more in plain Python, to hold engine/toeplitz.h, flow.h and rps.h against."""

import json
from pathlib import Path

VECTORS = Path(__file__).parent / "vectors"
RSS = json.loads((VECTORS / "rss_vectors.json").read_text())
JENKINS = json.loads((VECTORS / "jenkins_vectors.json").read_text())
KEY = bytes.fromhex(RSS["key_hex"])
TAGS = (0x8100, 0x88A8, 0x9100)
LAST_L3 = 128  # an IP header that begins behind this is not looked for


def toeplitz(data, key=KEY):
    """Read the definition aloud, over big integers: each set bit adds the 32 bits of the key that begin there."""
    n_bits = 8 * len(data)
    bits, key_bits = int.from_bytes(data), int.from_bytes(key + bytes(len(data) + 4))
    n_key_bits = 8 * (len(key) + len(data) + 4)
    hash = 0
    for i in range(n_bits):
        if bits >> (n_bits - 1 - i) & 1:
            hash ^= key_bits >> (n_key_bits - 32 - i) & 0xFFFFFFFF
    return hash


def flow(frame):
    """Name the kind of a frame and give the tuple that is hashed."""
    l3 = 14
    while int.from_bytes(frame[l3 - 2 : l3]) in TAGS and len(frame[l3 - 2 : l3]) == 2:
        l3 += 4
    if l3 > LAST_L3 or l3 > len(frame):
        return "none", b""
    packet, ethertype = frame[l3:], int.from_bytes(frame[l3 - 2 : l3])
    if ethertype == 0x0800 and len(packet) >= 20 and packet[0] >> 4 == 4:
        addresses, proto, header = packet[12:20], packet[9], 4 * (packet[0] & 15)
        may_have_ports, version = header >= 20 and not int.from_bytes(packet[6:8]) & 0x3FFF, "4"
    elif ethertype == 0x86DD and len(packet) >= 40 and packet[0] >> 4 == 6:
        addresses, proto, header = packet[8:40], packet[6], 40
        may_have_ports, version = True, "6"
    else:
        return "none", b""
    transport = packet[header:] if may_have_ports else b""
    if proto == 6 and len(transport) >= 20:
        return "tcp" + version, addresses + transport[:4]
    if proto == 17 and len(transport) >= 8:
        return "udp" + version, addresses
    return "ip" + version, addresses
