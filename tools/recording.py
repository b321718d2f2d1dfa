"""A capture file as a port that frames of several ports go to: an interface block each, and what the kernel dropped in its statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pktring.drivers.pcap import SNAPLEN, Interface, Reader, Stats, Writer
from pktring.drivers.rotation import Rotation
from pktring.engine.port import Port
from pktring.ports import own_region
from pktring.shm.errors import Error
from pktring.shm.region import DEFAULT_SLOTS, Region

UNWANTED = {"drop_filter", "drop_direction", "drop_limit"}  # frames that nobody asked for are not losses
FLUSH_S = 2.0  # for a pipe whose reader is slow


class Recording:
    """`port` is what a forward sends to; after a run that came back as "paused" call `writer.proceed`. A context manager."""

    def __init__(
        self,
        file: str | int,
        sources: Sequence[Port],
        *,
        snaplen: int = SNAPLEN,
        filter_text: str = "",
        rotation: Rotation | None = None,
        closed: Callable[[str], object] | None = None,
    ):
        self.unwritten = 0  # when closed: frames that the full disk, or the reader that went away, left in the ring
        self._blocks = [(source, block) for source in sources for block in blocks(source, snaplen, filter_text)]
        self.writer = Writer(
            file, [block for _, block in self._blocks], rotation=rotation, stats=self._stats, closed=closed, start_s=_start_s(sources)
        )
        try:
            self.port = Port(f"pcap:{file}", _region(sources), self.writer, None, slots=DEFAULT_SLOTS, directions="tx")
        except BaseException:
            self.writer.close()
            raise

    def tell_drops(self) -> int:
        """Let each interface's next record say how many frames were dropped before it. -> how many in all."""
        drops = {i: source.stats()["drop_kernel"] for i, (source, _) in enumerate(self._blocks) if not isinstance(source.device, Reader)}
        for i, n in drops.items():
            self.writer.dropped(i, n)
        return sum(drops.values())

    def flush(self) -> None:
        """Write what is still in the ring. Raises E_CAPTURE_SPACE."""
        deadline = time.monotonic() + FLUSH_S
        while self._pending() and time.monotonic() < deadline:
            for ring in self.port.tx_rings:
                ring.sync()
            if self.writer.paused and not self.writer.proceed():
                return
            if self._pending():
                time.sleep(0.001)

    def _pending(self) -> bool:
        return any(ring.head != ring.hwcur for ring in self.port.tx_rings)

    def _stats(self) -> list[Stats]:
        return [_counts(source) for source, _ in self._blocks]

    def close(self) -> None:
        """End the file with its statistics. Raises E_CAPTURE_SPACE when there is no room for them."""
        stats = self.port.stats()
        self.unwritten = stats["tx_queued"] - stats["tx_frames"]
        self.port.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def blocks(source: Port, snaplen: int, filter_text: str) -> list[Interface]:
    """What a file says of where these frames came from: an interface, or those of the file that is read."""
    if isinstance(source.device, Reader):
        found = source.device.interfaces or [{}]
        names = [block.get("name") or f"interface {n}" for n, block in enumerate(found)]
        return [Interface(name, snaplen=snaplen, filter=filter_text, port=n) for n, name in enumerate(names)]
    link = getattr(source.device, "link", None)
    name = source.facts().get("interface", source.name)
    number = getattr(source.device, "port", 0)
    mac = link.mac if link and len(link.mac) == 6 else None
    return [Interface(name, snaplen=snaplen, filter=filter_text, hardware=link.driver if link else "", mac=mac, port=number)]


def lost(source: Port) -> dict[str, int]:
    """Frames of a source that were wanted and are gone, by reason; not those that the kernel dropped."""
    return {name: n for name, n in source.stats().items() if n and name.startswith("drop_") and name not in {"drop_kernel", *UNWANTED}}


def _counts(source: Port) -> Stats:
    if isinstance(source.device, Reader):
        return Stats()
    stats = source.stats()
    kernel = stats["drop_kernel"]
    wanted = stats["rx_frames"] - sum(stats[name] for name in UNWANTED)
    return Stats(received=stats["rx_frames"] + kernel, accepted=wanted, dropped_kernel=kernel)


def _start_s(sources: Sequence[Port]) -> float | None:
    """When the first file begins: now, or with the first frame of a file that is read."""
    for source in sources:
        if isinstance(source.device, Reader) and source.device.first_ns is not None:
            return source.device.first_ns / 1e9
    return None


def _region(sources: Sequence[Port]) -> Region:
    """The sources' own region, so that buffers change rings and nothing is copied; frames of an engine's port are copied into another."""
    for source in sources:
        if source.region.has_room(1, DEFAULT_SLOTS):
            return source.region
    if any(source.device.facts().get("driver") == "app" for source in sources):
        return own_region(1, DEFAULT_SLOTS)
    raise Error("E_REGION_FULL", f"{len(sources)} ports fill their region: name fewer, or give them fewer ?queues=")
