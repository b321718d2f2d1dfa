"""A page that all processes which hold a device share: what its link is like now. live.h says what is in it.

It is anonymous memory behind a descriptor, so that it goes by fork and by SCM_RIGHTS as the device's other descriptors do.
"""

from __future__ import annotations

import mmap
import os


class Live:
    """The page, made or (`fd`: ours from now on) taken over. The map outlives `close` as long as C code uses it."""

    def __init__(self, fd: int = -1):
        self.map: mmap.mmap | None = None
        self.fd = os.memfd_create("pktring-link", os.MFD_CLOEXEC) if fd < 0 else fd
        try:
            if fd < 0:
                os.ftruncate(self.fd, mmap.PAGESIZE)
            self.map = mmap.mmap(self.fd, mmap.PAGESIZE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        self.map = None
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
