"""An app of its own process, attached over the socket that is its standard input: what tests start as `App` (test_attach.py).

    attached_app.py ROLE UID      becomes UID once it has what it needs, says "ready", does what the role says until the socket is shut
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import socket
import sys
import time

from pktring.engine.attach import attach
from pktring.shm.errors import Error


def echo(port, sock, memory):
    """Every frame goes back in the buffer in which it came."""
    while not over(sock):
        batch = port.recv(timeout=0.05)
        if len(batch) and batch.forward(port) < len(batch):
            raise SystemExit("a transmit ring as long as the receive ring was full")
        batch.release()
        port.flush()


def count(port, sock, memory):
    """Frames are counted, and what the engine says of losses."""
    n = 0
    while not over(sock):
        n += len(port.recv(timeout=0.05))
    sock.send(json.dumps({"frames": n, "dropped": port.stats()["drop_kernel"]}).encode())


def idle(port, sock, memory):
    """Nothing is received, everything is kept."""
    while not over(sock):
        time.sleep(0.01)


def rewrite(port, sock, memory):
    """Random words into all of its rings and its memory, as fast as numpy writes them; most cursors right, so that slots are looked at."""
    import numpy as np

    geometry, rng, n = port.region.geometry, np.random.default_rng(os.getpid()), 0
    words = np.frombuffer(port.region.mem, dtype="<u4")
    slot_words = geometry["ring_size"] // 4
    while not over(sock):
        for ring, at in rings(port, geometry):
            slots = words[at + 64 : at + 64 + ring.num_slots * 4]
            for _ in range(50):
                where = rng.integers(0, len(slots), 64)
                slots[where] = rng.integers(0, 2**32 if rng.random() < 0.2 else 600, 64, dtype="u4")
                slots[where | 1] = rng.choice(np.array([60, 60 | 1 << 16, 60 | 32 << 16, 5000, 60 | 16 << 16], dtype="u4"), 64)
                with contextlib.suppress(ValueError):
                    ring.move_to((ring.tail + random.randrange(-3, 1)) % ring.num_slots, ring.tail % ring.num_slots)
                n += 129
            if random.random() < 0.02:
                words[at + rng.integers(0, 64)] = rng.integers(0, 2**32, dtype="u8") & 0xFFFFFFFF
            assert slot_words >= 64
        if port.facts()["memory"] == "sealed":
            body = words[geometry["buf_ofs"] // 4 :]
            body[rng.integers(0, len(body), 5000)] = rng.integers(0, 2**32, 5000, dtype="u4")
            n += 5000
    sock.send(json.dumps({"mutations": n}).encode())


def rings(port, geometry):
    for direction, held in ((0, port.rx_rings), (1, port.tx_rings)):
        for index, ring in zip(port.region._rings[direction], held, strict=True):
            yield ring, (geometry["ring_ofs"] + index * geometry["ring_size"]) // 4


def cut(port, sock, memory):
    """It tries to cut its memory short, and makes holes in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size, page = os.fstat(memory).st_size, 4096
    refused = n = 0
    base = ctypes.addressof(ctypes.c_char.from_buffer(port.region._map))
    while not over(sock):
        for new in (0, page, size * 2):
            try:
                os.ftruncate(memory, new)
            except PermissionError:
                refused += 1
        at = random.randrange(size // page) * page
        length = min(random.randrange(1, 64) * page, size - at)
        assert libc.fallocate(memory, 0x01 | 0x02, ctypes.c_long(at), ctypes.c_long(length)) == 0
        assert libc.madvise(ctypes.c_void_p(base + at), ctypes.c_size_t(length), 9) == 0, "MADV_REMOVE"
        n += 1
    fcntl.fcntl(memory, fcntl.F_GET_SEALS)
    sock.send(json.dumps({"refused": refused, "holes": n}).encode())


def over(sock):
    """The test has shut the socket's other direction."""
    try:
        return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def main(role, uid):
    sock = socket.socket(fileno=os.dup(0))
    reply, fds, _, _ = socket.recv_fds(sock, 65536, 250)
    import numpy.random  # before the files it is read from may be out of reach

    numpy.random.default_rng()
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    memory = os.dup(fds[0])
    port = attach(json.loads(reply), fds)
    sock.send(b"ready")
    try:
        globals()[role](port, sock, memory)
    except Error as why:
        sock.send(json.dumps({"error": why.code}).encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
