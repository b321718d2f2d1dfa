"""A port: rings of a region, served by a device. What `pktring.open` returns."""

from __future__ import annotations

import contextlib
import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pktring.shm import _shm
from pktring.shm.device import Device
from pktring.shm.errors import Error
from pktring.shm.region import COUNTER_NAMES, RX, TX, Region

from .batch import Batch

if TYPE_CHECKING:
    from scapy.supersocket import SuperSocket


class Watch(Protocol):
    """Link events of the interface behind a port."""

    def fileno(self) -> int: ...
    def events(self) -> Sequence[Any]: ...
    def close(self) -> None: ...


POLL_S = 0.1  # no wait is longer, whatever wake-up was lost
PERIODIC_S = 0.2  # kernel drop counts are read this often
MOST_UNTOLD = 256  # link events kept for who never asks


class Port:
    """Receive and send bursts of frames; a context manager. `fileno()` works with select, poll and asyncio."""

    def __init__(
        self, name: str, region: Region, device: Device, watch: Watch | None, *, slots: int, directions: str = "rxtx", why: str = ""
    ):
        self.name = name
        self.region = region
        self.device = device
        self.why = why  # this driver and no other
        self._watch = watch
        self._closed = False
        self._batch: Batch | None = None
        self._turn = 0
        self._drops_read = 0.0
        self._indexes: dict[int, int] = {}  # the region's number of each ring: its direction
        self._untold: deque[Any] = deque(maxlen=MOST_UNTOLD)
        self.on_close: Callable[[], None] | None = None
        self.rx_rings = self._rings(RX, slots) if "rx" in directions else []
        self.tx_rings = self._rings(TX, slots) if "tx" in directions else []
        self.event_fd = watch.fileno() if watch else -1
        self._poll = self._make_poll()

    def _rings(self, direction: int, slots: int) -> list[_shm.Ring]:
        rings = []
        for i, queue in enumerate(self.device.queues):
            label = f"{self.name[-36:]} {'rx' if direction == RX else 'tx'}{i}"
            index, ring = self.region.make_ring(direction, slots, label, i)
            ring.bind(queue.device)
            self._indexes[index] = direction
            rings.append(ring)
        return rings

    def _make_poll(self) -> select.epoll:
        poll = select.epoll()
        if self.event_fd >= 0:
            poll.register(self.event_fd, select.EPOLLIN)
        self._listen(poll)
        return poll

    def _listen(self, poll: select.epoll) -> None:
        """Wait for the queues too. Again when an interface is back: behind the same number there may be another file."""
        for queue in self.device.queues if self.rx_rings else ():
            if queue.rx_fd >= 0:
                with contextlib.suppress(OSError):
                    poll.unregister(queue.rx_fd)
                with contextlib.suppress(PermissionError):  # a regular file: always ready
                    poll.register(queue.rx_fd, select.EPOLLIN)

    # ---- receive ----

    def fileno(self) -> int:
        """A descriptor that is readable when `recv` has something to do."""
        return self._poll.fileno()

    def recv(self, max: int = 256, timeout: float | None = 1.0) -> Batch:
        """Receive up to `max` frames; waits `timeout` seconds for the first (None: for ever). The batch may be empty.

        Releases the batch before it. Raises E_CLOSED, and E_PCAP where a file is damaged.
        """
        self._check()
        if self._batch:
            self._batch.release()
            self._batch = None
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for _ in self.rx_rings:
                ring = self.rx_rings[self._turn % len(self.rx_rings)]
                self._turn += 1
                if ring.ready or ring.sync() > 0:
                    self._batch = self._take(ring, max)
                    return self._batch
            left = POLL_S if deadline is None else min(deadline - time.monotonic(), POLL_S)
            if self.ended:
                self.device.check()
            else:
                self._wait(left if left > 0 else 0)
            if left <= 0 or self.ended or not self.rx_rings:
                starts = array("I")
                ring = self.rx_rings[0] if self.rx_rings else self.tx_rings[0]
                return Batch(self, ring, starts, 0, ring.head)

    def _wait(self, left: float) -> None:
        """Sleep until there may be a frame. What else made the descriptor readable is seen to, or it would stay so."""
        for fd, what in self._poll.poll(left):
            if fd == self.event_fd:
                self._follow()
            elif what & select.EPOLLERR:
                self.read_kernel_drops()
        self._periodic()

    def _take(self, ring: _shm.Ring, most: int) -> Batch:
        starts = array("I", bytes(4 * most))
        n, end = ring.peek(starts, most)
        self._periodic()
        return Batch(self, ring, starts, n, end)

    def batches(self, timeout: float | None = None, max: int = 256) -> Iterator[Batch]:
        """Iterate over batches as they come; ends after `timeout` seconds without a frame, or at a file's end."""
        while not self._closed:
            batch = self.recv(max, timeout)
            if not len(batch):
                return
            yield batch

    @property
    def ended(self) -> bool:
        """True at the end of a file: nothing more will come."""
        return bool(self.rx_rings) and all(r.device_flags & _shm.PR_DEV_END and not r.ready for r in self.rx_rings)

    # ---- send ----

    def send(self, frames: Sequence[Any]) -> int:
        """Queue frames (bytes-like) and send what the device takes at once. Returns how many were accepted.

        Fewer than given means the ring is full: call again. Raises ValueError for a frame longer than any ring holds.
        """
        self._check()
        if not self.tx_rings:
            raise Error("E_DIRECTION", f"{self.name} cannot send")
        if isinstance(frames, (bytes, bytearray, memoryview)):
            raise TypeError("send takes a sequence of frames: send([frame])")
        ring = self.tx_rings[0]
        ring.sync()
        accepted = ring.put(frames)
        ring.sync()
        if ring.device_error:
            self._follow()
        return accepted

    def flush(self) -> None:
        """Hand everything queued to the device, as far as it takes it. Raises E_CAPTURE_SPACE when a file's disk is full."""
        for ring in self.tx_rings:
            ring.sync()
            if ring.device_flags & _shm.PR_DEV_PAUSED and self.device.proceed():
                ring.sync()

    def tx_ring_for(self, rx: _shm.Ring) -> _shm.Ring:
        """The transmit ring that frames of a receive ring go to."""
        if not self.tx_rings:
            raise Error("E_DIRECTION", f"{self.name} cannot send")
        return self.tx_rings[0]

    # ---- whole super-frames ----

    @property
    def carries_whole(self) -> bool:
        """Whether super-frames may be sent to it as they are."""
        return bool(self.tx_rings) and all(r.device_flags & _shm.PR_DEV_CARRIES_GSO for r in self.tx_rings)

    def carry_whole(self, on: bool) -> None:
        """Receive super-frames whole instead of cut into wire frames."""
        for ring in self.rx_rings:
            flags = ring.device_flags & ~_shm.PR_DEV_WHOLE
            ring.device_flags = flags | _shm.PR_DEV_WHOLE if on else flags

    # ---- facts ----

    def facts(self) -> dict:
        """What the port is: driver, mode, MTU, ... as `pktring stat` shows it."""
        return self.device.facts() | {"why": self.why}

    def warnings(self) -> list[str]:
        """What a user should know about this interface, one line each."""
        return self.device.warnings()

    def stats(self, direction: str = "rxtx") -> dict[str, int]:
        """Counters by name (`pktring help counters`), summed over the port's rings: those of one direction, rx or tx, or all."""
        self.read_kernel_drops()
        wanted = {index for index, d in self._indexes.items() if ("rx" if d == RX else "tx") in direction}
        rows = [row for row in self.region.counters() if row["ring"] in wanted]
        return {name: sum(row[name] for row in rows) for name in COUNTER_NAMES}

    def read_kernel_drops(self) -> None:
        """Bring what the kernel dropped before us into the counters."""
        for ring in self.rx_rings:
            ring.stats()
        self._drops_read = time.monotonic()

    def events(self) -> Sequence[Any]:
        """Link events since the last call (each has `.kind` and `.line`); a port whose interface is back is bound again."""
        self._follow()
        untold, self._untold = list(self._untold), deque(maxlen=MOST_UNTOLD)
        return untold

    def _follow(self) -> None:
        for event in self._watch.events() if self._watch else ():
            self._untold.append(event)
            self.device.follow(event)
            if event.kind == "back":
                self._listen(self._poll)
        for ring in (*self.rx_rings, *self.tx_rings):
            ring.device_error = 0

    def _periodic(self) -> None:
        if time.monotonic() - self._drops_read > PERIODIC_S:
            self.read_kernel_drops()
            self._follow()

    def scapy(self) -> SuperSocket:
        """This port as a scapy socket, for `sniff(opened_socket=...)` and `sendp(..., socket=...)`."""
        from .scapy_socket import PortSocket

        return PortSocket(self)

    # ---- end ----

    def _check(self) -> None:
        if self._closed:
            raise Error("E_CLOSED", f"{self.name} is closed")

    def close(self) -> None:
        """Close the device and give rings and buffers back to the region."""
        if self._closed:
            return
        self._closed = True
        if self._batch:
            self._batch.release()
        for ring in self.tx_rings:
            ring.sync()
        self._poll.close()
        if self._watch:
            self._watch.close()
        for ring in (*self.rx_rings, *self.tx_rings):
            ring.bind(None)
        self.device.close()
        for index in self._indexes:
            self.region.drop_ring(index)
        if self.on_close:
            self.on_close()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
