"""The ledger, as plainly as Python can say it: a word is (state, owner, generation, aux). Rules: shm/pool.h.

The model does not say which free buffers a take yields, only whether those that came were right: `took` is told.
"""

RESERVED, FREE, OWNED, INFLIGHT, LENT, KERNEL = range(6)
NOBODY = (RESERVED, 0, 0, 0)
FIRST = 2


class Ledger:
    def __init__(self, n, home_size):
        self.words = [NOBODY] * n
        self.home_size = home_size

    def home_of(self, b):
        return 1 + (b - FIRST) // self.home_size

    def at_home(self, b):
        return (FREE, self.home_of(b), 0, 0)

    def change(self, b, allowed, to):
        """One store to one word, if it says what it must."""
        if not (b < len(self.words) and allowed(*self.words[b])):
            return False
        self.words[b] = to
        return True

    # A process is (owner, generation).

    def owns(self, me, b):
        return b < len(self.words) and self.words[b] == (OWNED, *me, 0)

    def deal(self, me):
        for b in self.where(lambda *w: w == NOBODY):
            if b >= FIRST and self.home_of(b) == me[0]:
                self.words[b] = self.at_home(b)

    def free(self, me):
        return self.where(lambda state, owner, gen, aux: (state, owner) == (FREE, me[0]))

    def took(self, me, bufs, wanted):
        free = self.free(me)
        right = len(bufs) == len(set(bufs)) == min(wanted, len(free)) and set(bufs) <= set(free)
        for b in bufs:
            self.words[b] = (OWNED, *me, 0)
        return right

    def give(self, me, b):
        return self.owns(me, b) and self.change(b, lambda *w: True, self.at_home(b))

    def hand_over(self, me, b, lane, pos):
        return self.owns(me, b) and self.change(b, lambda *w: True, (INFLIGHT, lane, me[1], pos % 2**16))

    def accept(self, me, b, lane, pos):
        return self.change(b, lambda state, owner, gen, aux: (state, owner, aux) == (INFLIGHT, lane, pos % 2**16), (OWNED, *me, 0))

    def lend(self, me, b, app):
        return self.owns(me, b) and self.change(b, lambda *w: True, (LENT, app, me[1], 0))

    def unlend(self, me, b, app):
        return self.change(b, lambda state, owner, *_: (state, owner) == (LENT, app), (OWNED, *me, 0))

    def to_kernel(self, me, b, port, gen):
        return self.owns(me, b) and self.change(b, lambda *w: True, (KERNEL, port, gen, 0))

    def from_kernel(self, me, b, port, gen):
        return self.change(b, lambda *w: w == (KERNEL, port, gen, 0), (OWNED, *me, 0))

    # After a death.

    def reclaim(self, allowed):
        dead = self.where(allowed)
        for b in dead:
            self.words[b] = self.at_home(b)
        return len(dead)

    def reclaim_process(self, heir, dead):
        return self.reclaim(lambda *w: w[:2] == (OWNED, dead) and w != (OWNED, *heir, 0))

    def reclaim_app(self, app):
        return self.reclaim(lambda *w: w[:2] == (LENT, app))

    def reclaim_socket(self, port, gen):
        return self.reclaim(lambda *w: w == (KERNEL, port, gen, 0))

    def where(self, test):
        return [b for b, word in enumerate(self.words) if test(*word)]
