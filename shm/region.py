"""A region: one memory of buffers and rings in netmap's layout, with its ledger and its counters beside it.

Three segments (segment.py), `/pktring.NAME.mem`, `.ledger` and `.counters`; the picture is in layout.h. They become READY together
when all of them are filled, and carry one generation. The buffers are dealt to owners in equal homes (pool.h).
"""

from __future__ import annotations

import mmap
import os
import time
from array import array

from . import _shm
from .errors import Error
from .pool import Pool
from .segment import PREFIX, Segment, check_space, discard, join_segment, make_segment, start_time, sweep

__all__ = [
    "COUNTER", "COUNTER_NAMES", "DEFAULT_SLOTS", "DEFAULT_STRIDE", "PREFIX", "RX", "Region", "Segment", "TX", "discard", "join_segment",
    "make_segment", "named", "start_time", "sweep",
]  # fmt: skip
PARTS = {"mem": _shm.PR_MEM, "ledger": _shm.PR_LEDGER, "counters": _shm.PR_COUNTERS}
RX, TX = _shm.PR_RX, _shm.PR_TX
DEFAULT_STRIDE = 2048
DEFAULT_SLOTS = 1024


class Region:
    """Rings and buffers in shared memory; made by `create`, joined by `attach`, a context manager.

    `view` is the C core's hold on it, `mem` a memoryview of the whole region, `pool` the buffers of owner 1 of `owners`. The maker
    unlinks the names on close.
    """

    def __init__(self, name: str, segments: dict[str, Segment]):
        header = segments["mem"].header
        self.name = name
        self.generation: int = header["generation"]
        self.owners: int = max(header["owners"], 1)
        self.geometry: dict[str, int] = header["geometry"]
        self._segments = segments
        self._maps: dict[str, mmap.mmap] = {part: segment.map for part, segment in segments.items()}
        for segment in segments.values():
            segment.close()
        self._fork_pid = os.getpid()
        self.mem = memoryview(self._maps["mem"])
        self.view = _shm.View(self._maps["mem"], self._maps["ledger"], self._maps["counters"])
        self._pools: dict[tuple[int, int], Pool] = {}
        self._rings: set[int] = set()
        self._ports = 0

    @classmethod
    def create(
        cls,
        name: str,
        *,
        rings: int = 16,
        slots: int = DEFAULT_SLOTS,
        buffers: int | None = None,
        stride: int = DEFAULT_STRIDE,
        mode: int = 0o600,
        group: str | None = None,
        generation: int | None = None,
        owners: int = 1,
        kept: bool = False,
    ) -> Region:
        """Make the region `name` with room for `rings` rings of up to `slots` slots and `buffers` buffers of `stride` bytes.

        The buffers are split into equal homes of `owners` processes. `kept`: if its maker dies it stays, for a successor to attach
        and take over. Raises E_SHM_SPACE, E_NAME_BUSY (the name is in use by a living process), E_NAME_SQUATTED, E_PERM,
        E_REGION (sizes).
        """
        sweep()
        buffers = rings * slots + 2 if buffers is None else buffers
        shape = (max(rings, 4), rings, slots, buffers, stride)
        try:
            geometry = _shm.carve(*shape)
        except (ValueError, OverflowError) as why:
            raise Error("E_REGION", f"{why}: strides are 512..65536 in steps of 64") from None
        if not 1 <= owners <= (buffers - _shm.FIRST_BUF):
            raise Error("E_REGION", f"{buffers} buffers for {owners} owners: each needs a home")
        sizes = {"mem": geometry["size"], "ledger": geometry["ledger_size"], "counters": geometry["counters_size"]}
        check_space(sum(sizes.values()))
        generation = time.time_ns() if generation is None else generation
        made: dict[str, Segment] = {}
        try:
            for part, kind in PARTS.items():
                # Only the counters are for everyone's eyes; the ledger stays with the engine, whatever the group.
                bits = {"mem": mode, "ledger": 0o600, "counters": mode | 0o444}[part]
                made[part] = make_segment(
                    name, part, sizes[part], kind, bits, group=group, generation=generation, kept=kept, owners=owners, geometry=shape
                )
            region = cls(name, made)
            if owners == 1:
                region.pool_of(1)
            for part in ("counters", "ledger", "mem"):
                made[part].publish()
        except BaseException:
            for segment in made.values():
                segment.retire()
            raise
        return region

    @classmethod
    def attach(cls, name: str, *, generation: int | None = None) -> Region:
        """Map a region that another process made. Raises E_NO_REGION, E_ABI, E_NAME_SQUATTED, E_PERM, E_GENERATION."""
        segments = {part: join_segment(name, part, kind) for part, kind in PARTS.items()}
        found = {segment.header["generation"] for segment in segments.values()}
        if len(found) > 1:
            raise Error("E_GENERATION", f"the segments of {name} are of {len(found)} generations: its maker is at work, try again")
        if generation is not None and found != {generation}:
            raise Error("E_GENERATION", f"{name} is of generation {found.pop()}, not {generation}: attach anew")
        return cls(name, segments)

    def take_over(self) -> None:
        """Make this process the maker of a kept region whose maker is dead, with every ring that is in it."""
        for segment in self._segments.values():
            segment.take_over()
        self._fork_pid = os.getpid()
        self._rings = {ring["ring"] for ring in self.rings()}

    # ---- buffers ----

    @property
    def home_size(self) -> int:
        """Buffers of one owner's home."""
        return (self.geometry["buf_num"] - _shm.FIRST_BUF) // self.owners

    def pool_of(self, owner: int, gen: int = 0) -> Pool:
        """The hold of process `owner` (1 to `owners`) on its buffers, deals its home at the first use. Raises E_OWNER.

        One process uses it: each has a free list of its own. A successor of a dead owner has the same number and another `gen`.
        """
        if not 1 <= owner <= self.owners:
            raise Error("E_OWNER", f"owner {owner} of {self.name}: it was made for 1 to {self.owners}")
        if (owner, gen) not in self._pools:
            self._pools[owner, gen] = pool = Pool(self.view, owner, gen, self.home_size)
            pool.format()
        return self._pools[owner, gen]

    @property
    def pool(self) -> Pool:
        """The buffers of owner 1."""
        return self.pool_of(1)

    # ---- rings ----

    def make_ring(self, direction: int, slots: int, label: str, ringid: int = 0, pool: Pool | None = None) -> tuple[int, _shm.Ring]:
        """Make a ring of `slots` slots over buffers of `pool`, whose owner syncs it. -> (index, ring). Raises E_REGION_FULL."""
        pool = pool or self.pool
        index = next((i for i in range(self.geometry["ring_num"]) if i not in self._rings), None)
        if index is None:
            raise Error("E_REGION_FULL", f"all {self.geometry['ring_num']} rings of {self.name} are in use: make it with more")
        bufs = pool.take(slots)
        if len(bufs) < slots:
            pool.give(bufs)
            raise Error("E_REGION_FULL", f"{slots} buffers wanted, {len(bufs)} free in {self.name}: make it with more buffers")
        try:
            ring = self.view.make_ring(index, direction, slots, ringid, pool.owner, label, bufs)
        except ValueError as why:
            pool.give(bufs)
            raise Error("E_REGION", f"{why}: the region was made for fewer slots a ring") from None
        self._rings.add(index)
        return index, ring

    @property
    def made_here(self) -> bool:
        """Whether this very process made it (a child of fork shares the memory, not the duty to clean up)."""
        return self._segments["mem"].made and os.getpid() == self._fork_pid

    @property
    def slots(self) -> int:
        """The most slots a ring may have here."""
        return (self.geometry["ring_size"] - _shm.LAYOUT["pr_ring"][1]) // _shm.LAYOUT["pr_slot"][1]

    def has_room(self, n_rings: int, slots: int) -> bool:
        """Whether so many rings of so many slots can still be made here, with what their queues keep at hand."""
        left = self.geometry["ring_num"] - len(self._rings)
        return slots <= self.slots and n_rings <= left and self.pool.free >= n_rings * slots

    def drop_ring(self, index: int, pool: Pool | None = None) -> None:
        """Take a ring apart; whatever buffers lie in its slots now go back through `pool`, its owner's."""
        ring = self.view.ring(index)
        held = array("I", (ring.slot(i)[0] for i in range(ring.num_slots)))
        self.view.drop_ring(index)
        self._rings.discard(index)
        (pool or self.pool).give(held)

    def rings(self) -> list[dict]:
        """The rings there are, as the ledger has them: `ring` the number, `owner`, `dir`, `slots`, `row`."""
        return [dict(zip(("ring", "owner", "dir", "slots", "row"), facts, strict=True)) for facts in self.view.rings()]

    def mend(self, owner: int, pool: Pool) -> dict[str, int]:
        """Make the rings of a dead owner whole and its books right; `pool` is its heir's. Raises E_LEDGER: never go on with suspect state.

        To be called when the dead one is fenced and before the heir begins, who then calls `resume` of each ring. What was found:
        `rings`, `slots` that got another buffer, `doubt` slots that were being sent, buffers `reclaimed`, `torn`, `missing`, and frames
        `lost` (drop_crash).
        """
        if pool.owner != owner:
            raise Error("E_OWNER", f"the pool is owner {pool.owner}'s, the rings to be mended are owner {owner}'s")
        suspect, *found = self.view.mend(pool)
        facts = dict(zip(("rings", "slots", "doubt", "reclaimed", "torn", "missing", "lost"), found, strict=True))
        if suspect:
            told = " ".join(f"{name}={n}" for name, n in facts.items())
            raise Error("E_LEDGER", f"{self.name}: what owner {owner} left makes no sense ({told}): stop all that use it and make it anew")
        return facts

    def name_port(self, name: str, tx: list[int], rx: list[int]) -> int:
        """Write a netmap_if over these rings; returns its offset in the region."""
        offset = self.view.name_port(self._ports % self.geometry["if_num"], name[:15], tx, rx)
        self._ports += 1
        return offset

    def counters(self) -> list[dict]:
        """One dict a ring in use: `ring` its number, `row` its label, then every counter by name."""
        return [named(row) for row in _shm.rows(self._maps["counters"])]

    # ---- end ----

    def close(self) -> None:
        """Let go. The maker's names vanish; whoever has the memory mapped keeps it until it lets go too."""
        if self.made_here:
            for segment in self._segments.values():
                segment.made = False
                segment.retire()

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def named(row: tuple[int, str, int, tuple[int, ...]]) -> dict:
    """A counter row as a dict."""
    ring, name, writer, values = row
    return {"ring": ring, "row": name, "writer": writer} | dict(zip(COUNTER_NAMES, values, strict=True))


COUNTER_NAMES = tuple(name for name, _ in _shm.COUNTERS)
COUNTER = {name: i for i, name in enumerate(COUNTER_NAMES)}
