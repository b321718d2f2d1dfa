"""Frames in hand, and handlers that are run over them as a worker runs them.

with inhand.Bench({"left": 0, "right": 1}) as bench:
    assert bench.verdicts("forward:right", [b"a frame"]) == [1]
"""

import itertools
import os

from pktring.engine import _engine
from pktring.engine.handlers import STATS_SIZE, HandlerTable, resolve
from pktring.shm.region import Region

PORTS = {"left": 0, "right": 1, "far": 5}
STRIDE = 512
ROOM = STRIDE - 256  # of a buffer: longer frames span several
_numbers = itertools.count()


class Bench:
    """A region of small buffers, a worker's handler table over it, and what it logged."""

    def __init__(self, ports=PORTS):
        self.ports = ports
        self.lines = []

    def __enter__(self):
        self.region = Region.create(f"test-inhand-{os.getpid()}-{next(_numbers)}", rings=2, slots=300, stride=STRIDE)
        self.stats_memory = bytearray(STATS_SIZE)
        self.table = HandlerTable(self.region, self.ports, self.lines.append)
        self.table.attach(self.stats_memory, self.region.pool)
        self.free = self.region.pool.free
        self.hand = _engine.Hand(self.region.view, self.region.pool)
        return self

    def __exit__(self, kind, *exc):
        self.hand.free()
        assert kind or self.region.pool.free == self.free, "every buffer is home again"
        self.region.close()

    def load(self, handler, proto=1):
        """Resolve and install a handler."""
        self.table.install(proto, resolve(handler, self.ports))

    def take(self, frames, **facts):
        """Put these frames, and no others, into the hand; `facts` are lists of what `Hand.set` takes."""
        self.hand.free()
        assert self.hand.take_frames(frames) == len(frames)
        for i in range(len(frames)):
            self.hand.set(i, **{name: values[i] for name, values in facts.items()})

    def run(self, proto=1):
        """Verdicts of the frames in hand."""
        return self.hand.run(self.table, proto)

    def verdicts(self, handler, frames, **facts):
        """Verdicts of a handler for these frames."""
        self.load(handler)
        self.take(frames, **facts)
        return self.run()

    def stats(self, proto=1):
        """What is counted of a protocol's handler."""
        return self.table.stats(proto)

    def seen(self, look, frames, **facts):
        """What `look(batch)` returns inside a handler; an exception comes out of here."""
        found = []

        def handler(batch):
            try:
                found.append(look(batch))
            except BaseException as why:
                found.append(why)

        self.verdicts(handler, frames, **facts)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]
