"""Netisr in one process: a region, tables, and an end a worker and one for the controller, with every frame that a handler saw.

with Lab(workers=2) as lab:
    lab.register("ip", 1, policy="flow")
    lab.queue(0, 1, [b"a", b"b"])          # worker 0's end, protocol 1
    lab.serve(1)
    assert lab.seen == [(1, 1, b"b")]      # (workstream or producer that ran the handler, protocol, frame)
"""

import itertools
import os

from pktring.engine.netisr import NO_PORT, End, Handler, Netisr
from pktring.shm.region import Region

_n = itertools.count()


class Lab:
    def __init__(self, workers=1, *, buffers=None, stride=512, flows="", cpus=(), bells=(), pool=True, **geometry):
        self.workers = workers
        owners = workers + 1
        home = buffers or 512
        name = f"t{os.getpid()}-netisr{next(_n)}"
        self.region = Region.create(name, rings=4, slots=8, buffers=2 + owners * home, stride=stride, owners=owners)
        pools = [self.region.pool_of(i + 1) for i in range(owners)]
        self.said = []
        self.netisr = Netisr.make(
            workers, cpus=cpus, bells=bells, pool=pools[-1] if pool else None, view=self.region.view, log=self.said.append, **geometry
        )
        self.seen = []  # in order
        self.drained = []
        self.hooks = []  # run in the handler, first come first served: hook(end, proto, frames)
        self.ends = [self.end(i, i, pools[i], flows) for i in range(workers)]
        self.controller = self.end(workers, None, pools[-1], flows)
        self.ends.append(self.controller)
        self.pools = pools

    def end(self, producer, workstream, pool, flows=""):
        end = End(self.netisr, pool, self.region.view, producer=producer, workstream=workstream, rss_key=flows or "none")

        def handle(proto, descs):
            frames = [frame for frame, *_ in end.read(descs)]
            self.seen += [(producer, proto, frame) for frame in frames]
            if self.hooks:
                self.hooks.pop(0)(end, proto, frames)

        end.handle = handle
        end.drained = lambda proto, cpu: self.drained.append((producer, proto, cpu))
        return end

    def register(self, name="ip", proto=1, policy="source", **given):
        if policy == "cpu":
            given.setdefault("m2cpuid", "t:t")
        return self.netisr.register(Handler(name, proto, given.pop("handler", "t:handler"), policy, **given))

    # ---- traffic: `who` is an index of ends; the controller's is the last ----

    def make(self, who, frames, port=NO_PORT, hash=None):
        descs = []
        for frame in frames:
            made = self.ends[who].make(frame, port, hash)
            assert made, "the pool is dry"
            descs += made
        return descs

    def queue(self, who, proto, frames, *, source=0, port=NO_PORT, hash=None):
        return self.ends[who].queue_src(proto, source, self.make(who, frames, port, hash))

    def dispatch(self, who, proto, frames, *, source=0, port=NO_PORT, hash=None):
        return self.ends[who].dispatch_src(proto, source, self.make(who, frames, port, hash))

    def serve(self, *who):
        """Each of these workers until it has nothing to do; all by default. How many descriptors that were."""
        taken = 0
        for i in who or range(self.workers):
            while n := self.ends[i].serve():
                taken += n
        return taken

    def work(self, proto=1, ws=0):
        return self.netisr.work(proto, ws)

    def flags(self, ws=0):
        return self.netisr.workstream(ws)[3]

    def pending(self, ws=0):
        return self.netisr.workstream(ws)[4]

    def wakes(self, who=0, proto=1):
        return self.netisr.done_by(proto, who)["wakes"]

    def frames(self, proto=1, who=None):
        """What handlers of a protocol saw, in order."""
        return [frame for by, p, frame in self.seen if p == proto and who in (None, by)]

    def check(self):
        """N-A1, N-A2 and no buffer astray, at rest."""
        for n in self.netisr.registered():
            for ws in range(self.workers):
                work = self.netisr.work(n, ws)
                by_worker = work["handled"] - work["dispatched"] - work["hybrid_dispatched"]
                assert work["queued"] == work["len"] + by_worker + work["purged"] + work["crashed"], (n, ws, work)
                assert work["len"] <= work["watermark"] or not work["len"], (n, ws, work)
        counts = self.pools[0].count()
        waiting = sum(self.netisr.work(n, ws)["len"] for n in range(16) for ws in range(self.workers))
        assert counts["owned"] == 0 and counts["broken"] == 0, counts
        assert (waiting <= counts["inflight"] <= waiting * 64) and counts["inflight"] + counts["free"] + 2 == self.pools[0].n, counts

    def close(self):
        self.region.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def numbered(n, start=0):
    """Frames that are all different, in order."""
    return [i.to_bytes(4) for i in range(start, start + n)]
