"""Handlers that run as machine code: a Python function over one frame, and the loop over the burst around it, compiled by numba
into one C function (struct pktring_batch of pktring_handler.h), which a worker calls without the interpreter.

    @pktring.compiled(to="right")
    def web(frame, length):                        # frame: uint8 array of the first buffer, which may be written
        return length >= 38 and frame[23] == 6 and frame[36] * 256 + frame[37] == 80

numba is an extra (`pip install 'pktring[compiled]'`) and is imported when the first such handler is resolved, never before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pktring.shm.errors import Error

from . import _engine
from .handed import number_of

DONE: int = _engine.PR_DONE
MAX_PORT = 65535
MARK = "<what it returns>"  # in numba's many words, these are ours

# struct pktring_batch. Pointers are numbers here.
BATCH = np.dtype(
    [(name, "u4") for name in ("version", "n", "port_count", "raised")]
    + [(name, "u8") for name in ("frame", "length", "frame_length", "timestamp_ns", "port", "hash", "verdict", "state")],
    align=True,
)

# What the function may ask for by the names of its parameters, and where the loop gets it. Signed, all but the bytes:
# -length is then what it is in Python.
PARAMETERS = {
    "frame": "carray(pointer(frames[i]), lengths[i], uint8)",
    "length": "int64(whole_lengths[i])",
    "port": "int64(ports[i])",
    "timestamp": "int64(timestamps[i])",
    "hash": "int64(hashes[i])",
    "state": "state",
}

LOOP = """
def run(batches):
    batch = carray(batches, 1)
    n = batch[0].n
    frames = carray(pointer(batch[0].frame), n, uint64)
    lengths = carray(pointer(batch[0].length), n, uint32)
    whole_lengths = carray(pointer(batch[0].frame_length), n, uint32)
    timestamps = carray(pointer(batch[0].timestamp_ns), n, uint64)
    ports = carray(pointer(batch[0].port), n, uint16)
    hashes = carray(pointer(batch[0].hash), n, uint32)
    verdicts = carray(pointer(batch[0].verdict), n, int32)
    state = carray(pointer(batch[0].state), shape, state_type)
    for i in range(n):
        try:
            verdicts[i] = verdict(user({arguments}))
        except Exception:
            batch[0].raised += 1
