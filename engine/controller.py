"""The controller: opens the ports, starts the workers, watches them, answers on the control socket. No frame passes through it.

    ┌─────────────────────────────── epoll ───────────────────────────────┐
    │ control socket    pidfds of the crew    link events    signals  100 ms │
    └──┬───────────────────┬───────────────────┬───────────────┬────────┬──┘
    answer it       fill the post again   tell the device   stop, reload  look whether all get on

It may die: the workers go on without it, and the next controller takes over what the workers hold (adoption).
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from pktring.shm import segment
from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import adoption, jail, opening, rundir, sd_notify
from .answers import Answers
from .config import Config
from .control import Server
from .crew import Crew, Post
from .netisr import End, Handler
from .plan import Plan
from .status import status
from .supervisor import ANEW, DEFECT

LOOK_S = 0.1
KEPT_LINES = 200


class Controller:
    """Runs one engine until it is told to stop. `adopt`: workers of a dead controller may be there."""

    def __init__(
        self,
        config: Config,
        open_device: opening.OpenDevice,
        adopt_device: Callable[[dict[str, Any], list[int]], tuple[Device, Any]],
        handlers: list[Handler],
        reload: Callable[[], tuple[Config, list[Handler]]] | None = None,
    ):
        self.config = config
        self.started = time.monotonic()
        self.events: deque[str] = deque(maxlen=KEPT_LINES)
        self._open_device = open_device
        self._adopt_device = adopt_device
        self._handlers = handlers
        self._reload = reload
        self._stop = False
        self._reload_asked = False
        self.adopted_apps: list[tuple[dict[str, Any], list[int]]] = []
        self._poll = selectors.DefaultSelector()
        self._watched: dict[int, tuple[Any, Post | None]] = {}  # pidfds and links: whose, and in which post; None = the spare

    # ---- life ----

    def run(self, adopt: bool, tell: Callable[[dict[str, Any]], None]) -> int:
        """Start or adopt, say that it is ready, serve until told to stop. Raises what the start fails with; nothing is left then."""
        self._title()
        jail.prepare()  # what workers inherit must not do behind their jail's door what is refused there
        self._wake = _signals(self._hear)
        group, mode = opening.existing(self.config.group), 0o755 if self.config.guests else 0o750
        self.rundir = rundir.claim(self.config.name, group=group, mode=mode)
        try:
            self.plan = self._adopted() or self._opened()
            try:
                self._serve(tell)
            except Exception as why:  # a defect of ours: the workers go on, and the next controller takes over
                self.log(f"E_INTERNAL {type(why).__name__}: {why}: a defect of pktring")
                traceback.print_exc()
                os._exit(DEFECT)
            tell({"carried": self.status()})
            self._end()
        finally:
            self.rundir.close()
        return ANEW if self.crew.suspect else 0

    def _opened(self) -> Plan:
        """Nobody is there: what dead engines of this name left is cleared away, and everything opened."""
        strays = adoption.end_strays(self.rundir)
        if gone := segment.discard(self.rundir.memory):
            of = self.rundir.before.generation if self.rundir.before else 0
            self.log(f"I_STALE_STATE removed {len(gone)} segments and {strays} workers of dead generation {of}")
        self.rundir.clean()
        generation = 1 + (self.rundir.before.generation if self.rundir.before else 0)
        self.rundir.record(generation)
        cpus = list(self.config.worker_cpus())
        plan = opening.Opening(self.config, self.rundir, self._open_device, cpus, generation, self.config.yes).plan()
        self._connect(plan)
        self.crew = Crew(plan, self.log, self._forget)
        try:
            self._name_ports(plan)
            for handler in self._handlers:
                plan.handlers[plan.memory.netisr.register(handler)] = handler
            plan.memory.netisr.set_dispatch(str(self.config.boot()["net.isr.dispatch"]))
            plan.memory.netisr.set_active(int(self.config.boot()["dev.pktring.workers"]))
            self._carry_whole(plan)
            for post in self.crew.posts:
                self.crew.fill(post, died=False)
            self.crew.all_run()
        except BaseException:
            self._end_of(plan)
            raise
        return plan

    def _connect(self, plan: Plan) -> None:
        """The controller's own hold on netisr: the last producer, and whoever frees what is queued for a worker that is not there."""
        netisr, own = plan.memory.netisr, len(plan.cpus)
        pool = plan.region.pool_of(own + 1)
        netisr.connect(plan.bells, pool, plan.region.view, self.log)
        self.end = End(netisr, pool, plan.region.view, producer=own, bells=plan.bells, rss_key=plan.config.rss_key)

    @staticmethod
    def _name_ports(plan: Plan) -> None:
        """netisr knows a port by its ifindex and its vnet, which is its network namespace: 0 is the engine's own."""
        netisr = plan.memory.netisr
        vnets: dict[str | None, int] = {None: 0}
        for port in plan.ports:
            netns = getattr(port.device, "netns", None)
            if netns not in vnets:
                vnets[netns] = netisr.make_vnet()
            netisr.set_port(port.number, _ifindex(port), vnets[netns])

    def _follow_port(self, port: Any, gone: bool) -> None:
        """Frames of a port that is gone, or is another interface now, are nobody's."""
        netisr, ifindex = self.plan.memory.netisr, 0 if gone else _ifindex(port)
        before, _, vnet = netisr.port(port.number)
        if ifindex != before:
            netisr.set_port(port.number, ifindex, vnet)

    def _adopted(self) -> Plan | None:
        """The plan of workers that run without a controller, None when there are none."""
        try:
            found = adoption.adopt(self.rundir, self._adopt_device, self._handlers)
        except Error as why:
            self.log(f"{why.code} {why.text}; what runs is ended, and everything opened anew")
            return None
        if found is None:
            return None
        plan, crew, self.adopted_apps = found
        self.rundir.record(plan.generation)
        self.config = plan.config
        self._connect(plan)
        self.crew = Crew(plan, self.log, self._forget)
        for post in self.crew.posts:
            if post.index in crew:
                self.crew.adopt(post, *crew[post.index])
        self.log(f"I_ADOPTED {len(crew)} of {len(self.crew.posts)} workers of generation {plan.generation}")
        self.crew.fork_spare()
        for post in self.crew.posts:
            if not post.hand:
                self.crew.fill(post, died=True)
        self.crew.kick_all()
        return plan

    def _serve(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self.answers = Answers(self)
        group, mode = opening.existing(self.config.group), 0o666 if self.config.guests else 0o660
        self.server = Server(self.rundir.control, group, self.answers.verbs(), on_gone=self.answers.gone, on_note=self.log, mode=mode)
        self._poll.register(self.server.fileno(), selectors.EVENT_READ, self.server.step)
        self._poll.register(self._wake, selectors.EVENT_READ, lambda: os.read(self._wake, 512))
        for port in self.plan.ports:
            if port.watch:
                self._poll.register(port.watch.fileno(), selectors.EVENT_READ, self._link_events(port))
        for port in self.plan.ports:
            for line in port.device.warnings():
                _say(line)  # `stat` shows them with the port
        names = " ".join(port.name for port in self.plan.ports)
        line = f"engine {self.config.name} is ready: {len(self.crew.posts)} workers on CPUs {self.plan.cpus}, ports {names or 'none'}"
        self.log(line)
        gc.freeze()  # what is here stays: no request waits for a collection of all of it
        tell({"ready": {"name": self.config.name, "pid": os.getpid(), "control": self.rundir.control}})
        sd_notify.notify("READY=1")
        next_look = 0.0
        while not self._stop and not self.crew.suspect:
            self._watch_crew()
            for key, _ in self._poll.select(max(0.0, min(LOOK_S, next_look - time.monotonic()))):
                key.data()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_S
                self._look()
            if self._reload_asked:
                self._reload_asked = False
                self._do_reload()
        if self.crew.suspect:
            self.log(f"E_LEDGER {self.crew.suspect.text}: everything is ended and started anew")
        sd_notify.notify("STOPPING=1")

    def stop(self) -> None:
        """End at the next turn of the loop."""
        self._stop = True

    # ---- the crew ----

    def _watch_crew(self) -> None:
        """Wait on the pidfds and links of whoever is there now."""
        now: dict[int, tuple[Any, Post | None, Callable[[], object]]] = {}
        for post in self.crew.posts:
            if post.hand:
                now[post.hand.pidfd.fileno()] = post.hand, post, lambda post=post: self._died(post)  # type: ignore[misc]
                now[post.hand.link.fileno()] = post.hand, post, lambda post=post: self._heard(post)  # type: ignore[misc]
        if self.crew.spare:
            now[self.crew.spare.pidfd.fileno()] = self.crew.spare, None, self._spare_died
        for fd, (hand, _) in list(self._watched.items()):
            if fd not in now or now[fd][0] is not hand:  # a number that is another's by now: epoll forgot it when it was closed
                self._unwatch_fd(fd)
        for fd, (hand, place, act) in now.items():
            if fd not in self._watched:
                self._poll.register(fd, selectors.EVENT_READ, act)
            elif self._watched[fd][1] is not place:
                self._poll.modify(fd, selectors.EVENT_READ, act)
            self._watched[fd] = hand, place

    def _died(self, post: Post) -> None:
        if post.hand and post.hand.pidfd.wait(0):
            self._unwatch(post.hand)
            self.crew.died(post)

    def _heard(self, post: Post) -> None:
        if post.hand and not self.crew.hear(post.hand):
            self._unwatch_fd(post.hand.link.fileno())

    def _spare_died(self) -> None:
        if self.crew.spare and self.crew.spare.pidfd.wait(0):
            self._unwatch(self.crew.spare)
            self.crew.dismiss_spare()
            self.crew.fork_spare()

    def _unwatch(self, hand: Any) -> None:
        self._unwatch_fd(hand.pidfd.fileno())
        self._unwatch_fd(hand.link.fileno())

    def _unwatch_fd(self, fd: int) -> None:
        if self._watched.pop(fd, None):
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._poll.unregister(fd)

    def change(self, plan: Plan) -> None:
        """Go over to another plan without losing a frame. Raises what it is refused for; nothing has changed then."""
        self._carry_whole(plan)
        try:
            self.crew.replace_all(plan)
        except Error:
            self._carry_whole(self.plan)
            raise
        self.plan = plan

    def renew(self, plan: Plan) -> None:
        """Take a plan that differs only in what the workers have noticed themselves."""
        self._carry_whole(plan)
        self.crew.renew(plan)
        self.plan = plan

    @staticmethod
    def _carry_whole(plan: Plan) -> None:
        for port in plan.ports:
            opening.carry_whole(plan, port)

    def _look(self) -> None:
        self.crew.due()
        self.crew.look(self._has_work)
        self.answers.tick()

    def _has_work(self, index: int) -> bool:
        """Does something wait for that worker: in its queues, or in a device?"""
        import select

        if self.plan.memory.netisr.depth(index):
            return True
        poll = select.poll()
        for port in self.plan.ports:
            for ring in port.rx[index]:
                fd = port.device.queues[port.queue_of[ring]].rx_fd
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
        return any(what & select.POLLIN for _, what in poll.poll(0))

    # ---- links, signals ----

    def _link_events(self, port: Any) -> Callable[[], None]:
        def act() -> None:
            anew = False
            for event in port.watch.events():
                self.log(event.line)
                anew = port.device.follow(event) or anew
                self._follow_port(port, event.kind in ("gone", "moved"))
            if anew:  # other sockets lie behind its numbers now, and the workers have the old ones
                self.change(self.plan)

        return act

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_asked = True
        else:
            self._stop = True

    def _do_reload(self) -> None:
        try:
            self.reload()
        except Error as why:
            self.log(f"{why.code} {why.text}; the engine goes on as it was")

    def reload(self) -> dict[str, Any]:
        """Read the configuration anew and go over to it. Raises E_CONFIG, E_RELOAD."""
        if not self._reload:
            raise Error("E_RELOAD", "this engine was not started from a file: stop it and start another")
        sd_notify.notify("RELOADING=1")
        try:
            config, handlers = self._reload()
            return self.answers.reconfigure(config, handlers)
        finally:
            sd_notify.notify("READY=1")

    # ---- facts ----

    def status(self) -> dict[str, Any]:
        """The whole of it."""
        return status(self.plan, self.crew, self.answers.apps, os.getppid(), self.started, list(self.events))

    def log(self, line: str) -> None:
        """Tell whoever reads stderr, and keep it for `stat`."""
        self.events.append(line)
        _say(line)

    # ---- end ----

    def _forget(self) -> None:
        """In a child: let go of what only the controller may hold."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        self._poll.close()
        self.rundir.release_in_child()
        if hasattr(self, "server"):
            self.server.release_in_child()
        if hasattr(self, "answers"):
            self.answers.release_in_child()

    def _end(self) -> None:
        if hasattr(self, "server"):
            self.server.close()
        self._end_of(self.plan)

    def _end_of(self, plan: Plan) -> None:
        """Stop the crew, give the interfaces back, take the memory away."""
        self.crew.dismiss()
        for port in plan.ports:
            if port.watch:
                port.watch.close()
            port.device.close()
        for listener in plan.listeners:
            listener.close()
        plan.memory.discard()
        plan.region.close()

    def _title(self) -> None:
        from setproctitle import setproctitle

        setproctitle(f"pktring: controller {self.config.name}")


def _ifindex(port: Any) -> int:
    return int(port.device.facts().get("ifindex", 0))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it has seen enough
        print(f"pktring: {line}", file=sys.stderr, flush=True)


def _signals(hear: Callable[[int], None]) -> int:
    """Turn signals into calls of `hear`; returns the descriptor that wakes the loop."""
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _frame: hear(n))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor hears Ctrl-C, and asks us to stop
    return wake_r
