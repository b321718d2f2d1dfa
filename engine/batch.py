"""A burst of received frames, still in the shared ring."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from pktring.shm import _shm
from pktring.shm.errors import Error

if TYPE_CHECKING:
    import numpy as np

    from .port import Port


class Burst:
    """What can be asked of frames, wherever they are: in a ring (Batch), in a worker's hands (handed.Handed)."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _fill(self, which: int, out: np.ndarray) -> None:
        raise NotImplementedError

    def _gather(self, width: int, out: np.ndarray) -> None:
        raise NotImplementedError

    def __getitem__(self, i: int) -> memoryview:
        raise NotImplementedError

    def _column(self, which: int, dtype: str) -> np.ndarray:
        import numpy as np

        out = np.empty(len(self), dtype)
        self._fill(which, out)
        return out

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each frame in the ring; numpy uint32 [n]."""
        return self._column(_shm.COL_LENGTH, "u4")

    @property
    def wire_lengths(self) -> np.ndarray:
        """Bytes each frame had on the wire (more than `lengths` where a capture cut it); numpy uint32 [n]."""
        return self._column(_shm.COL_WIRE, "u4")

    @property
    def timestamps(self) -> np.ndarray:
        """Receive time by the kernel, ns since the epoch; numpy uint64 [n]."""
        return self._column(_shm.COL_TIMESTAMP, "u8")

    @property
    def outgoing(self) -> np.ndarray:
        """Whether the host itself sent the frame (a watching port sees both directions); numpy bool [n]."""
        return (self._column(_shm.COL_FLAGS, "u2") & 1).astype(bool)

    @property
    def ports(self) -> np.ndarray:
        """Number of the port each frame came in by (of a capture file: of its interface); numpy uint16 [n]."""
        return self._column(_shm.COL_PORT, "u2")

    @property
    def buffers(self) -> np.ndarray:
        """Index of the buffer in which each frame begins (netmap's buf_idx); numpy uint32 [n]."""
        return self._column(_shm.COL_BUFFER, "u4")

    def head(self, width: int) -> np.ndarray:
        """Gather the first `width` bytes of every frame; numpy uint8 [n, width], zeros behind short frames."""
        import numpy as np

        out = np.empty((len(self), width), "u1")
        self._gather(width, out)
        return out

    def __iter__(self) -> Iterator[memoryview]:
        return (self[i] for i in range(len(self)))

    def release(self) -> None:
        """Be done with the frames. Views of them must not be used any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Batch(Burst):
    """Frames of one receive ring. Nothing is copied until you ask; everything is valid until the batch is released.

    A batch releases itself when the port's next one is asked for, or at the end of a `with`.
    """

    def __init__(self, port: Port, ring: _shm.Ring, starts: array[int], n: int, end: int):
        self._port = port
        self._ring = ring
        self._starts = starts
        self._n = n
        self._end = end
        self._gone: bytearray | None = None  # frames that were forwarded: their slots hold spare buffers now
        self._forwarded = 0
        self._released = False

    def __len__(self) -> int:
        return self._n

    def _fill(self, which: int, out: np.ndarray) -> None:
        self._check()
        self._ring.column(which, self._starts, self._n, out)

    def _gather(self, width: int, out: np.ndarray) -> None:
        self._check()
        self._ring.gather(self._starts, self._n, width, out)

    def __getitem__(self, i: int) -> memoryview:
        """One frame: a view into the ring's buffer, or a copy when the frame spans several."""
        self._check()
        if not -self._n <= i < self._n:
            raise IndexError(f"frame {i} of {self._n}")
        frame = self._ring.frame(self._starts[i % self._n])
        if isinstance(frame, bytes):
            return memoryview(frame)
        offset, length = frame
        return self._port.region.mem[offset : offset + length]

    def parts(self, i: int) -> list[bytes]:
        """The wire frames that frame i stands for: several for a super-frame (`?gso=whole`), else itself."""
        self._check()
        return self._ring.parts(self._starts[range(self._n)[i]])

    def forward(self, other: Port, where: Any = None) -> int:
        """Send frames out of another port, by exchanging buffers where both are of one region. Returns how many went.

        `where`: n booleans; None = all. What finds no room in the other port's ring is dropped and counted
        (`drop_tx_full`). A frame leaves the batch with its first forward; its bytes must not be looked at after that.
        """
        self._check()
        mask = bytes(b"\1" * self._n) if where is None else mask_of(where, self._n).tobytes()
        if self._gone is None:
            self._gone = bytearray(self._n)
        else:
            mask = bytes(wanted and not gone for wanted, gone in zip(mask, self._gone, strict=True))
        moved, full = self._ring.forward(self._starts, self._n, other.tx_ring_for(self._ring), mask)
        self._gone = bytearray(a | b for a, b in zip(self._gone, mask, strict=True)) if where is not None else bytearray(b"\1" * self._n)
        self._forwarded += moved + full
        other.flush()
        return moved

    def release(self) -> None:
        """Give the slots back to the ring. Views of frames must not be used any more."""
        if not self._released:
            self._released = True
            self._ring.release(self._end, self._n - self._forwarded)

    def _check(self) -> None:
        if self._released:
            raise Error("E_BATCH", "this batch was released: its frames are gone (copy what must stay: bytes(batch[i]))")


def mask_of(where: Any, n: int) -> np.ndarray:
    """Booleans for n frames, a byte each. Raises E_BATCH for another number of them."""
    import numpy as np

    mask = np.ascontiguousarray(where, dtype=bool)
    if mask.size != n:
        raise Error("E_BATCH", f"a mask of {mask.size} for {n} frames")
    return mask