"""


class Compiled:
    """What `@pktring.compiled` makes of a function; calling it calls the Python function itself, so that it can be tested."""

    def __init__(self, function: Callable[..., Any], to: Any = None, state: np.ndarray | None = None):
        functools.update_wrapper(self, function)
        self.function = function
        self.to = to
        self.state = state
        self._made: dict[Any, Any] = {}  # by the ports it goes to: processes that are forked from here have it already

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self.function(*args, **kw)

    def build(self, name: str, ports: Mapping[str, int]) -> tuple[int, int, Any]:
        """Compile it: the address of the C function, that of its state (0 = none), and what keeps both. Raises E_HANDLER."""
        arguments = _arguments(self.function, name, self.state is not None)
        state = _checked_state(self.state, name)
        several = isinstance(self.to, Sequence) and not isinstance(self.to, str)
        targets = _targets(self.to if several else [self.to], name, ports) if self.to is not None else None
        try:
            import numba
        except ImportError as why:
            raise _bad(name, f"compiled handlers need numba ({why}): pip install 'pktring[compiled]'") from None
        ways = (several, targets and tuple(targets))
        if ways not in self._made:
            try:
                self._made[ways] = _compile(self.function, arguments, state, _verdict(targets, several))
            except numba.core.errors.NumbaError as why:
                raise _bad(name, f"numba cannot compile it: {_telling_line(why)}") from why
        run = self._made[ways]
        return run.address, 0 if self.state is None else state.ctypes.data, (run, state)


def compiled(function: Callable[..., Any] | None = None, *, to: Any = None, state: np.ndarray | None = None) -> Any:
    """Make a handler of a function on one frame that is compiled to machine code: `@compiled` or `@compiled(to="right")`.

    Its parameters are taken by name, in any order: `frame` (uint8 array of the first buffer, writable), `length` (of the
    whole frame), `port` (number of the one it came in by), `timestamp` (ns), `hash` (of its flow, 0 = none), `state`.
    With `to`, the name of a port, it returns True (the frame leaves by it) or False (it ends here); where `to` is a list
    of ports, an index into that, or -1; without, a port's number or -1. None ends the frame, always. An index outside of
    `frame` and the like raise: the frame ends and is counted. All are signed but the bytes, as in numpy: int(frame[0]) - 1.
    `state`: an array that the calls share. Each worker has its own from its start on, unless it lies in shared memory.
    """
    if function is None:
        return lambda function: Compiled(function, to, state)
    return Compiled(function, to, state)


def _arguments(function: Callable[..., Any], name: str, has_state: bool) -> list[str]:
    if not inspect.isfunction(function):
        raise _bad(name, f"{type(function).__name__} objects cannot be compiled: give a Python function")
    words = list(inspect.signature(function).parameters)
    if strange := [word for word in words if word not in PARAMETERS]:
        raise _bad(name, f"what is {strange[0]!r}? The parameters of a compiled handler are {', '.join(PARAMETERS)}")
    if "state" in words and not has_state:
        raise _bad(name, "it wants a state and has none: @pktring.compiled(state=numpy.zeros(...))")
    return words


def _checked_state(state: Any, name: str) -> np.ndarray:
    if state is None:
        return np.zeros(1, "u1")
    if not isinstance(state, np.ndarray) or not state.flags.c_contiguous or not state.flags.writeable or state.dtype.hasobject:
        raise _bad(name, "its state must be a numpy array of numbers, contiguous and writable")
    return state


def _targets(to: Sequence[Any], name: str, ports: Mapping[str, int]) -> list[int]:
    try:
        return [number_of(port, ports) for port in to]
    except Error as why:
        raise _bad(name, why.text) from None


def _compile(function: Callable[..., Any], arguments: list[str], state: np.ndarray, verdict: Any) -> Any:
    import numba
    from numba import types

    # boundscheck and Python's errors cost nothing that can be measured, and keep a wrong index out of other frames.
    user = numba.njit(boundscheck=True, error_model="python")(function)
    names = {
        "carray": numba.carray,
        "pointer": _pointer(),
        "user": user,
        "verdict": verdict,
        "shape": state.shape,
        "state_type": state.dtype,
        **{kind: getattr(types, kind) for kind in ("uint8", "uint16", "uint32", "uint64", "int32", "int64")},
    }
    exec(LOOP.format(arguments=", ".join(PARAMETERS[word] for word in arguments)), names)
    return numba.cfunc(types.void(types.CPointer(numba.from_dtype(BATCH))))(names["run"])


def _pointer() -> Any:
    """A number as a pointer: numba has no such cast of its own."""
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def pointer(typing, number):
        return types.voidptr(types.uint64), lambda context, builder, signature, args: builder.inttoptr(args[0], cgutils.voidptr_t)

    return intrinsic(pointer)


def _verdict(targets: list[int] | None, several: bool) -> Any:
    """From what the function returned to the verdict: by one of three ways, each from one type."""
    import numba
    from numba import types
    from numba.extending import overload

    table = np.array(targets or [DONE], dtype="i4")
    n = len(table)

    def of_bool(said):
        return table[0] if said else np.int32(DONE)

    def of_index(said):
        if said < DONE or said >= n:
            raise IndexError("no such port")
        return np.int32(DONE) if said == DONE else table[said]

    def of_number(said):
        if said < DONE or said > MAX_PORT:
            raise IndexError("no such port")
        return np.int32(said)

    way = of_number if targets is None else of_index if several else of_bool
    takes = types.boolean if way is of_bool else types.int64
    wanted = "True or False, because of to=PORT" if way is of_bool else "a port's number or -1; a bool needs to=PORT"
    chosen = numba.njit(types.int32(takes))(way)  # its type is given: what may be None besides is converted, and is not None there

    def of(said):
        raise NotImplementedError

    @overload(of)
    def choose(said):
        kind = said.type if isinstance(said, types.Optional) else said
        if isinstance(kind, types.NoneType):
            return lambda said: np.int32(DONE)
        if isinstance(kind, types.Boolean if way is of_bool else types.Integer):
            return lambda said: chosen(said)
        raise numba.core.errors.TypingError(f"{MARK} {kind}: return {wanted}")

    @numba.njit
    def verdict(said):
        return np.int32(DONE) if said is None else of(said)

    return verdict


def _telling_line(why: Exception) -> str:
    """What is wrong, out of the many lines that numba says."""
    if MARK in (text := str(why)):
        return f"it returns{text.partition(MARK)[2].splitlines()[0]}"
    lines = [line.strip() for line in text.splitlines()]
    for i, line in enumerate(lines):
        if line.startswith(("Failed in", "During", "File ", "<source", "- ")) or not line:
            continue
        call = next((more for more in lines[i:] if more.startswith(">>>")), "") if "No implementation" in line else ""
        return f"{line} {call}".rstrip()
    return type(why).__name__


def _bad(name: str, what: str) -> Error:
    return Error("E_HANDLER", f"{name!r}: {what}")
