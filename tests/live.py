"""A host in the middle that forwards while numbered frames flow through it, and the books that must balance afterwards.

    host a  va ===== fa  pktring  fb ===== vb  host b

    with middle() as net, bridged(net) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        ...                                                         # something happens
    accounted(load, got, bridge.report)                             # sent = received + drops by reason

The number in a frame is the truth. The blocks end in this order: the load stops, what is on its way arrives, the bridge is asked to end.
"""

import contextlib
import errno
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from command import eventually, started
from frames import ETHERTYPE, number, numbered
from lab import ETH_P_ALL, PACKET_IGNORE_OUTGOING, PACKET_STATISTICS, SOL_PACKET, End, Lab, _roomy

from pktring.drivers.netns import entered

REFUSED = {errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.EAGAIN, errno.EMSGSIZE}
LATE_S = 3.0  # what a promise of milliseconds may take on a machine with other work
EDGE_S = 0.2  # between our clock and what the kernel did: a frame this near to a fault may have met it


class Load(threading.Thread):
    """Numbered frames out of one end, about 5000 a second, until the end of the block; `sent[i]` is when frame i went."""

    def __init__(self, end, frame=numbered):
        super().__init__(daemon=True)
        self.end, self.frame = end, frame
        self.sent: dict[int, float] = {}
        self._over = threading.Event()
        self._next = 0
        self.refused = 0  # the kernel said that it did not take them

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(10)
        assert not self.is_alive()

    def run(self):
        with entered(self.end.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.settimeout(1)
            while not self._over.wait(0.002):
                with contextlib.suppress(OSError):  # it may be another interface by now, or none
                    sock.bind((self.end.name, 0))
                for _ in range(10):
                    self._one(sock)

    def _one(self, sock):
        i, self._next = self._next, self._next + 1
        try:
            sock.send(self.frame(i))
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            self.refused += 1
        else:
            self.sent[i] = time.monotonic()

    def goes_on(self, n=200):
        """Wait until so many more frames went."""
        eventually(lambda goal=self._next + n: self._next >= goal, 10)


@dataclass
class Bridge:
    """`pktring bridge` in a namespace; what it says is read as it comes."""

    lab: Lab
    child: object
    said: list[tuple[float, str]] = field(default_factory=list)
    report: dict = field(default_factory=dict)

    def listen(self):
        for line in self.child.stderr:
            self.said.append((time.monotonic(), line))

    def told(self, pattern, since=0.0):
        """Wait for a line that matches and was said after `since`. -> when"""
        found = eventually(lambda: [at for at, line in self.said if at >= since and re.search(pattern, line)], LATE_S)
        return found[0]

    def count(self, pattern):
        return sum(1 for _, line in self.said if re.search(pattern, line))

    def cpu(self):
        """CPU seconds that it used so far."""
        with open(f"/proc/{self.child.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@dataclass
class Net:
    lab: Lab
    a: End
    b: End
    fa: End
    fb: End


@contextlib.contextmanager
def middle(*, addresses=False, **how):
    """Two hosts and the one between them; `how` as for Lab.veth."""
    with Lab() as lab:
        ns = lab.namespace("middle")
        given = ("10.0.0.1/24", "10.0.0.2/24") if addresses else (None, None)
        a, b = End(lab.namespace("a"), "va", given[0]), End(lab.namespace("b"), "vb", given[1])
        net = Net(lab, a, b, End(ns, "fa"), End(ns, "fb"))
        lab.veth(a, net.fa, **how)
        lab.veth(b, net.fb, **how)
        yield net


@contextlib.contextmanager
def bridged(net, rx="frames", *flags):
    """Run the command until the block ends; `report` holds its JSON then."""
    child = started(net.lab, net.fa.netns, "bridge", f"fa?rx={rx}", f"fb?rx={rx}", "--json", *flags)
    bridge = Bridge(net.lab, child)
    reader = threading.Thread(target=bridge.listen, daemon=True)
    reader.start()
    yield bridge
    time.sleep(0.3)
    assert child.poll() is None, bridge.said
    child.send_signal(15)
    reader.join(10)
    out, _ = child.communicate(timeout=10)
    assert child.returncode == 0, bridge.said
    bridge.report.update(json.loads(out))


@contextlib.contextmanager
def heard(netns, protocol=ETH_P_ALL):
    """The numbers that arrive at a host, by whatever interface; complete after the block.

    A socket on one protocol (not ETH_P_ALL) hears what the host's own stack does: nothing from a taken interface.
    """
    got: list[int] = []
    over = threading.Event()
    with entered(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as sock:
        _roomy(sock)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.settimeout(0.3)

        def take():
            with contextlib.suppress(TimeoutError):
                while True:
                    with contextlib.suppress(TimeoutError) if not over.is_set() else contextlib.nullcontext():
                        frame = sock.recv(1 << 17)
                        if len(frame) > 21 and frame[12:14] == ETHERTYPE.to_bytes(2, "big"):
                            got.append(number(frame))

        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        try:
            yield got
        finally:
            over.set()
            taker.join(20)
        assert struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1] == 0, "the listener itself lost frames"


def once_in_order(load, got):
    """Nothing twice, nothing out of order, nothing that was not sent. -> what is missing"""
    assert got == sorted(set(got)), "duplicated or reordered"
    assert set(got) <= load.sent.keys()
    return sorted(load.sent.keys() - set(got))


def accounted(load, got, report, way="a_to_b"):
    """Conservation law, to the frame: sent = received + drops by reason. -> the reasons"""
    missing = once_in_order(load, got)
    reasons = report[way]["reasons"]
    assert report[way]["frames"] == len(got), (report, len(got))
    assert len(missing) == sum(reasons.values()), (len(load.sent), len(got), reasons, missing[:5], missing[-5:])
    return reasons


def within(load, missing, windows):
    """Every missing frame was sent during one of the windows."""
    astray = [i for i in missing if not any(lo - EDGE_S <= load.sent[i] <= hi + EDGE_S for lo, hi in windows)]
    assert not astray, (astray[:10], [load.sent[i] for i in astray[:10]], windows[:5])


def resumed(got, since_n, began):
    """Wait until frames arrive again. -> seconds since `began`"""
    while len(got) <= since_n:
        time.sleep(0.001)
        assert time.monotonic() - began < LATE_S, "forwarding does not go on"
    return time.monotonic() - began


def told_times(label, times):
    times = sorted(times)
    print(f"{label}: median {times[len(times) // 2] * 1000:.1f} ms, max {times[-1] * 1000:.1f} ms, n={len(times)}")
