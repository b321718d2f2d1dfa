"""A control server for tests: in a thread of this process, or in a process of its own that can be stopped and killed."""

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from pathlib import Path

from pktring.engine import control_wire as wire
from pktring.engine import rundir
from pktring.engine.control import Answer, Server, Verb
from pktring.shm.errors import Error

SLOW_S = 0.010


def echo(peer, body, fds):
    return body


def who(peer, body, fds):
    return {"uid": peer.uid, "pid": peer.pid, "trusted": peer.trusted, "why": peer.why}


def attach(peer, body, fds):
    peer.attach(body.get("memory", 0))
    return {}


def refuse(peer, body, fds):
    raise Error("E_PORT", "no port of that name: choose another")


def fail(peer, body, fds):
    return {"x": 1 // 0}


def keep(peer, body, fds):
    """Take the first descriptor, and write to it."""
    if not fds:
        raise Error("E_CTRL_MSG", "nothing to keep")
    kept = fds.pop(0)
    try:
        os.write(kept, b"kept")
    finally:
        os.close(kept)
    return {"left": len(fds)}


VERBS = {
    "status": Verb(lambda peer, body, fds: {"name": "eng0"}, public=True),
    "who": Verb(who, public=True),
    "attach": Verb(attach, public=True),
    "echo": echo,
    "down": lambda peer, body, fds: Answer({"stopped": True}),
    "refuse": refuse,
    "fail": fail,
    "keep": Verb(keep, fds=2),
}


class Serving:
    """A server in a thread of this process."""

    def __init__(self, verbs=None, **how):
        self.base = tempfile.mkdtemp(prefix="control-")  # not tmp_path: another user has to get there
        os.chmod(self.base, 0o755)
        self.path = f"{self.base}/eng0/control.sock"
        os.mkdir(f"{self.base}/eng0")
        self.gone, self.notes = [], []
        self._stop = False
        how = {"on_gone": self.gone.append, "on_note": self.notes.append, "mode": 0o666} | how
        self.server = Server(self.path, handlers=verbs or VERBS, **how)
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while not self._stop:
                select.select([self.server], [], [], 0.02)
                self.server.step()
        except BaseException:
            traceback.print_exc()
            self.notes.append("the server died")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join(10)
        self.server.close()
        shutil.rmtree(self.base)

    def quiet(self, timeout_s=5.0):
        """Wait until nobody is connected."""
        wait_for(lambda: not self.server.connections, timeout_s)


@contextlib.contextmanager
def process(prepare=lambda: None, **how):
    """A server in a process of its own: (pid, path). The verb `stats` tells its counts, and how long its steps took by its own clock:
    the longest, `cpu_s`, and of `steps` those that took more than SLOW_S."""
    base = tempfile.mkdtemp(prefix="control-")
    os.chmod(base, 0o755)
    os.mkdir(f"{base}/eng0")
    path = f"{base}/eng0/control.sock"
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, told)
            os.closerange(told + 1, 1024)
            gc.freeze()  # what pytest left here is not ours to sweep
            _serve(path, prepare, told, how)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid, path
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        shutil.rmtree(base)


def _serve(path, prepare, told, how):
    longest, steps, slow = 0.0, 0, 0

    def stats(peer, body, fds):
        apps, users = len(server.apps), len(server._used)
        times = {"cpu_s": longest, "steps": steps, "slow": slow}
        return server.stats | times | {"open": server.connections, "apps": apps, "users": users}

    server = Server(path, handlers=VERBS | {"stats": Verb(stats, public=True)}, mode=0o666, **how)
    prepare()
    os.write(told, b"x")
    while True:
        select.select([server], [], [], 0.02)
        begin = time.thread_time()
        server.step()
        took = time.thread_time() - begin
        longest, steps, slow = max(longest, took), steps + 1, slow + (took > SLOW_S)


def connected(path, timeout_s=5.0):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(timeout_s)
    with rundir.address(path) as short:
        sock.connect(short)
    return sock


def answer_of(sock):
    """What comes next, by code: ("ok", body), (code, text), ("end", None)."""
    data, fds = wire.receive(sock)
    wire.closed(fds)
    if not data:
        return "end", None
    message = wire.decode(data)
    body = wire.loads(message.raw)
    return (body["code"], body["text"]) if message.flags & wire.REFUSED else ("ok", body)


def as_user(uid, body, groups=()):
    """Run body() as another user in a child; its exception fails the test."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def wait_for(is_so, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def fds():
    return len(os.listdir("/proc/self/fd"))


def settled(before):
    """No descriptor more than before, and none less; soon, because a connection that is closed for idleness makes up for a leak."""
    wait_for(lambda: fds() == before, 1.0)


def fd_of_process(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
