"""Handlers and callbacks of the engines that tests start in their own process, and a page that the workers share with the test.

    with gate: ...; gate.waiting(); ...       a worker that comes to `gated` stands there while the gate is closed
    told("drained")                           how often any worker called something

Frames: ethernet, IPv4 or nothing like it up to byte 42, then number, flow, who handled it and when; 80 bytes in all.
"""

import mmap
import os
import struct
import time

import pktring

STAMP = struct.Struct("!QIIQ")
AT = 42
NONE, KEPT, HERE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD  # flows: callbacks know nothing of it; keep it; handlers do not send it on
ETHERTYPES = {"ip": 0x0800, "arp": 0x0806, "ipv6": 0x86DD, "ether": 0x88B5}
COUNTS = ("waiting", "handled", "drained", "m2flow", "m2cpuid", "drained_on")
SLOTS, SLOT = 1024, 64

page = mmap.mmap(-1, SLOT * (SLOTS + 1))  # shared with children: a byte of the gate, then each process's own counts


def frame(i, flow=0, kind="ip", size=80):
    """Frame number i of a flow: 10.0.x.y to 10.9.9.9, where x.y is the flow."""
    low = flow & 0xFFFF
    head = b"\xff" * 6 + b"\x02\0\0\0" + low.to_bytes(2, "big") + ETHERTYPES[kind].to_bytes(2, "big")
    if kind == "ip":
        words = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, 17, 0, b"\x0a\0" + low.to_bytes(2, "big"), b"\x0a\x09\x09\x09")
        total = sum(struct.unpack("!10H", words))
        total = (total & 0xFFFF) + (total >> 16)
        words = words[:10] + (~total & 0xFFFF).to_bytes(2, "big") + words[12:]
        head += words + struct.pack("!HHHH", 4000, 4001, size - 34, 0)
    return head.ljust(AT, b"\0") + STAMP.pack(i, flow, 0, 0) + bytes(size - AT - STAMP.size)


def stamp(frame):
    """(number, flow, pid of who handled it, when in ns)"""
    return STAMP.unpack_from(frame, AT)


# ---- the page ----


def told(what):
    """The sum over all processes that there were."""
    return sum(struct.unpack_from("=Q", page, SLOT * (1 + i) + 8 * COUNTS.index(what))[0] for i in range(SLOTS))


def tell(what, n=1):
    at = SLOT * (1 + os.getpid() % SLOTS) + 8 * COUNTS.index(what)
    value = struct.unpack_from("=Q", page, at)[0] + n
    struct.pack_into("=Q", page, at, value)
    return value


def forget():
    """All counts are zero, the gate is open."""
    page[:] = bytes(len(page))


class Gate:
    """Closed: workers wait at it, a second at most, after which one would be taken for stuck."""

    def close(self):
        page[0] = 1

    def open(self):
        page[0] = 0

    def let_pass(self):
        """Who waits now goes on, who comes waits."""
        page[1] = (page[1] + 1) % 256

    def waiting(self, n=1):
        """Wait until so many came to it since it was closed."""
        deadline = time.monotonic() + 5
        while told("waiting") - self.before < n:
            assert time.monotonic() < deadline, "nobody comes to the gate"
            time.sleep(0.001)

    def __enter__(self):
        self.before = told("waiting")
        self.close()
        return self

    def __exit__(self, *_):
        self.open()


gate = Gate()

# ---- in the workers ----


def stamped(batch):
    """Say who handled the frame, and send it on."""
    tell("handled", len(batch))
    on = []
    for i in range(len(batch)):
        number, flow, *_ = STAMP.unpack_from(batch[i], AT)
        STAMP.pack_into(batch[i], AT, number, flow, os.getpid(), time.monotonic_ns())
        on.append(flow != HERE)
    batch.forward("right", where=on)


def gated(batch):
    """Wait at the gate if it is closed."""
    turn = page[1]
    if page[0]:
        tell("waiting")
        while page[0] and page[1] == turn:
            time.sleep(0.0005)
    stamped(batch)


def spun(batch):
    """It costs a few microseconds a frame."""
    for _ in range(len(batch) * 50):
        pass


@pktring.per_frame(to="right")
def each(frame):
    """One frame at a time."""
    number, flow, *_ = STAMP.unpack_from(frame, AT)
    STAMP.pack_into(frame, AT, number, flow, os.getpid(), time.monotonic_ns())
    return True


def drained(cpu):
    """drainedcpu."""
    tell("drained")
    tell("drained_on", cpu)


def _said(frame):
    flow = STAMP.unpack_from(frame, AT)[1]
    return None if flow == NONE else -1 if flow == KEPT else flow


def m2flow(frame):
    """The flow that the frame says."""
    tell("m2flow")
    return _said(frame)


def m2cpuid(frame):
    """The flow that it says, as an index."""
    tell("m2cpuid")
    return _said(frame)
