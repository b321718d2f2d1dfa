"""The controller's end of the control socket: many connections, none of which can keep it from its work.

It belongs into somebody's loop: `fileno()` is an epoll descriptor, readable when there is something to do; `step()` does a bounded piece of
it and never waits. Call it when that is readable, and some times a second for what times out.

A connection, from its first message on:

    silent ──request──▶ asked ──answer──▶ idle ──2 s──▶ closed         attached: an app; stays until it goes, then on_gone
       └──2 s, or a newer one of a user who has too many──▶ closed     any bad message: refused with its reason, closed
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..shm.errors import Error
from . import control_wire as wire
from .control_peer import Group, Peer, Quota, Used, pidfd_of
from .pidfd import PidFd
from .rundir import listen

IDLE_S = 2.0
NOTE_S = 1.0
PAUSE_S = 0.1  # of not listening, when the process has no descriptor left at all
STEP_S = 0.004
EVENTS = 64  # of one epoll_wait
ACCEPTS = 32  # in one step
RESERVE = 16  # descriptors that no peer can make us use
SEND_BYTES = 8192  # of unread answers in the kernel, about, of one connection


@dataclass
class Answer:
    """What a handler answers: `body` as JSON, and descriptors, of which the receiver gets copies; `close`: ours are closed then.

    A large body goes by memfd by itself.
    """

    body: dict[str, Any] = field(default_factory=dict)
    fds: Sequence[int] = ()
    close: bool = False

    def done(self) -> None:
        """It has gone, or nobody wants it any more."""
        if self.close:
            wire.closed(self.fds)


class Later:
    """What a handler returns who has to wait for something: `give` or `fail` comes afterwards, from the same loop."""

    def __init__(self) -> None:
        self.gone = False  # nobody waits for it any more
        self._early: Answer | dict[str, Any] | Error | None = None
        self._deliver: Callable[[Answer | dict[str, Any] | Error], None] | None = None

    def give(self, answer: Answer | dict[str, Any] | Error) -> None:
        """Answer now."""
        if self.gone:
            return _done(answer)
        if self._deliver:
            self.gone = True
            self._deliver(answer)
        else:
            self._early = answer

    def fail(self, error: Error) -> None:
        """Refuse now."""
        self.give(error)

    def bind(self, deliver: Callable[[Answer | dict[str, Any] | Error], None]) -> None:
        """Tell it where answers go."""
        self._deliver = deliver
        if self._early is not None:
            self.give(self._early)


Handler = Callable[[Peer, dict[str, Any], list[int]], Answer | dict[str, Any] | Later]


@dataclass(frozen=True)
class Verb:
    """A handler, and who may call it: `public` anyone who may connect, else those that Peer.trusted says; `fds` it takes at most.

    A handler that keeps a descriptor takes it out of the list; the rest is closed.
    """

    run: Handler
    public: bool = False
    fds: int = 0


@dataclass(eq=False)
class Connection:
    """One; known by its descriptor while that is open."""

    sock: socket.socket
    peer: Peer
    last: float
    request: int = 0
    later: Later | None = None
    unsent: tuple[bytes, list[int]] | None = None
    pidfd: PidFd | None = None
    open: bool = True


class Server:
    """Listens at `path` for requests of `handlers` (a plain function: a verb that changes things and takes no descriptors).

    `group`: whose members may change things (default `pktring`). `on_gone(peer)` is told once when an attached app ends or hangs up.
    `on_note(line)` hears what an administrator may want to know. Raises E_PERM, E_NAME_BUSY.
    """

    def __init__(
        self,
        path: str,
        group: str | None = None,
        handlers: Mapping[str, Handler | Verb] | None = None,
        *,
        mode: int = 0o660,
        quota: Quota | None = None,
        on_gone: Callable[[Peer], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ):
        self.path, self.group = path, Group(group)
        self.verbs = {name: verb if isinstance(verb, Verb) else Verb(verb) for name, verb in (handlers or {}).items()}
        self.quota = quota or Quota()
        self.stats = dict.fromkeys(("accepted", "refused", "evicted", "expired", "messages", "bad", "denied", "defects"), 0)
        self.longest_step_s = 0.0
        self._on_gone, self._on_note = on_gone or (lambda peer: None), on_note or (lambda line: None)
        self._quiet_until = self._deaf_until = 0.0
        self._listener = listen(path, mode=mode, group=group)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._by_fd: dict[int, Connection] = {}
        self._idle: OrderedDict[Connection, None] = OrderedDict()  # the longest idle first
        self._used: dict[int, Used] = {}
        self._ready: deque[tuple[int, Connection | None, int]] = deque()
        self._number = 0

    # ---- the loop ----

    def fileno(self) -> int:
        """For the loop's epoll, poll or select."""
        return self._epoll.fileno()

    def step(self) -> None:
        """Do what is to be done, at most some milliseconds of it; what is left keeps `fileno` readable."""
        begin = time.monotonic()
        if not self._ready:
            self._ready.extend((fd, self._by_fd.get(fd), event) for fd, event in self._epoll.poll(0, EVENTS))
        while self._ready and time.monotonic() - begin < STEP_S:
            fd, known, event = self._ready.popleft()
            if fd == self._listener.fileno():
                self._welcome(begin + STEP_S)
            elif known and known.open:
                self._serve(known, fd, event)
        self._expire(begin)
        if 0 < self._deaf_until <= begin:
            self._epoll.modify(self._listener, select.EPOLLIN)
            self._deaf_until = 0.0
        self.longest_step_s = max(self.longest_step_s, time.monotonic() - begin)

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(fd == c.sock.fileno() for fd, c in self._by_fd.items())

    @property
    def apps(self) -> list[Peer]:
        """The attached ones."""
        return [c.peer for fd, c in self._by_fd.items() if c.peer.attached and fd == c.sock.fileno()]

    def close(self) -> None:
        """Hang up on everybody; on_gone is not told."""
        self._on_gone = lambda peer: None
        for fd, connection in list(self._by_fd.items()):
            if connection.open and fd == connection.sock.fileno():
                self._drop(connection)
        self.release_in_child()

    def release_in_child(self) -> None:
        """Let go in a forked worker, which else would keep every connection open after our end. Nobody is hung up on."""
        for connection in set(self._by_fd.values()):
            connection.sock.close()
            if connection.pidfd:
                connection.pidfd.close()
        self._by_fd.clear()
        self._ready.clear()
        self._listener.close()
        self._epoll.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    # ---- coming ----

    def _welcome(self, until: float) -> None:
        for _ in range(ACCEPTS):
            if time.monotonic() >= until:
                return
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as why:
                if why.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                self._turn_away_one()
                return
            self._admit(sock)

    def _turn_away_one(self) -> None:
        """No descriptor is left: use the spare one to hang up on who comes first, or he would call for ever."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        self.stats["refused"] += 1
        try:
            self._listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not even that: look again in a while
            self._epoll.modify(self._listener, 0)
            self._deaf_until = time.monotonic() + PAUSE_S

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self._number += 1
        peer = Peer(self._number, sock, self.group)
        try:
            _spare_fds(sock.fileno())
            self._make_room(peer.uid)
        except Error as why:
            self.stats["refused"] += 1
            _refuse(sock, why)
            sock.close()
            return
        peer.bind(self._attach, self._detach)
        connection = Connection(sock, peer, time.monotonic())
        self._used.setdefault(peer.uid, Used()).connections += 1
        self._by_fd[sock.fileno()] = connection
        self._idle[connection] = None
        self._epoll.register(sock, select.EPOLLIN)
        self.stats["accepted"] += 1
        self._read(connection)  # most have asked already; and whoever has is not the silent one that makes room for others

    def _make_room(self, uid: int) -> None:
        """A user who has all his connections loses the one that is idle for longest."""
        if uid not in self._used or self._used[uid].connections < self.quota.connections:
            return
        oldest = next((c for c in self._idle if c.peer.uid == uid), None)
        if oldest is None:
            raise Error("E_QUOTA", f"uid={uid} has {self.quota.connections} connections in use: end some of them")
        self.stats["evicted"] += 1
        self._turn_away(oldest)

    # ---- requests ----

    def _serve(self, connection: Connection, fd: int, event: int) -> None:
        if connection.pidfd and fd == connection.pidfd.fd:
            self._drop(connection)
        elif connection.unsent:
            self._flush(connection) if not event & (select.EPOLLHUP | select.EPOLLERR) else self._drop(connection)
        elif connection.later:
            self._drop(connection)  # no more is asked for than whether it has hung up
        else:
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        fds: list[int] = []
        try:
            data, fds = wire.receive(connection.sock, wire.MAX_FDS if connection.peer.trusted else 0)
            if not data:
                return self._drop(connection)
            if fds:
                _spare_fds(max(fds))
            message = wire.decode(data)
            self.stats["messages"] += 1
            self._touch(connection)
            self._handle(connection, message, fds)
        except BlockingIOError:
            return None
        except Error as why:
            self._expel(connection, why)
        except OSError as why:
            self._note(f"control connection of uid={connection.peer.uid}: {why.strerror}")
            self._drop(connection)
        finally:
            wire.closed(fds)

    def _handle(self, connection: Connection, message: wire.Message, fds: list[int]) -> None:
        """Raise what ends the connection; answer what does not."""
        peer, verb = connection.peer, self.verbs.get(message.verb)
        if message.flags & (wire.ANSWER | wire.REFUSED):
            wire.bad("an answer where a request belongs")
        in_memfd = bool(message.flags & wire.IN_MEMFD)
        if len(fds) > (verb.fds if verb else 0) + in_memfd or (in_memfd and not fds):
            wire.bad(f"{len(fds)} descriptors with {message.verb}")
        peer.layout, connection.request = message.layout, message.request
        try:
            if verb is None:
                raise Error("E_CTRL_MSG", f"no verb {message.verb!r}: one of {', '.join(sorted(self.verbs))}")
            if not verb.public:
                peer.require_trust(message.verb)
        except Error as why:
            self.stats["denied"] += why.code == "E_DENIED"
            return self._answer(connection, why)
        raw = wire.unsealed(fds[0], wire.MAX_REQUEST) if in_memfd else message.raw
        if in_memfd:
            os.close(fds.pop(0))
        self._run(connection, verb, wire.loads(raw), fds)

    def _run(self, connection: Connection, verb: Verb, body: dict[str, Any], fds: list[int]) -> None:
        got: Answer | dict[str, Any] | Later | Error
        try:
            got = verb.run(connection.peer, body, fds)
        except Error as why:
            self.stats["denied"] += why.code == "E_DENIED"
            got = why
        except Exception as why:  # a defect of ours must not end the engine for everybody
            got = self._defect(why)
        if not connection.open:
            return _done(got)
        if isinstance(got, Later):
            self._wait(connection, got)
        else:
            self._answer(connection, got)

    def _defect(self, why: Exception) -> Error:
        self.stats["defects"] += 1
        at = why.__traceback__
        while at and at.tb_next:
            at = at.tb_next
        place = f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at else "?"
        error = Error("E_INTERNAL", f"{type(why).__name__}: {why} ({place}): a defect of pktring")
        self._note(str(error))
        return error

    # ---- answers ----

    def _wait(self, connection: Connection, later: Later) -> None:
        connection.later = later
        self._idle.pop(connection, None)
        self._epoll.modify(connection.sock, 0)  # but for the hang-up, which always comes

        def deliver(answer: Answer | dict[str, Any] | Error) -> None:
            connection.later = None
            self._epoll.modify(connection.sock, select.EPOLLIN)
            self._touch(connection)
            self._answer(connection, answer)

        later.bind(deliver)

    def _answer(self, connection: Connection, got: Answer | dict[str, Any] | Error) -> None:
        made: list[int] = []
        try:
            answer = got if isinstance(got, Answer) else Answer(got) if isinstance(got, dict) else Answer()
            data, made = _packed(connection.request, got if isinstance(got, Error) else answer)
            fds = [*made, *answer.fds]
            try:
                wire.send(connection.sock, data, fds)
            except BlockingIOError:  # unread answers fill the socket
                connection.unsent = (data, [os.dup(fd) for fd in fds])
                self._epoll.modify(connection.sock, select.EPOLLOUT)
        except OSError as why:
            if why.errno not in (errno.EPIPE, errno.ECONNRESET):
                self._note(f"answer to uid={connection.peer.uid} pid={connection.peer.pid}: {why.strerror}")
            self._drop(connection)
        except (TypeError, ValueError) as why:  # a handler's answer that is no JSON
            self._answer(connection, self._defect(why))
        finally:
            wire.closed(made)
            _done(got)

    def _flush(self, connection: Connection) -> None:
        assert connection.unsent
        data, fds = connection.unsent
        try:
            wire.send(connection.sock, data, fds)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        connection.unsent = None
        wire.closed(fds)
        self._epoll.modify(connection.sock, select.EPOLLIN)

    # ---- apps and quotas ----

    def _attach(self, peer: Peer, memory: int) -> None:
        connection = next(c for c in self._by_fd.values() if c.peer is peer)
        used = self._used[peer.uid]
        if peer.attached:
            raise Error("E_CTRL_MSG", "this connection is an app already: open another one")
        if used.apps >= self.quota.apps:
            raise Error("E_QUOTA", f"uid={peer.uid} has {used.apps} apps attached: {self.quota.apps} a user are allowed, end one")
        if used.memory + memory > self.quota.memory:
            text = f"uid={peer.uid} has {used.memory} bytes and wants {memory}: {self.quota.memory} a user are allowed"
            raise Error("E_QUOTA", f"{text}, ask for fewer or shorter rings")
        if pidfd := pidfd_of(connection.sock, peer.pid):
            _spare_fds(pidfd.fd)
            connection.pidfd = pidfd
            self._by_fd[pidfd.fd] = connection
            self._epoll.register(pidfd, select.EPOLLIN)
        peer.attached, peer.memory = True, memory
        used.apps += 1
        used.memory += memory
        self._idle.pop(connection, None)

    def _detach(self, peer: Peer) -> None:
        if peer.attached:
            connection = next(c for c in self._by_fd.values() if c.peer is peer)
            self._settle(connection)
            self._touch(connection)

    def _settle(self, connection: Connection) -> None:
        """Give back what an app had."""
        peer, used = connection.peer, self._used[connection.peer.uid]
        used.apps -= 1
        used.memory -= peer.memory
        peer.attached, peer.memory = False, 0
        if connection.pidfd:
            del self._by_fd[connection.pidfd.fd]
            self._epoll.unregister(connection.pidfd)
            connection.pidfd.close()
            connection.pidfd = None

    # ---- going ----

    def _note(self, line: str) -> None:
        """One a second: what a stranger sends must not fill the log. The counts are in `stats`."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + NOTE_S
            self._on_note(line)

    def _touch(self, connection: Connection) -> None:
        connection.last = time.monotonic()
        self._idle.pop(connection, None)
        if connection.open and not connection.peer.attached:
            self._idle[connection] = None

    def _expire(self, now: float) -> None:
        for connection in list(islice(self._idle, EVENTS)):
            if connection.last + IDLE_S > now:
                break
            self.stats["expired"] += 1
            self._turn_away(connection)

    def _turn_away(self, connection: Connection) -> None:
        """Hang up on an idle one. If he is asking just now, he knows by our last words that he was not heard, and asks again."""
        with contextlib.suppress(OSError):
            wire.send(connection.sock, TURNED_AWAY)
        self._drop(connection)

    def _expel(self, connection: Connection, why: Error) -> None:
        """A message that breaks the rules is the last one."""
        self.stats["bad"] += 1
        self._note(f"{why} from uid={connection.peer.uid} pid={connection.peer.pid}")
        _refuse(connection.sock, Error(why.code, f"{why.text}, from uid={connection.peer.uid}"))
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        was_app = connection.peer.attached
        if was_app:
            self._settle(connection)
        if connection.later:
            connection.later.gone = True
        if connection.unsent:
            wire.closed(connection.unsent[1])
        self._idle.pop(connection, None)
        used = self._used[connection.peer.uid]
        used.connections -= 1
        if not used.connections:
            del self._used[connection.peer.uid]
        del self._by_fd[connection.sock.fileno()]
        self._epoll.unregister(connection.sock)
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)  # even if a child of ours has not let go of it
        connection.sock.close()
        if was_app:
            self._on_gone(connection.peer)


