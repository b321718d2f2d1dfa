"""The worker processes of an engine and the spare: forking them, watching them, putting another in the place of one that died or is to go.

    fork ──▶ spare ── "ready" ──▶ told whom to be ──▶ worker ──┬── asked to stop: exit status 0 ──┐
      ▲                                                        └── died: fenced by its pidfd ─────┤
      └───────────────────────────── a new spare ◀── the spare takes its place ◀──────────────────┘

A death costs the burst in hand; a replacement costs nothing: the kernel's rings and the lanes keep what arrives meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pktring.shm.errors import Error

from . import _engine, worker
from .pidfd import PidFd
from .plan import Plan

READY_S = 20.0  # a handler may take its time to compile
STOP_S = 1.0
STUCK_LOOKS = 10  # looks without progress, while there is work, before a worker is taken for stuck
DEATHS, WITHIN_S = 5, 10.0
FIRST_HOLD_S, LAST_HOLD_S = 0.1, 5.0


@dataclass
class Hand:
    """A process of the crew: the spare, or a worker."""

    pid: int
    pidfd: PidFd
    link: socket.socket
    ready: bool = False
    refused: Error | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Post:
    """A worker's place, whoever holds it."""

    index: int
    hand: Hand | None = None
    gen: int = 0
    restarts: int = 0
    pinned: str = ""  # why it is not on its CPU
    note: str = ""  # how its last holder died
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS))
    held_until: float = 0.0
    hold_s: float = 0.0
    died_at: float = 0.0
    progress: tuple[int, int] = (0, 0)  # as last seen, and for how many looks


