"""The queues of a protocol, as plainly as Python can say it: a lane for each CPU and row. Rules: shm/pktqueue.h."""

from .lane import Lane, index
from .pool import Ledger


class Queues:
    def __init__(self, ledger: Ledger, ncpu, rows, ceiling, capacity, limit):
        self.ledger, self.rows, self.ceiling, self.limit = ledger, rows, ceiling, limit
        self.lanes = [[Lane(ledger, cpu * rows + row, capacity) for row in range(rows)] for cpu in range(ncpu)]
        self.turn = [0] * ncpu
        self.cells = [[{"enqueue": 0, "drop": 0, "over": 0, "dequeue": 0, "lost": 0} for _ in range(rows)] for _ in range(ncpu)]

    def depth(self, cpu):
        return sum(len(lane.queued) for lane in self.lanes[cpu])

    def put(self, me, row, cpu, descs):
        n = self.lanes[cpu][row].put(me, descs[: max(0, self.limit - self.depth(cpu))])
        self.cells[cpu][row]["enqueue"] += n
        self.cells[cpu][row]["drop"] += len(descs) - n
        return n

    def take_row(self, me, cpu, row, n):
        lane, cell = self.lanes[cpu][row], self.cells[cpu][row]
        skipped = lane.skipped
        got = lane.take(me, n)
        cell["dequeue"] += len(got)
        cell["lost"] += lane.skipped - skipped
        return got

    def take(self, me, cpu, n):
        got = []
        for _ in range(self.rows):
            if len(got) == n:
                break
            row, self.turn[cpu] = self.turn[cpu], (self.turn[cpu] + 1) % self.rows
            got += self.take_row(me, cpu, row, n - len(got))
        return got

    def flush(self, me, cpu):
        for row, lane in enumerate(self.lanes[cpu]):
            while lane.queued:
                for desc in self.take_row(me, cpu, row, 64):
                    self.ledger.give(me, index(desc))

    def bury(self, me, row):
        """The row's last holder is dead."""
        unpublished = sum(lanes[row].reclaim() for lanes in self.lanes)
        return unpublished + self.ledger.reclaim_process(me, 1 + row)
