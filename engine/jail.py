"""What a worker gives up once everything it needs is open: capabilities, new privileges, most system calls, files. The rules are in jail.h.

    other descriptors ▸ core dumps, tracers ▸ capabilities ▸ new privileges ▸ files (Landlock) ▸ system calls (seccomp)

It works without privileges too. A step that this kernel refuses is told in the facts, under `lacks`, and the others are done all the same.
What is refused afterwards is EPERM, a PermissionError, never death: socket, connect, execve, fork and threads, ptrace, mount, opening for
writing, memory that is written and run. Modules are imported before: extensions cannot be loaded afterwards, nor folders listed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import site
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from ..shm.errors import Error
from . import _engine

MAX_PATHS = 64


def enter(
    *,
    keep_fds: Iterable[int] | None = None,
    jit: bool = False,
    bpf: bool = False,
    files: bool = False,
    epoll: bool = False,
    read_from: Iterable[str] | None = None,
    dumpable: bool = False,
) -> dict[str, Any]:
    """Lock this process, and return what holds now, as the kernel says it. There is no way back. Call `prepare` before the fork.

    `keep_fds`: close every other descriptor but 0, 1, 2 (None: close none). `jit`: machine code may be made (numba). `bpf`: programs may
    be run and maps changed, on descriptors that are open. `files`: captures are written (ftruncate). `epoll`: epoll_wait, too.
    `read_from`: folders and files that may be opened for reading (None: where Python finds modules). `dumpable`: core files, and tracers of
    the same user, are let at it.

    Facts: capabilities (hex), no_new_privs, seccomp (2 = filtered, 0 = not), calls (how many are let through), landlock (ABI, 0 = none),
    dumpable, threads, closed (descriptors; None = not asked), lacks (a line for each step that this kernel refused).
    """
    _traceback_works()
    groups = allowed(jit=jit, bpf=bpf, files=files, epoll=epoll)
    paths = _code_paths() if read_from is None else list(read_from)
    kept = None if keep_fds is None else close_others(keep_fds)
    status = _opened_status()
    lacks: list[str] = []

    def step(name: str, do: Callable[[], int], harmless: int = 0) -> bool:
        why = do()
        if why and why != harmless:
            lacks.append(f"{name}: {os.strerror(why)}")
        return not why

    try:
        if not dumpable:
            step("dumpable", _engine.jail_undumpable)
        # Without CAP_SETPCAP both are refused and both change nothing: a process without new privileges gains none by a program.
        step("bounding set", _engine.jail_bounding, errno.EPERM)
        step("securebits", _engine.jail_securebits, errno.EPERM)
        step("ambient set", _engine.jail_ambient)
        step("capabilities", _engine.jail_capabilities)
        step("no_new_privs", _engine.jail_no_new_privs)
        abi = _engine.jail_landlock_abi()
        landlocked = step("landlock", lambda: _engine.jail_landlock([os.fsencode(path) for path in paths]))
        filtered = step("seccomp", lambda: _engine.jail_filter(groups))
        facts = _facts(status)
    finally:
        if status >= 0:
            os.close(status)
    if facts["threads"] > 1:
        lacks.append(f"threads: {facts['threads'] - 1} besides the caller keep capabilities and files: see jail.prepare")
    calls = len(_engine.jail_calls(groups)) if filtered else 0
    return facts | {"calls": calls, "landlock": abi if landlocked else 0, "dumpable": dumpable, "closed": kept, "lacks": lacks}


def prepare() -> None:
    """Before the fork: numpy's linear algebra shall compute in the thread that calls it, in this process and in its children.

    In a jail it could not start threads, and ends the process (OpenBLAS) where it tries; threads that it started before keep their
    capabilities. After the fork it is too late: being told to use fewer threads, it starts them.
    """
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


def allowed(*, jit: bool = False, bpf: bool = False, files: bool = False, epoll: bool = False) -> int:
    """The groups of system calls for these wishes, as jail.h adds them up."""
    wanted = {_engine.PR_JAIL_JIT: jit, _engine.PR_JAIL_RUN_BPF: bpf, _engine.PR_JAIL_FILES: files, _engine.PR_JAIL_EPOLL: epoll}
    return sum(group for group, wish in wanted.items() if wish)


def close_others(keep: Iterable[int]) -> int:
    """Close every descriptor but these and 0, 1, 2; how many were open."""
    kept = {0, 1, 2, *keep}
    extra = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in kept]
    closed = 0
    for fd in extra:
        with contextlib.suppress(OSError):  # the one by which the list was read is gone already
            os.close(fd)
            closed += 1
    return closed


def _code_paths() -> list[str]:
    """Where a traceback or a late import finds source: folders of Python and of sys.path, but neither the root nor somebody's home."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    home = os.path.expanduser("~")
    wanted = [sys.prefix, sys.base_prefix, *site.getsitepackages(), here, *(path for path in sys.path if os.path.isabs(path))]
    found = dict.fromkeys(os.path.realpath(path) for path in wanted if os.path.exists(path))
    top = [path for path in found if path not in ("/", home) and not any(path.startswith(f"{other}/") for other in found)]
    if len(top) > MAX_PATHS:
        raise Error("E_JAIL", f"{len(top)} folders on sys.path: at most {MAX_PATHS}")
    return top


def _traceback_works() -> None:
    """Let what traceback imports at its first use be imported now, and none of it ask for the current folder, which is refused later."""
    sys.path[:] = [path for path in sys.path if path]
    try:
        raise ValueError
    except ValueError:
        traceback.format_exc()


def _opened_status() -> int:
    """/proc/self/status, opened while that is possible; what is read from it later is what is true then. -1: there is no /proc."""
    try:
        return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _facts(status: int) -> dict[str, Any]:
    words = dict(line.split(":\t", 1) for line in os.read(status, 1 << 16).decode().splitlines() if ":\t" in line) if status >= 0 else {}
    return {
        "capabilities": max((words.get(name, "") for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")), default="").lstrip("0") or "0",
        "no_new_privs": words.get("NoNewPrivs") == "1",
        "seccomp": int(words.get("Seccomp", "0")),
        "threads": int(words.get("Threads", "0")),
    }