class Crew:
    """`log` hears of deaths; `forget` is called in each child, to close what only the controller may hold."""

    def __init__(self, plan: Plan, log: Callable[[str], None], forget: Callable[[], None]):
        self.plan = plan
        self.posts = [Post(i) for i in range(len(plan.cpus))]
        self.spare: Hand | None = None
        self.suspect: Error | None = None  # what a worker found is such that nobody may go on with it
        self._log = log
        self._forget = forget

    # ---- the spare ----

    def fork_spare(self) -> Hand:
        """Start warming up a process of the present plan."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            status = 70
            try:
                here.close()
                self._close_links()
                self._forget()
                status = worker.live(self.plan, there)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        there.close()
        self.spare = Hand(pid, _pidfd(pid), here)
        return self.spare

    def _close_links(self) -> None:
        """In a child: a link that somebody else holds too would never end, and a pidfd would stay in the controller's epoll for ever."""
        for hand in [post.hand for post in self.posts] + [self.spare]:
            if hand:
                hand.link.close()
                hand.pidfd.close()

    def dismiss_spare(self) -> None:
        """The plan it was forked with is no longer the plan."""
        if self.spare:
            self.spare.pidfd.signal(signal.SIGKILL)
            self._bury(self.spare)
            self.spare = None

    def ready_spare(self) -> Hand:
        """A spare that is warm; waits for it. Raises what it refused with, E_WORKER."""
        spare = self.spare or self.fork_spare()
        deadline = time.monotonic() + READY_S
        while not spare.ready:
            spare.link.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self.hear(spare)
            except TimeoutError:
                self.dismiss_spare()
                raise Error("E_WORKER", f"a new worker was not ready within {READY_S:g} s: see its handlers") from None
            if spare.refused:
                refused = spare.refused
                self.dismiss_spare()
                raise refused
        return spare

    # ---- posts ----

    def fill(self, post: Post, *, died: bool) -> None:
        """Put the spare into a post that is empty; another is warmed up when this one runs. Raises what `ready_spare` raises."""
        spare = self.ready_spare()
        post.gen += 1
        self._pin(post, spare)
        _engine.record_ask(self.plan.memory.record(post.index), _engine.PR_ASK_GO, post.gen)
        spare.link.settimeout(None)
        spare.link.send(json.dumps({"become": post.index, "gen": post.gen, "died": died}).encode())
        post.hand, self.spare = spare, None
        post.progress = (0, 0)
        self.kick_all()

    def _pin(self, post: Post, spare: Hand) -> None:
        """Raises E_AFFINITY where the configuration wants every worker on its CPU."""
        wanted, before = self.plan.cpus[post.index], post.pinned
        if not self.plan.config.bindthreads:
            return
        post.pinned = pin(spare.pid, wanted)
        if post.pinned and self.plan.config.strict_affinity:
            raise Error("E_AFFINITY", f"worker={post.index + 1} {post.pinned}: name other CPUs, or strict_affinity = false")
        if post.pinned != before:
            self._log(f"W_AFFINITY worker={post.index + 1} {post.pinned}")

    def stop(self, post: Post) -> bool:
        """Ask a worker to stop at the next burst boundary, and wait until it has. False: it would not, and was killed."""
        hand = post.hand
        if not hand:
            return True
        _engine.record_ask(self.plan.memory.record(post.index), _engine.PR_ASK_STOP, post.gen)
        kick(self.plan.bells[post.index])
        asked = hand.pidfd.wait(STOP_S)
        if not asked:
            hand.pidfd.kill()
        self._bury(hand)
        post.hand = None
        return asked

    def replace_all(self, plan: Plan) -> None:
        """Go over to another plan: a worker of it is warm before the first old one stops. Raises what it refuses; nothing changed then."""
        before, self.plan = self.plan, plan
        self.dismiss_spare()
        try:
            self.ready_spare()
        except Error:
            self.plan = before
            self.fork_spare()
            raise
        for post in self.posts:
            self.ready_spare()
            clean = self.stop(post)
            self.fill(post, died=not clean)

    def all_run(self) -> None:
        """Wait until every worker has taken its post. Raises E_WORKER."""
        deadline = time.monotonic() + READY_S
        while (late := [post for post in self.posts if not self._runs(post)]) and not self.suspect:
            if time.monotonic() > deadline or any(post.hand and post.hand.pidfd.ended for post in late):
                numbers = ", ".join(str(post.index + 1) for post in late)
                raise Error("E_WORKER", f"worker {numbers} does not run: see the lines above")
            time.sleep(0.001)

    def _runs(self, post: Post) -> bool:
        record = _engine.record_read(self.plan.memory.record(post.index))
        return post.hand is not None and (record["state"], record["pid"]) == (_engine.PR_WS_RUNNING, post.hand.pid)

    def renew(self, plan: Plan) -> None:
        """The plan for those who come from now on; the workers that run are right as they are."""
        self.plan = plan
        self.dismiss_spare()
        self.fork_spare()

    def living(self) -> list[int]:
        """The workers that run, by number from 0."""
        return [post.index for post in self.posts if post.hand]

    def died(self, post: Post) -> None:
        """A worker is gone, its pidfd says so. Its post is filled at once, unless that happens too often."""
        hand, now = post.hand, time.monotonic()
        if not hand:
            return
        while self.hear(hand):
            pass
        how = self._bury(hand)
        post.hand, post.died_at = None, now
        post.restarts += 1
        often = len(post.deaths) == DEATHS and now - post.deaths[0] < WITHIN_S
        post.deaths.append(now)
        if often:
            post.hold_s = min(max(post.hold_s * 2, FIRST_HOLD_S), LAST_HOLD_S)
            post.held_until = now + post.hold_s
            self._log(f"E_WORKER_LOOP worker={post.index + 1} {DEATHS} crashes/{WITHIN_S:g} s, holding off {post.hold_s:g} s")
        else:
            post.hold_s = 0.0
        post.note = f"pid={hand.pid} {how}"
        if not often:
            self._fill_again(post)

    def due(self) -> None:
        """Fill posts that were held off long enough."""
        now = time.monotonic()
        for post in self.posts:
            if post.hand is None and now >= post.held_until:
                self._fill_again(post)

    def _fill_again(self, post: Post) -> None:
        try:
            self.fill(post, died=True)
        except Error as why:
            post.held_until = time.monotonic() + LAST_HOLD_S
            self._log(f"{why.code} worker={post.index + 1}: {why.text}; tried again in {LAST_HOLD_S:g} s")

    def look(self, has_work: Callable[[int], bool]) -> None:
        """Called every 100 ms: a worker that has work and does not get on is killed; its death is then seen like any other."""
        if not self.spare:
            self.fork_spare()
        for post in self.posts:
            if not post.hand:
                continue
            progress = _engine.record_read(self.plan.memory.record(post.index))["progress"]
            seen, looks = post.progress
            looks = looks + 1 if progress == seen and has_work(post.index) else 0
            post.progress = (progress, looks)
            if looks > STUCK_LOOKS:
                self._log(f"E_WORKER_STUCK worker={post.index + 1} pid={post.hand.pid} no progress {looks / 10:.1f} s at seq={progress}")
                post.progress = (progress, 0)
                post.hand.pidfd.signal(signal.SIGKILL)

    def hear(self, hand: Hand) -> bool:
        """Take in one message of a child. False: there is none, or it is gone."""
        try:
            text = hand.link.recv(65536, 0 if not hand.ready else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except TimeoutError:
            raise
        except OSError:
            text = b""
        if not text:
            if not hand.ready:
                hand.refused = hand.refused or Error("E_WORKER", "a new worker died while it warmed up: see the lines above")
            return False
        message = json.loads(text)
        if "ready" in message:
            hand.ready, hand.facts = True, message["ready"]
        if "error" in message:
            hand.refused = Error(*message["error"])
            if hand.refused.code == "E_LEDGER":
                self.suspect = hand.refused
        if "log" in message:
            self._log(message["log"])
        if "became" in message:
            self._became(self.posts[message["became"]], message["found"], message["at"])
        return True

    def _became(self, post: Post, found: dict[str, Any], at: float) -> None:
        """`at`: when it had taken the post, by its own clock, which is ours (CLOCK_MONOTONIC)."""
        if post.died_at:
            took_ms = (at - post.died_at) * 1000
            lost, back = found.get("lost", 0), found.get("reclaimed", 0)
            self._log(f"E_WORKER_DIED worker={post.index + 1} {post.note} reclaimed={back} lost<={lost} resumed_ms={took_ms:.1f}")
            post.died_at = 0.0

    def adopt(self, post: Post, pid: int, link: socket.socket, gen: int) -> None:
        """A worker that runs already, found by a new controller."""
        post.hand = Hand(pid, _pidfd(pid), link, ready=True)
        post.gen = gen

    def _bury(self, hand: Hand) -> str:
        """Fence it; how it ended."""
        hand.pidfd.wait(2.0)
        how = hand.pidfd.reap() or hand.pidfd.told() or "ended"  # one that was adopted is the supervisor's child
        hand.link.close()
        hand.pidfd.close()
        return how

    def kick_all(self) -> None:
        """After a death: whoever may have been left asleep looks again."""
        for bell in self.plan.bells:
            kick(bell)

    def dismiss(self) -> None:
        """Stop everybody."""
        self.dismiss_spare()
        for post in self.posts:
            if post.hand:
                _engine.record_ask(self.plan.memory.record(post.index), _engine.PR_ASK_STOP, post.gen)
        self.kick_all()
        for post in self.posts:
            self.stop(post)


def kick(bell: int) -> None:
    """Ring an eventfd."""
    try:
        os.eventfd_write(bell, 1)
    except BlockingIOError:
        pass


def pin(pid: int, cpu: int) -> str:
    """Pin a process; what went wrong, "" = nothing."""
    try:
        os.sched_setaffinity(pid, {cpu})
    except OSError as why:
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        return f"wanted cpu{cpu} ({errno.errorcode.get(why.errno or 0, why.strerror)}), running on {allowed}"
    return ""


def _pidfd(pid: int) -> PidFd:
    found = PidFd.open(pid)
    if found is None:
        raise Error("E_WORKER", f"worker pid {pid} is gone already")
    return found
