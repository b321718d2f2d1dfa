"""An engine's half of the border without an engine: a region, records, an AppTable, and workers' turns that a test takes itself.

    with Border(workers=1) as border:
        app, port = border.attach()                       # trusted; border.attach(uid=STRANGER): a sealed memory of its own
        border.offer(app, [frame, ...])                   # worker 0's turn
        port.recv(); port.send([frame])
        assert border.collect(app) == [frame]
"""

import itertools
import mmap
import os
import struct

from pktring.engine import _engine
from pktring.engine.apps import FACTS, AppTable
from pktring.engine.attach import attach
from pktring.shm import _shm
from pktring.shm.region import Region

STRANGER = 65534
_numbers = itertools.count()


class PortNamed:
    number = 7
    name = "eth0"


class Border:
    """Closes what it made, and counts buffers: none is lost at the end of any test."""

    def __init__(self, workers=1, slots=64, buffers=2048, stride=2048, rings=16, group="pktring"):
        self.workers = workers
        name = f"test-border-{os.getpid()}-{next(_numbers)}"
        self.region = Region.create(name, rings=rings, slots=slots, buffers=buffers, stride=stride, owners=workers + 1)
        self.memory = memoryview(mmap.mmap(-1, _engine.APP_RECORDS_SIZE))
        self.pools = [self.region.pool_of(i + 1) for i in range(workers + 1)]
        self.living = set(range(workers))
        self.table = AppTable(self.memory, self.region, self.pools[-1], living=lambda: self.living, group=group)
        self.holds = {}
        self.ports = []
        self.total = self.count()

    def count(self):
        """Buffers by state."""
        return self.pools[0].count()

    def attach(self, *, uid=0, hold=True, **keys):
        """Both sides in this process. -> (PlannedApp, its port)."""
        app, fds, reply = self.table.attach(uid, uid, os.getpid(), PortNamed, workers=self.workers, **{"slots": 64} | keys)
        port = attach(reply, fds)
        self.ports.append(port)
        if hold:
            self.hold(app)
        return app, port

    def hold(self, app, worker=None):
        for index in range(self.workers) if worker is None else [worker]:
            self.holds[app.id, index] = app.hold(self.region, index, self.pools[index])
        return self.holds[app.id, index]

    def turn(self, app, worker=0):
        return self.holds[app.id, worker].turn()

    def offer(self, app, frames, *, give=False, worker=0):
        """A turn of a worker that has received these. How many the app took."""
        hold = self.holds[app.id, worker]
        return hold.offer(self.pools[worker], frames, give) if hold.turn() else 0

    def collect(self, app, worker=0):
        """A turn: what the app had sent."""
        hold = self.holds[app.id, worker]
        return hold.collect(self.pools[worker]) if hold.turn() else []

    def facts(self, app):
        """The record, and its counters by name."""
        *facts, _, _ = self.table._records.read(app.place)
        return dict(zip(FACTS, facts, strict=True))

    def counters(self, app):
        return self.table._read(app)[1]

    def detach(self, app):
        """Every worker takes the turn in which it lets go."""
        self.table._records.set_state(app.place, _engine.PR_APP_LEAVING)
        for worker in self.living:
            for _ in range(100):
                if not self.holds[app.id, worker].turn():
                    break
                self.holds[app.id, worker].collect(self.pools[worker])
        return self.table.detach(app.id)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for port in self.ports:
            port.close()
        for app in list(self.table.apps.values()) if kind is None else ():
            self.detach(app)
        after = self.count()
        self.holds.clear()
        self.region.close()
        if kind is None:
            assert after == self.total, "every buffer is free again"


# ---- words of a ring, as an app that keeps no rules writes them ----

def _offset(name):
    return _shm.LAYOUT[f"pr_ring.{name}"][0]


HEAD, CUR, TAIL, NEED = (_offset(name) for name in ("head", "cur", "tail", "sem"))
SLOTS = _shm.LAYOUT["pr_ring"][1]


class Words:
    """The bytes of an app's ring, to be spoiled."""

    def __init__(self, port, direction="tx", worker=0):
        ring = (port.tx_rings if direction == "tx" else port.rx_rings)[worker]
        self.mem = port.region.mem
        geometry = port.region.geometry
        index = port.region._rings[0 if direction == "rx" else 1][worker]
        self.at = geometry["ring_ofs"] + index * geometry["ring_size"]
        self.n = ring.num_slots

    def set(self, offset, value, form="I"):
        struct.pack_into("=" + form, self.mem, self.at + offset, value)

    def get(self, offset, form="I"):
        return struct.unpack_from("=" + form, self.mem, self.at + offset)[0]

    def slot(self, i, index=None, length=None, flags=None):
        """Write what is given; (index, length, flags) as they are."""
        at = self.at + SLOTS + 16 * i
        now = struct.unpack_from("=IHH", self.mem, at)
        new = tuple(n if want is None else want for n, want in zip(now, (index, length, flags), strict=True))
        struct.pack_into("=IHH", self.mem, at, *new)
        return new

    def send(self, n=1):
        """Move head and cur over the next n slots."""
        head = (self.get(HEAD) + n) % self.n
        self.set(CUR, head)
        self.set(HEAD, head)
