"""Random registrations, traffic, limits, vnets, serves: the engine does what netisr_reference.py does, frame by frame, count by count."""

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from netisr_lab import Lab
from netisr_reference import DEFERRED, DIRECT, HYBRID, Frame, Reference

from pktring.engine.netisr import NO_PORT, Refused

PROTOS = (0, 1, 4, 15)
PORTS = (0, 1, 255, NO_PORT)
POLICIES = {"deferred": DEFERRED, "hybrid": HYBRID, "direct": DIRECT, "default": 0}
protos = st.sampled_from(PROTOS)
frames = st.lists(
    st.tuples(st.sampled_from((0, 1, 2, 7, 255)), st.sampled_from(PORTS), st.sampled_from((None, 0, 1, 5, 2**32 - 1)), st.booleans()),
    min_size=1,
    max_size=12,
)


class Same(RuleBasedStateMachine):
    lab = None

    @initialize(cpus=st.sampled_from([(0,), (0, 1), (0, 2), (3, 1, 8)]))
    def begin(self, cpus):
        self.lab = Lab(len(cpus), maxqlimit=24, defaultqlimit=6, cpus=cpus, buffers=800)
        self.ref = Reference(cpus, 24, 6)
        for end in self.lab.ends:
            end.m2cpuid = lambda proto, descs, source, end=end: (lambda v: None if v == 255 else v)(end.read(descs)[0][0][0])
        self.n = 0

    def both(self, ours, theirs):
        """The same is refused."""
        done = True
        try:
            ours()
        except Refused:
            done = False
        assert done == theirs

    @rule(
        proto=protos,
        policy=st.sampled_from(("source", "flow", "cpu")),
        how=st.sampled_from(sorted(POLICIES)),
        limit=st.integers(0, 30),
        drained=st.booleans(),
    )
    def register(self, proto, policy, how, limit, drained):
        given = {"dispatch": how, "qlimit": limit, "drainedcpu": "m:d" if drained else None}
        done = self.ref.register(proto, policy, POLICIES[how], limit, drained)
        self.both(lambda: self.lab.register(f"p{proto}", proto, policy, **given), done)

    @rule(proto=protos)
    def unregister(self, proto):
        self.both(lambda: self.lab.netisr.unregister(proto), self.ref.unregister(proto))

    @rule(proto=protos, limit=st.integers(0, 30))
    def setqlimit(self, proto, limit):
        self.both(lambda: self.lab.netisr.setqlimit(proto, limit), self.ref.setqlimit(proto, limit))

    @rule(how=st.sampled_from(("deferred", "hybrid", "direct")))
    def set_dispatch(self, how):
        self.lab.netisr.set_dispatch(how)
        self.ref.dispatch = POLICIES[how]

    @precondition(lambda self: len(self.ref.vnets) < 5)
    @rule()
    def make_vnet(self):
        self.ref.vnets.add(self.lab.netisr.make_vnet())

    @rule(port=st.sampled_from(PORTS[:3]), ifindex=st.sampled_from((1, 2, 2**32 - 1)), vnet=st.integers(0, 4))
    def set_port(self, port, ifindex, vnet):
        with contextlib.suppress(Refused):
            self.lab.netisr.set_port(port, ifindex, vnet)
            self.ref.set_port(port, ifindex, vnet)

    @rule(proto=protos, vnet=st.integers(0, 4), yes=st.booleans())
    def allow(self, proto, vnet, yes):
        call = self.lab.netisr.register_vnet if yes else self.lab.netisr.unregister_vnet
        self.both(lambda: call(proto, vnet), self.ref.allow(proto, vnet, yes))

    @rule(who=st.integers(0, 3), proto=protos, source=st.sampled_from((0, 1, 2, 2**32 - 1)), some=frames, queue=st.booleans())
    def send(self, who, proto, source, some, queue):
        who %= self.lab.workers + 1
        end, descs, theirs = self.lab.ends[who], [], []
        for first, port, hash, long in some:
            data = bytes([first]) + self.n.to_bytes(4) + bytes(500 * long)
            self.n += 1
            descs += end.make(data, port, hash)
            theirs.append(Frame(data, port, hash))
        got = (end.queue_src if queue else end.dispatch_src)(proto, source, descs)
        want = self.ref.send(who, proto, source, theirs, queue)
        assert got == {0: 0, "ENOPROTOOPT": -92, "ENOBUFS": -105}[want]

    @rule(ws=st.integers(0, 2))
    def serve(self, ws):
        ws %= self.lab.workers
        self.lab.serve(ws)
        self.ref.serve(ws)

    @invariant()
    def the_same(self):
        if not self.lab:
            return
        assert self.lab.seen == self.ref.seen
        assert self.lab.drained == self.ref.drained
        for proto in self.ref.protocols:
            for ws in range(self.lab.workers):
                ours, theirs = self.lab.work(proto, ws), self.ref.work(proto, ws)
                assert {key: ours[key] for key in theirs} == theirs, (proto, ws)
        self.lab.check()

    def teardown(self):
        if self.lab:
            self.lab.close()


Same.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSame = Same.TestCase
