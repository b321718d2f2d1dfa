"""Handlers that are compiled: what the function may ask for and return, what it may not, and that its mistakes stay its own."""

import builtins
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inhand import PORTS, ROOM, Bench

import pktring
from pktring.engine.compiled import BATCH
from pktring.engine.handlers import importable_name, imported, resolve
from pktring.shm.errors import Error

try:
    import numba
except ImportError:
    numba = None
needs_numba = pytest.mark.skipif(numba is None, reason="tool: numba is not installed")
DONE = pktring.DONE


@pytest.fixture(scope="module")
def shared():
    with Bench() as bench:
        yield bench


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def refused(handler):
    with pytest.raises(Error) as why:
        resolve(handler, PORTS)
    assert why.value.code == "E_HANDLER" and "\n" not in str(why.value)
    return why.value.text


@pktring.compiled(to="right")
def web(frame, length):
    """Say whether it is TCP to port 80."""
    return length >= 38 and frame[12] == 8 and frame[23] == 6 and frame[36] * 256 + frame[37] == 80


FRAMES = [b"", b"abc", b"d" * 60, b"e" * (ROOM + 9), b"f" * ROOM]


@needs_numba
def test_a_predicate_sends_by_its_port(bench):
    http = bytearray(60)
    http[12], http[23], http[36:38] = 8, 6, (80).to_bytes(2, "big")
    ssh = bytearray(http)
    ssh[37] = 22
    assert bench.verdicts(web, [http, ssh, http[:20], b"", http]) == [1, DONE, DONE, DONE, 1]
    assert bench.stats()["raised"] == 0 and bench.table.compiled
    assert web(bytes(http), 60) is True, "the function itself can be called in Python"


@needs_numba
def test_every_fact_is_there_by_its_name(bench):
    state = np.zeros((len(FRAMES), 6), "u8")

    @pktring.compiled(state=state)
    def handler(hash, port, state, timestamp, frame, length):
        row = state[port]
        row[0], row[1], row[2], row[3], row[4] = len(frame), length, port, timestamp, hash
        for byte in frame:
            row[5] += byte

    facts = {"port": list(range(5)), "timestamp": [2**62 + i for i in range(5)], "hash": [None, 2**32 - 1, 3, None, 5]}
    assert bench.verdicts(handler, FRAMES, **facts) == [DONE] * 5
    first = [frame[:ROOM] for frame in FRAMES]
    hashes = [0, 2**32 - 1, 3, 0, 5]
    expected = [[len(f), len(w), i, 2**62 + i, hashes[i], sum(f)] for i, (f, w) in enumerate(zip(first, FRAMES, strict=True))]
    assert state.tolist() == expected


@pktring.compiled
def summing(frame, length):
    total = 0
    for byte in frame:
        total += byte
    return total % 2


@pktring.compiled
def picky(frame, length):
    if frame[5] % frame[3] == 1:
        return frame[-length]
    return None


@needs_numba
@settings(deadline=None, max_examples=60)
@example(frames=[b"\0\0\0\2\0\1"])
@given(frames=st.lists(st.binary(max_size=ROOM + 20), min_size=1, max_size=20))
def test_it_decides_as_the_python_function_does(shared, frames):
    for proto, handler in enumerate((summing, picky)):
        if proto not in shared.table.loaded:
            shared.load(handler, proto)
        shared.take(frames)
        for frame, verdict in zip(frames, shared.run(proto), strict=True):
            try:
                said = handler(list(frame[:ROOM]), len(frame))
            except (IndexError, ZeroDivisionError):
                said = None
            assert verdict == (DONE if said is None else said)


@needs_numba
def test_a_list_of_ports_is_returned_an_index_into(bench):
    @pktring.compiled(to=["far", "left"])
    def handler(frame):
        if len(frame) == 0:
            return -1
        return len(frame) - 3

    assert bench.verdicts(handler, [b"", b"abc", b"abcd", b"abcde", b"ab"]) == [DONE, 5, 0, DONE, -1]
    assert bench.stats()["raised"] == 1, "index 2 of two; -1 ends the frame"


@needs_numba
def test_a_number_that_no_port_can_have_is_an_error(bench):
    says = np.zeros(1, "i8")
    bench.load(pktring.compiled(lambda state: state[0], state=says))
    bench.take([b"x"])
    wrong = 0
    for said, verdict in [(0, 0), (5, 5), (-1, DONE), (-2, None), (65535, 65535), (65536, None), (2**40, None)]:
        says[0] = said
        wrong += verdict is None
        assert bench.run() == [DONE if verdict is None else verdict] and bench.stats()["raised"] == wrong


@needs_numba
def test_an_error_ends_the_frame_and_is_counted(bench):
    @pktring.compiled
    def handler(frame):
        if frame[0] == 1:
            frame[len(frame)] = 7
        elif frame[0] == 2:
            frame[-len(frame) - 1] = 7
        elif frame[0] == 3:
            return 1 // (len(frame) - 3)
        elif frame[0] == 4:
            raise ValueError("no")
        return 1

    frames = [b"\0ab", b"\1cd", b"\2ef", b"\3gh", b"\4ij", b"\0kl"]
    assert bench.verdicts(handler, frames) == [1, DONE, DONE, DONE, DONE, 1]
    assert bench.hand.frames() == frames, "nothing beside a frame was written"
    stats = bench.stats()
    assert (stats["raised"], stats["lost"]) == (4, 4) and len(bench.lines) == 1
    assert "an error in machine code (4 times)" in stats["last_error"]


