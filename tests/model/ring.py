"""The netmap ring, as plainly as Python can say it: the reference that the C core is compared with.

Indexes run 0..n-1. The app moves head and cur; the engine keeps hwcur and hwtail and is the only one to move tail.
Rules: netmap(4) and the table "sync validation" of its control API; one slot is always unusable.
"""

from dataclasses import dataclass, field

RX, TX = 0, 1


@dataclass
class Ring:
    n: int
    dir: int
    first_buf: int = 2
    bufs: int = 0  # buffers there are
    head: int = 0
    cur: int = 0
    tail: int = 0
    hwcur: int = 0
    hwtail: int = 0
    rhead: int = 0
    reinits: int = 0
    slots: list[tuple[int, int, int]] = field(default_factory=list)  # (buf_idx, len, flags)

    def __post_init__(self):
        self.bufs = self.bufs or self.n + 8
        self.hwtail = self.tail = self.n - 1 if self.dir == TX else 0
        self.slots = [(self.first_buf + i, 1792, 0) for i in range(self.n)]

    def dist(self, a, b):
        return (b - a) % self.n

    def within(self, a, i, b):
        return self.dist(a, i) <= self.dist(a, b)

    def enter(self):
        """The engine looks at what the app did. False = the ring was re-initialised."""
        lowest = self.hwcur if self.dir == RX else self.rhead
        in_range = self.head < self.n and self.cur < self.n
        if not in_range or not self.within(lowest, self.head, self.hwtail) or not self.within(self.head, self.cur, self.hwtail):
            self.reinit()
            return False
        if self.dir == RX:
            self.hwcur = self.head
        else:
            self.rhead = self.head
        return True

    def reinit(self):
        self.slots = [(0, 0, f) if not 2 <= b < self.bufs else (b, 0 if ln > 1792 else ln, f) for b, ln, f in self.slots]
        self.rhead = self.head = self.cur = self.hwcur
        self.tail = self.hwtail
        self.reinits += 1

    # RX: the engine fills
    def space(self):
        return self.n - 1 - self.dist(self.hwcur, self.hwtail)

    def fill(self, lengths):
        for length in lengths:
            buf, _, _ = self.slots[self.hwtail]
            self.slots[self.hwtail] = (buf, length, 1)
            self.hwtail = (self.hwtail + 1) % self.n
        self.tail = self.hwtail

    # TX: the engine sends
    def pending(self):
        return self.dist(self.hwcur, self.rhead)

    def done(self, k):
        self.hwcur = (self.hwcur + k) % self.n
        self.tail = self.hwtail = (self.hwcur - 1) % self.n

    # the app
    def ready(self):
        return self.dist(self.head, self.tail)

    def advance(self, to):
        self.head = self.cur = to
