"""A lane, as plainly as Python can say it: a list of descriptors between two cursors. Rules: shm/lane.h."""

from .pool import INFLIGHT, Ledger


def index(desc):
    return desc & 0xFFFFFFFF


class Lane:
    def __init__(self, ledger: Ledger, lane_id, capacity, start=0):
        self.ledger, self.id, self.capacity = ledger, lane_id, capacity
        self.queued = []
        self.tail = start % 2**32
        self.skipped = 0

    @property
    def head(self):
        return (self.tail + len(self.queued)) % 2**32

    def put(self, me, descs):
        """How many went: up to the first without room, or whose buffer is not mine."""
        n = 0
        for desc in descs[: self.capacity - len(self.queued)]:
            if not self.ledger.hand_over(me, index(desc), self.id, self.head):
                break
            self.queued.append(desc)
            n += 1
        return n

    def take(self, me, n):
        """Up to n, leaving out those whose word no longer names the slot; another burst only if all of one was left out."""
        got = []
        while self.queued and n and not got:
            burst, self.queued = self.queued[:n], self.queued[n:]
            for desc in burst:
                if self.ledger.accept(me, index(desc), self.id, self.tail):
                    got.append(desc)
                else:
                    self.skipped += 1
                self.tail = (self.tail + 1) % 2**32
        return got

    # Killed halfway: what is in memory then.

    def put_killed(self, me, descs, at):
        """Killed after `at` owner words, before the head."""
        for i, desc in enumerate(descs[: min(at, self.capacity - len(self.queued))]):
            if not self.ledger.hand_over(me, index(desc), self.id, self.head + i):
                break

    def take_killed(self, me, n, at):
        """Killed after `at` owner words, before the tail."""
        for i, desc in enumerate(self.queued[: min(n, at)]):
            self.ledger.accept(me, index(desc), self.id, self.tail + i)

    def reclaim(self):
        """The producer is dead: what is INFLIGHT here and not in [tail, head) goes home."""
        inside = {(index(desc), (self.tail + i) % 2**16) for i, desc in enumerate(self.queued)}
        words = self.ledger.words
        dead = [b for b, w in enumerate(words) if w[:2] == (INFLIGHT, self.id) and (b, w[3]) not in inside]
        for b in dead:
            words[b] = self.ledger.at_home(b)
        return len(dead)