def _done(got: object) -> None:
    if isinstance(got, Answer):
        got.done()


def _packed(request: int, got: Answer | Error) -> tuple[bytes, list[int]]:
    """An answer as bytes, and the memfd that holds its body if it is a large one."""
    if isinstance(got, Error):
        return wire.encode("answer", wire.refusal(got), request=request, flags=wire.ANSWER | wire.REFUSED), []
    raw = wire.dumps(got.body)
    if len(raw) > wire.MAX_ANSWER or len(got.fds) >= wire.MAX_ANSWER_FDS:
        raise ValueError(f"an answer of {len(raw)} bytes with {len(got.fds)} descriptors")
    if len(raw) <= wire.ROOM:
        return wire.encode("answer", raw, request=request, flags=wire.ANSWER), []
    return wire.encode("answer", b"", request=request, flags=wire.ANSWER | wire.IN_MEMFD), [wire.sealed(raw)]


TURNED_AWAY = _packed(0, Error("E_BUSY", "this connection was idle, and is closed: ask again"))[0]


def _refuse(sock: socket.socket, why: Error) -> None:
    """Last words: of no request, so that whoever waits for any answer takes them."""
    with contextlib.suppress(OSError):
        wire.send(sock, _packed(0, why)[0])


def _spare_fds(highest: int) -> None:
    """The kernel gives the lowest free number, so this one tells how many are in use. Raises E_FD_LIMIT."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = sys.maxsize if limit == resource.RLIM_INFINITY else limit
    if highest >= limit - RESERVE:
        raise Error("E_FD_LIMIT", f"{highest + 1}/{limit} used; raise LimitNOFILE")