@needs_numba
def test_a_frame_may_be_written(bench):
    @pktring.compiled
    def handler(frame):
        for i in range(len(frame) // 2):
            frame[i], frame[len(frame) - 1 - i] = frame[len(frame) - 1 - i], frame[i]
        return 1

    assert bench.verdicts(handler, [b"abcd", b"xyz"]) == [1, 1]
    assert bench.hand.frames() == [b"dcba", b"zyx"]


@needs_numba
def test_state_of_any_type_lasts_from_burst_to_burst(bench):
    table = np.zeros(4, [("seen", "u4"), ("bytes", "u8")])

    @pktring.compiled(state=table)
    def handler(frame, length, state):
        at = state[frame[0] % 4]
        at.seen += 1
        at.bytes += length

    for _ in range(3):
        bench.verdicts(handler, [b"\0ab", b"\1", b"\5abcd"])
    assert table["seen"].tolist() == [3, 6, 0, 0] and table["bytes"].tolist() == [9, 18, 0, 0]


@needs_numba
def test_it_uses_what_numba_knows_of_a_closure(bench):
    wanted, other = 3, np.arange(10)

    @pktring.compiled(to="far")
    def handler(frame):
        return len(frame) == wanted + other[0]

    assert bench.verdicts(handler, [b"abc", b"ab"]) == [5, DONE]


@needs_numba
@pytest.mark.parametrize(
    "handler, words",
    [
        (pktring.compiled(lambda frame: "text"), "it returns unicode_type: return a port's number or -1"),
        (pktring.compiled(lambda frame: 1.5), "it returns float64"),
        (pktring.compiled(lambda frame: True), "it returns bool: return a port's number or -1; a bool needs to=PORT"),
        (pktring.compiled(lambda frame: 1, to="left"), "return True or False, because of to=PORT"),
        (pktring.compiled(lambda frame: True, to=["left", "far"]), "it returns bool"),
        (pktring.compiled(lambda frame: frame.nothing()), "Unknown attribute 'nothing'"),
        (pktring.compiled(lambda frame: undefined(frame)), "undefined"),  # noqa: F821
        (pktring.compiled(lambda frame: 1, to="nowhere"), "no port 'nowhere': this engine has left (0)"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_a_line(handler, words):
    assert words in refused(handler)


@pytest.mark.parametrize(
    "handler, words",
    [
        (pktring.compiled(lambda packet: 1), "what is 'packet'? The parameters of a compiled handler are frame, length, port"),
        (pktring.compiled(lambda frame, state: 1), "it wants a state and has none"),
        (pktring.compiled(lambda frame: 1, state=[1, 2]), "must be a numpy array"),
        (pktring.compiled(lambda frame: 1, state=np.zeros((4, 4))[:, 1]), "must be a numpy array"),
        (pktring.compiled(lambda frame: 1, state=np.array([None])), "must be a numpy array"),
        (pktring.compiled(lambda *frames: 1), "what is 'frames'?"),
        (pktring.compiled(3), "int objects cannot be compiled"),
        (pktring.compiled(len), "cannot be compiled"),
    ],
)
def test_what_is_asked_for_and_not_there_is_said_in_a_line(handler, words):
    assert words in refused(handler)


def test_without_numba_it_is_refused_with_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **keys):
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name="numba")
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "need numba (No module named 'numba'): pip install 'pktring[compiled]'" in refused(web)


def test_numba_is_not_imported_before_it_is_needed():
    code = "import sys, pktring; pktring.compiled(lambda frame: 1); print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"


def test_it_enters_a_running_engine_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "some_handlers", sys.modules[__name__])
    monkeypatch.setattr(web, "__module__", "some_handlers")
    assert importable_name(web) == "some_handlers:web" and imported("some_handlers:web") is web


def test_the_structure_is_that_of_the_header():
    import ckernel

    fields = ", ".join(f"offsetof(struct pktring_batch, {name})" for name in BATCH.names)
    source = f"""
        #include <stddef.h>
        #include "pktring_handler.h"
        static const size_t facts[] = {{{fields}, sizeof(struct pktring_batch)}};
        int fact(int i) {{ return (int)facts[i]; }}"""
    fact = ckernel.load(source).fact
    assert [fact(i) for i in range(len(BATCH.names) + 1)] == [*(BATCH.fields[name][1] for name in BATCH.names), BATCH.itemsize]


@needs_numba
def test_a_process_that_is_forked_later_has_the_machine_code_already(bench):
    address = resolve(web, PORTS).address
    child = os.fork()
    if not child:
        same = resolve(web, PORTS).address == address and bench.verdicts(web, [b"", b"abc"]) == [DONE, DONE]
        bench.hand.free()
        os._exit(0 if same and bench.stats()["batches"] == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
