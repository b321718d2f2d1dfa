"""Handlers: what a user may write for one, and the table that a worker runs them from (handler.h says how).

    text or object                     kind      what runs on the path
    "module:qualname"                            what is found there: one of the next three
    def handler(batch)                 batch     Python, once a burst
    @pktring.per_frame                 frame     Python, once a frame
    @pktring.compiled                  function  machine code, made from Python by numba (compiled.py)
    "so:/path/lib.so:symbol"           function  machine code (pktring_handler.h)
    "forward:PORT" "drop" "count"      builtin   handler.h; `mirror` sends a frame back by the port it came in by, `mirror:PORT`
    "mirror" "mirror:PORT"                       by another: the frame itself would end here, so that it need not be copied
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pktring.shm.errors import Error

from . import _engine
from .compiled import Compiled
from .handed import Handed, Ports, known, number_of

DONE: int = _engine.PR_DONE
BUILTINS = ("forward", "mirror", "drop", "count")
STATS = ("frames", "bytes", "batches", "raised", "lost", "ns_total", "ns_max", "ns_last", "last_error")
STATS_SIZE: int = _engine.PR_HANDLER_STATS  # of one worker's table: all protocols
CALLBACKS = {"m2flow": 1, "m2cpuid": 2, "drainedcpu": 1}  # and what they are called with: frame; frame, source; cpu


@dataclass(frozen=True)
class LoadedHandler:
    """A handler as a worker runs it. `kept` holds in memory what `address` and `state` point to."""

    name: str
    kind: str  # batch frame function builtin
    call: Any = None  # batch, frame: the Python function; builtin: its name
    address: int = 0
    state: int = 0
    target: int = -1
    kept: Any = None
    jit: bool = False


class PerFrame:
    """What `@pktring.per_frame` makes of a function; calling it calls the function."""

    def __init__(self, function: Callable[[memoryview], Any], to: Any = None):
        functools.update_wrapper(self, function)
        self.function = function
        self.to = to

    def __call__(self, frame: memoryview) -> Any:
        return self.function(frame)


def per_frame(function: Callable[[memoryview], Any] | None = None, *, to: Any = None) -> Any:
    """Make a handler of a function on one frame: `@per_frame` or `@per_frame(to="right")`.

    The frame is a memoryview that may be written and ends with the call (a frame that spans several buffers: a copy).
    Return None or False: it ends here. True: it leaves by `to`. A port's number, name or handle: it leaves by that one.
    """
    if function is None:
        return lambda function: PerFrame(function, to)
    return PerFrame(function, to)


# ---- from what the user wrote to what runs ----


def resolve(spec: Any, ports: Ports, *, running: bool = False) -> LoadedHandler:
    """Load the handler that `spec` means (the table above); machine code is made now. Raises E_HANDLER.

    `running`: the engine is, so that a function enters only by the name under which every worker can import it.
    """
    if isinstance(spec, str):
        word, _, rest = spec.partition(":")
        if word in BUILTINS:
            return _builtin(spec, word, rest, ports)
        if word == "so":
            return _from_library(spec)
        return _prepared(imported(spec), spec, ports)
    if running:
        return resolve(importable_name(spec), ports)
    return _prepared(spec, _name_of(spec), ports)


def imported(text: str) -> Any:
    """The object that "module:qualname" names. Raises E_HANDLER."""
    module, colon, qualname = text.partition(":")
    parts = [*module.split("."), *qualname.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise _bad(text, f"not a handler: give module:function, so:/path/lib.so:symbol, or a built-in ({', '.join(BUILTINS)})")
    found: Any = _import(text, module)
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _bad(text, f"there is no {part!r} in {getattr(found, '__name__', found)}: check its spelling") from None
    return found


def _import(text: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as why:
        if why.name and (module == why.name or module.startswith(why.name + ".")):
            meant = difflib.get_close_matches(text.partition(":")[0], BUILTINS, 1)
            hint = f"did you mean the built-in {meant[0]}" if meant else "is its folder in PYTHONPATH"
            raise _bad(text, f"there is no module {why.name!r}: {hint}?") from None
        raise _bad(text, f"importing {module} fails: {why}: install what it imports") from why
    except (Exception, SystemExit) as why:
        raise _bad(text, f"importing {module} fails: {_line(why)}: run it by itself") from why


def importable_name(handler: Any) -> str:
    """The "module:qualname" by which every process finds this very object. Raises E_HANDLER for a closure and the like."""
    if isinstance(handler, str):
        return handler
    module, qualname = getattr(handler, "__module__", None), getattr(handler, "__qualname__", None)
    name = f"{module}:{qualname}"
    found: Any = sys.modules.get(module or "")
    for part in (qualname or "").split("."):
        found = getattr(found, part, None)
    if module in (None, "__main__") or found is None or found is not handler:
        raise _bad(_name_of(handler), "running workers cannot import it: put it into a module, at its top, and give module:name")
    return name


def _builtin(spec: str, word: str, rest: str, ports: Ports) -> LoadedHandler:
    if word in ("drop", "count") and rest:
        raise _bad(spec, f"{word} goes to no port: write {word}")
    if word == "forward" and not rest:
        raise _bad(spec, f"forward whither? Write forward:PORT, one of {known(ports)}")
    return LoadedHandler(spec, "builtin", word, target=_target(spec, rest, ports) if rest else -1)


def _from_library(spec: str) -> LoadedHandler:
    library, address = _symbol(spec)
    return LoadedHandler(spec, "function", address=address, kept=library)


def _symbol(spec: str) -> tuple[Any, int]:
    """The shared object and the address that "so:/path/lib.so:symbol" means."""
    import ctypes

    path, colon, symbol = spec.removeprefix("so:").rpartition(":")
    if not colon or not path or not symbol:
        raise _bad(spec, "write so:/path/lib.so:symbol")
    try:
        library = ctypes.CDLL(os.path.abspath(path))
    except OSError as why:
        raise _bad(spec, f"{why}: compile it with -shared -fPIC") from None
    try:
        address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    except AttributeError:
        raise _bad(spec, f"there is no function {symbol!r} in {path}: nm -D {path} lists them") from None
    return library, address or 0


def _prepared(handler: Any, name: str, ports: Ports) -> LoadedHandler:
    if isinstance(handler, Compiled):
        address, state, kept = handler.build(name, ports)
        return LoadedHandler(name, "function", address=address, state=state, kept=kept, jit=True)
    if isinstance(handler, PerFrame):
        _check(handler.function, name, 1, "the frame")
        target = -1 if handler.to is None else _target(name, handler.to, ports)
        return LoadedHandler(name, "frame", handler.function, target=target)
    _check(handler, name, 1, "the batch")
    return LoadedHandler(name, "batch", handler)


def _check(function: Any, name: str, n: int, what: str) -> None:
    """Does it look like something that can be called with n things, and that does its work when it is called?"""
    if not callable(function):
        raise _bad(name, f"{type(function).__name__} objects cannot be called: give a function")
    if isinstance(function, type):
        raise _bad(name, "it is a class: give a function, or an object that can be called")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _bad(name, "it is async or has a yield: calling it would run none of it")
    try:
        inspect.signature(function).bind(*range(n))
    except ValueError:
        pass  # a function in C that does not say what it takes
    except TypeError as why:
        raise _bad(name, f"it is called with {what}: {why}") from None


def resolve_callback(spec: Any, which: str) -> Any:
    """Load m2flow, m2cpuid or drainedcpu: a Python function, or the address of a C one ("so:..."). Raises E_HANDLER.

    m2flow(frame) -> hash of its flow; m2cpuid(frame[, source]) -> index of a CPU; None: no idea; -1: the frame is not wanted.
    drainedcpu(cpu): nothing is expected. Frames are as in `per_frame`. In C: struct pr_callbacks of handler.h.
    """
    if spec is None:
        return None
    name = spec if isinstance(spec, str) else _name_of(spec)
    if isinstance(spec, str) and spec.startswith("so:"):
        return _symbol(spec)[1]  # the library stays loaded: ctypes never closes one
    function = imported(spec) if isinstance(spec, str) else spec
    if which == "m2cpuid" and _takes_one(function):
        one = function
        return lambda frame, source: one(frame)
    _check(function, name, CALLBACKS[which], {"m2flow": "the frame", "m2cpuid": "the frame and its source"}.get(which, "the CPU"))
    return function


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(0, 0)
    except TypeError:
        _check(function, _name_of(function), 1, "the frame and its source")
        return True
    except ValueError:
        pass
    return False


def _target(name: str, port: Any, ports: Ports) -> int:
    try:
        return number_of(port, ports)
    except Error as why:
        raise _bad(name, why.text) from None


def _name_of(handler: Any) -> str:
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    module = getattr(handler, "__module__", None)
    return f"{module}:{name}" if module else name


def _line(why: BaseException) -> str:
    """An exception in a line: the first of its text."""
    text = str(why).strip()
    return f"{type(why).__name__}: {text.splitlines()[0]}" if text else type(why).__name__


def _bad(name: str, what: str) -> Error:
    return Error("E_HANDLER", f"{name!r}: {what}")


# ---- what a worker has ----


class HandlerTable(_engine.HandlerTable):
    """A worker's handlers, by protocol. `capsule` is what its loop in C runs them from.

    A handler that raises ends its frames; `log` gets a line of it, at most one a second and handler.
    """

    def __init__(self, region: Any, ports: Ports, log: Callable[[str], None] | None = None):
        super().__init__(region.view, max(ports.values(), default=-1) + 1)
        self._region = region
        self._ports = dict(ports)
        self._log = log
        self._stats: Any = None
        self.loaded: dict[int, LoadedHandler] = {}

    def load(self, registration: Any, *, running: bool = False) -> LoadedHandler:
        """Resolve and install what was registered: an object with `proto`, `handler`, and perhaps `name` and callbacks."""
        proto = registration.proto
        handler = resolve(registration.handler, self._ports, running=running)
        self.install(proto, handler)
        self.set_callbacks(proto, *(resolve_callback(getattr(registration, which, None), which) for which in CALLBACKS))
        return handler

    def install(self, proto: int, handler: LoadedHandler) -> None:
        """Run this for the frames of a protocol (0 to 16)."""
        if handler.kind == "builtin":
            self.set_builtin(proto, handler.call, handler.target)
        elif handler.kind == "function":
            self.set_function(proto, handler.address, handler.state, handler)
        else:
            self.set_python(proto, handler.call, handler.kind == "frame", handler.target)
        self.loaded[proto] = handler

    def remove(self, proto: int) -> None:
        """Forget a protocol's handler and callbacks."""
        self.clear(proto)
        self.loaded.pop(proto, None)

    @property
    def compiled(self) -> bool:
        """Whether machine code was made here."""
        return any(handler.jit for handler in self.loaded.values())

    def attach(self, stats: Any, pool: Any) -> None:
        """Become a worker's: count in `stats` (STATS_SIZE bytes of shared memory) from now on, and own frames in `pool`."""
        super().attach(stats, pool)
        self._stats = stats

    def stats(self, proto: int) -> dict[str, Any]:
        """This worker's numbers for a protocol, once it is attached."""
        return handler_stats(self._stats, proto)

    # ---- called from C ----

    def batch(self, frames: _engine.Frames) -> Handed:
        """The object that handlers on batches are called with."""
        return Handed(frames, self._ports)

    def number(self, said: Any, target: int) -> int:
        """What a per-frame handler returned, when it is neither None nor a bool nor an int."""
        if type(said).__name__ in ("bool", "bool_"):
            if said and target < 0:
                raise Error("E_PORT", "it returned True, and no port was given for that: @pktring.per_frame(to=PORT)")
            return target if said else DONE
        return number_of(said, self._ports)

    def tell(self, proto: int, why: BaseException | None, times: int) -> str:
        """A handler failed, so often since this was called last. Returns the line that `last_error` keeps."""
        name = self.loaded[proto].name if proto in self.loaded else f"protocol {proto}"
        error = _line(why) if why else "an error in machine code"
        line = f"{name} raised {error}" + (f" ({times} times)" if times > 1 else "")
        if self._log:
            self._log(line)
        return line


def handler_stats(memory: Any, proto: int) -> dict[str, Any]:
    """One worker's numbers for a protocol, by name (STATS), and `mean_us` and `max_us` of a batch; `memory`: as in `attach`."""
    row = dict(zip(STATS, _engine.handler_stats(memory, proto), strict=True))
    mean = row["ns_total"] / row["batches"] / 1000 if row["batches"] else 0.0
    return row | {"mean_us": round(mean, 3), "max_us": row["ns_max"] / 1000}
