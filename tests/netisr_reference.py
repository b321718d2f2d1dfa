"""netisr(9) once more, in plain Python over lists: what a frame's fate and the counters are, for test_netisr_model.py. Written from the
specification, not from the engine: queues are lists, purging is filtering them. No deaths, one thread, bursts of frames in order."""

from collections import Counter
from dataclasses import dataclass, field

DEFERRED, HYBRID, DIRECT = 1, 2, 3


@dataclass
class Frame:
    data: bytes
    port: int
    hash: int | None
    vnet: int = 0
    life: object = None


@dataclass
class Protocol:
    policy: str
    dispatch: int
    qlimit: int
    vnets: set = field(default_factory=set)
    drained: bool = False


class Reference:
    def __init__(self, cpus, maxqlimit, default):
        self.cpus, self.maxqlimit, self.default = cpus, maxqlimit, default
        self.w = len(cpus)
        self.dispatch = DIRECT
        self.protocols = {}
        self.ports = {}  # number -> (ifindex, vnet, life)
        self.vnets = {0}
        self.queue = {}  # (proto, ws) -> per producer: a list
        self.count = Counter()  # (name, proto, ws or producer)
        self.high = Counter()
        self.pending = [set() for _ in cpus]
        self.scheduled = [False] * self.w
        self.seen = []  # (by, proto, data)
        self.drained = []

    # ---- the controller ----

    def register(self, proto, policy, dispatch, qlimit, drained):
        if proto in self.protocols:
            return False
        limit = min(qlimit, self.maxqlimit) or self.default
        self.protocols[proto] = Protocol(policy, dispatch, limit, set(self.vnets), drained)
        for ws in range(self.w):
            self.queue[proto, ws] = [[] for _ in range(self.w + 1)]
            self.high[proto, ws] = 0
        for key in [key for key in self.count if key[1] == proto]:
            del self.count[key]
        return True

    def unregister(self, proto):
        if proto not in self.protocols:
            return False
        del self.protocols[proto]
        for ws in range(self.w):
            del self.queue[proto, ws]
        return True

    def setqlimit(self, proto, qlimit):
        if proto not in self.protocols or qlimit > self.maxqlimit:
            return False
        self.protocols[proto].qlimit = qlimit
        return True

    def set_port(self, port, ifindex, vnet):
        self.ports[port] = (ifindex, vnet, object())

    def allow(self, proto, vnet, yes):
        if proto not in self.protocols or vnet not in self.vnets:
            return False
        p = self.protocols[proto]
        if yes:
            p.vnets.add(vnet)
        elif vnet in p.vnets:
            p.vnets.discard(vnet)
            for ws in range(self.w):
                for lane in self.queue[proto, ws]:
                    gone = [f for f in lane if f.vnet == vnet]
                    self.count["purged", proto, ws] += len(gone)
                    lane[:] = [f for f in lane if f.vnet != vnet]
        return True

    # ---- traffic ----

    def place(self, proto, frame, source, me, hybrid):
        p = self.protocols[proto]
        by_source = self.ports.get(frame.port, (0,))[0] + source
        if self.w == 1:
            return 0
        if p.policy == "source":
            return by_source % self.w
        if p.policy == "flow":
            return (by_source if frame.hash is None else frame.hash) % self.w
        v = frame.data[0]  # what the m2cpuid of this test says; 255 = no CPU
        if v != 255:
            return v % self.w
        return self.cpus[me] % self.w if hybrid else by_source % self.w

    def send(self, who, proto, source, frames, always_queue):
        """The errno, 0 = all went where they belong."""
        if proto not in self.protocols:
            self.count["noproto", proto, who] += len(frames)
            return "ENOPROTOOPT"
        p = self.protocols[proto]
        status = 0
        let_in = []
        for f in frames:
            _, f.vnet, f.life = self.ports.get(f.port, (0, 0, None))
            if f.vnet in p.vnets:
                let_in.append(f)
            else:
                self.count["noproto", proto, who] += 1
                status = "ENOPROTOOPT"
        how = DEFERRED if always_queue else p.dispatch or self.dispatch
        worker = who < self.w
        if how == DIRECT:
            self.count["dispatched", proto, who] += len(let_in)
            self.seen += [(who, proto, f.data) for f in let_in]
            return status
        hybrid = how == HYBRID and worker
        by_ws = {}
        for f in let_in:
            by_ws.setdefault(self.place(proto, f, source, who, hybrid), []).append(f)
        mine = by_ws.pop(who, []) if hybrid and not self.scheduled[who] else []
        for ws, some in by_ws.items():
            if not self.enqueue(who, proto, ws, some):
                status = status or "ENOBUFS"
        if mine:
            self.seen += [(who, proto, f.data) for f in mine]
            self.count["hybrid", proto, who] += len(mine)
        return status

    def enqueue(self, who, proto, ws, frames):
        lanes = self.queue[proto, ws]
        room = max(0, self.protocols[proto].qlimit - sum(map(len, lanes)))
        lanes[who] += frames[:room]
        self.count["queued", proto, ws] += len(frames[:room])
        self.count["qdrops", proto, ws] += len(frames[room:])
        if frames[:room]:
            self.high[proto, ws] = max(self.high[proto, ws], sum(map(len, lanes)))
            self.pending[ws].add(proto)
            if not self.scheduled[ws]:
                self.scheduled[ws] = True
                self.count["wakes", proto, who] += 1
        return len(frames) <= room

    def serve(self, ws):
        for proto in sorted(self.pending[ws]):
            if proto not in self.protocols:
                continue
            batch = [f for lane in self.queue[proto, ws] for f in lane]
            for lane in self.queue[proto, ws]:
                lane.clear()
            self.count["handled", proto, ws] += len(batch)
            alive = [f for f in batch if f.life is None or self.ports[f.port][2] is f.life]
            self.seen += [(ws, proto, f.data) for f in alive]
            if batch and self.protocols[proto].drained:
                self.drained.append((ws, proto, self.cpus[ws]))
        self.pending[ws].clear()
        self.scheduled[ws] = False

    # ---- what monitors see ----

    def work(self, proto, ws):
        c = self.count
        dispatched, hybrid = c["dispatched", proto, ws], c["hybrid", proto, ws]
        return {
            "len": sum(map(len, self.queue[proto, ws])),
            "watermark": self.high[proto, ws],
            "dispatched": dispatched,
            "hybrid_dispatched": hybrid,
            "qdrops": c["qdrops", proto, ws],
            "queued": c["queued", proto, ws],
            "handled": c["handled", proto, ws] + dispatched + hybrid,
            "purged": c["purged", proto, ws],
            "crashed": 0,
            "noproto": c["noproto", proto, ws],
            "wakes": c["wakes", proto, ws],
        }
