"""Handlers: what may be written for one, what runs, what is counted, and what happens when it fails."""

import ctypes
import gc
import subprocess
import sys
import threading
import time
import types
import weakref

import ckernel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inhand import PORTS, ROOM, Bench

import pktring
from pktring.engine import _engine
from pktring.engine.handlers import (
    DONE,
    STATS_SIZE,
    HandlerTable,
    handler_stats,
    importable_name,
    imported,
    resolve,
    resolve_callback,
)
from pktring.shm.errors import Error


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def refused(spec, **keys):
    """The words of an E_HANDLER."""
    with pytest.raises(Error) as why:
        resolve(spec, PORTS, **keys)
    assert why.value.code == "E_HANDLER" and "\n" not in str(why.value)
    return why.value.text


# ---- built-ins ----

FRAMES = [b"one", b"three" * 100, b"", b"four"]


@pytest.mark.parametrize(
    "spec, verdicts",
    [
        ("drop", [DONE] * 4),
        ("count", [DONE] * 4),
        ("forward:right", [1] * 4),
        ("forward:far", [5] * 4),
        ("mirror", [0, 5, 1, 0]),
        ("mirror:left", [0] * 4),
    ],
)
def test_a_builtin_gives_its_verdict(bench, spec, verdicts):
    assert bench.verdicts(spec, FRAMES, port=[0, 5, 1, 0]) == verdicts
    stats = bench.stats()
    assert (stats["frames"], stats["bytes"], stats["batches"]) == (4, sum(map(len, FRAMES)), 1)
    assert (stats["raised"], stats["lost"], stats["last_error"]) == (0, 0, "")


def test_a_builtin_needs_to_know_whither(bench):
    assert "forward:PORT, one of left (0), right (1), far (5)" in refused("forward")
    assert "no port 'nowhere'" in refused("forward:nowhere")
    assert "no port 'x'" in refused("mirror:x")
    assert "goes to no port" in refused("drop:left") and "goes to no port" in refused("count:left")


def test_without_a_handler_frames_end_and_nobody_counts(bench):
    bench.verdicts("forward:right", [b"x"])
    bench.table.remove(1)
    assert bench.run() == [DONE], "an old verdict is not left in place"
    assert bench.stats()["batches"] == 1 and bench.run(16) == [DONE]


def test_an_empty_burst_calls_nobody(bench):
    bench.load(lambda batch: 1 / 0)
    bench.take([])
    assert bench.run() == [] and bench.stats()["batches"] == 0


# ---- names ----


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A way to write a module that can be imported under a name of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def write(text):
        name = f"some_handlers_{len(made)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_a_handler_is_found_by_module_and_name(bench, module):
    name = module("import pktring\ndef go(batch): batch.forward('right')\nclass Box:\n  one = pktring.per_frame(lambda frame: 'far')\n")
    assert bench.verdicts(f"{name}:go", FRAMES) == [1] * 4
    assert bench.verdicts(f"{name}:Box.one", FRAMES) == [5] * 4


@pytest.mark.parametrize(
    "text, qualname, words",
    [
        ("def f(batch): pass", "g", "there is no 'g' in "),
        ("def f(batch): pass", "f.g", "there is no 'g' in f"),
        ("f = 3", "f", "int objects cannot be called"),
        ("def f(): pass", "f", "it is called with the batch: too many positional arguments"),
        ("def f(a, b): pass", "f", "it is called with the batch: missing a required argument: 'b'"),
        ("async def f(batch): pass", "f", "calling it would run none of it"),
        ("def f(batch): yield", "f", "calling it would run none of it"),
        ("class f:\n  def __init__(self, batch): pass", "f", "it is a class"),
        ("def f(batch: pass", "f", "fails: SyntaxError: "),
        ("1 / 0", "f", "fails: ZeroDivisionError: division by zero: run it by itself"),
        ("raise ValueError('first\\nsecond')", "f", "fails: ValueError: first: run"),
        ("raise SystemExit(3)", "f", "fails: SystemExit: 3"),
        ("import no_such_thing", "f", "No module named 'no_such_thing': install what it imports"),
        ("import pktring\nf = pktring.per_frame(3)", "f", "int objects cannot be called"),
        ("import pktring\nf = pktring.per_frame(lambda: 3)", "f", "called with the frame: too many"),
        ("import pktring\nf = pktring.per_frame(lambda frame: 3, to='nowhere')", "f", "no port 'nowhere'"),
    ],
)
def test_what_is_wrong_with_a_handler_is_said_in_a_line(module, text, qualname, words):
    assert words in refused(f"{module(text)}:{qualname}")


@pytest.mark.parametrize("spec", ["no_such_module_at_all:f", "os.no_such:f", "json.no_such.more:f"])
def test_a_module_that_is_not_there_is_named(spec):
    assert "there is no module " in refused(spec) and "PYTHONPATH" in refused(spec)


def test_a_builtin_that_is_misspelt_is_recognised():
    assert "no module 'forwards': did you mean the built-in forward?" in refused("forwards:left")


@pytest.mark.parametrize("spec", ["", "nonsense", "drop_all", "a:b:c", ":f", "os:", "os:path:", "a b:c", "../x:f"])
def test_a_text_that_names_nothing_is_refused_with_what_could_be_given(spec):
    assert "module:function, so:/path/lib.so:symbol, or a built-in (forward, mirror, drop, count)" in refused(spec)


@pytest.mark.parametrize("spec", [None, 3, b"drop", [], types.SimpleNamespace()])
def test_an_object_that_cannot_be_called_is_refused(spec):
    assert "cannot be called" in refused(spec)


def test_a_closure_enters_only_before_the_start(bench):
    seen = []
    closure = lambda batch: seen.append(len(batch))  # noqa: E731
    assert bench.verdicts(closure, FRAMES) == [DONE] * 4 and seen == [4]
    assert "running workers cannot import it" in refused(closure, running=True)
    assert "running workers cannot import it" in refused(pktring.per_frame(closure), running=True)


def test_a_function_at_the_top_of_a_module_enters_at_any_time(module):
    name = module("import pktring\ndef f(batch): pass\n@pktring.per_frame\ndef g(frame): pass\n")
    for attribute in ("f", "g"):
        handler = imported(f"{name}:{attribute}")
        assert importable_name(handler) == f"{name}:{attribute}"
        assert resolve(handler, PORTS, running=True).name == f"{name}:{attribute}"
    other = types.FunctionType(imported(f"{name}:f").__code__, {}, "f")
    other.__module__ = name
    with pytest.raises(Error, match="running workers cannot import it"):
        importable_name(other)


def test_an_object_with_a_call_is_a_handler_and_may_have_a_state(bench):
    class Counter:
        seen = 0

        def __call__(self, batch):
            self.seen += len(batch)

    counter = Counter()
    bench.verdicts(counter, FRAMES)
    assert counter.seen == 4 and "cannot import" in refused(counter, running=True)


# ---- per frame ----


@pytest.mark.parametrize(
    "said, verdict",
    [
        (None, DONE),
        (False, DONE),
        (np.False_, DONE),
        (True, 5),
        (np.True_, 5),
        (0, 0),
        (1, 1),
        (-1, DONE),
        (np.uint8(1), 1),
        ("right", 1),
        (types.SimpleNamespace(number=1), 1),
    ],
)
def test_what_a_per_frame_handler_says_becomes_a_verdict(bench, said, verdict):
    assert bench.verdicts(pktring.per_frame(lambda frame: said, to="far"), FRAMES) == [verdict] * 4
    assert bench.stats()["raised"] == 0


@pytest.mark.parametrize("said", [True, np.True_, 6, -2, -3, 2**80, "nowhere", 1.0, b"right", object()])
def test_what_makes_no_sense_ends_the_frame_and_is_counted(bench, said):
    assert bench.verdicts(pktring.per_frame(lambda frame: said), FRAMES) == [DONE] * 4
    assert (bench.stats()["raised"], bench.stats()["lost"]) == (4, 4) and len(bench.lines) == 1


@settings(deadline=None, max_examples=30)
@given(frames=st.lists(st.binary(max_size=2 * ROOM + 7), min_size=1, max_size=12))
def test_each_frame_is_seen_once_and_whole(frames):
    seen = []

    @pktring.per_frame
    def handler(frame):
        seen.append(bytes(frame))
        return len(seen) % 2

    with Bench() as bench:
        assert bench.verdicts(handler, frames) == [(i + 1) % 2 for i in range(len(frames))]
        assert seen == frames and handler(b"can be called by itself") in (0, 1)


def test_a_frame_may_be_written_and_ends_with_the_call(bench):
    kept = []

    @pktring.per_frame
    def handler(frame):
        frame[0] += 1
        kept.append(frame)

    bench.verdicts(handler, [b"abc", b"x"])
    assert bench.hand.frames() == [b"bbc", b"y"]
    for frame in kept:
        with pytest.raises(ValueError, match="released"):
            frame[0]


def test_only_the_frame_that_it_raised_at_is_lost(bench):
    @pktring.per_frame(to="right")
    def handler(frame):
        return frame[0] == ord("o") or 1 // (len(frame) - 4)

    assert bench.verdicts(handler, [b"one", b"four", b"", b"onto"]) == [1, DONE, DONE, 1]
    assert (bench.stats()["raised"], bench.stats()["lost"]) == (2, 2)


# ---- raising ----


@pytest.mark.parametrize("what", [ValueError("first\nsecond"), KeyboardInterrupt(), SystemExit(2), MemoryError(), GeneratorExit()])
def test_whatever_a_handler_raises_ends_its_frames_and_nothing_else(bench, what):
    def handler(batch):
        batch.forward("right")
        raise what

    assert bench.verdicts(handler, FRAMES) == [DONE] * 4
    stats = bench.stats()
    assert (stats["raised"], stats["lost"], stats["frames"]) == (1, 4, 4)
    words = f"{type(what).__name__}: first" if what.args == ("first\nsecond",) else type(what).__name__
    assert len(bench.lines) == 1 and f"handler raised {words}" in bench.lines[0]
    assert stats["last_error"] == bench.lines[0]
    assert bench.verdicts("forward:right", FRAMES) == [1] * 4, "the worker goes on"


def test_one_line_a_second_says_how_many_it_stands_for(bench):
    def handler(batch):
        raise ValueError("again")

    bench.load(handler)
    bench.take(FRAMES)
    deadline = time.monotonic() + 20
    begun = time.monotonic()
    n = 0
    while len(bench.lines) < 2 and time.monotonic() < deadline:
        bench.run()
        n += 1
    assert time.monotonic() - begun >= 1 and bench.lines[1].endswith(f"ValueError: again ({n - 1} times)")
    assert bench.stats()["raised"] == n and bench.stats()["last_error"] == bench.lines[1]


def test_a_log_that_fails_changes_nothing(bench):
    table = HandlerTable(bench.region, PORTS, lambda line: 1 / 0)
    table.attach(bytearray(STATS_SIZE), bench.region.pool)
    table.install(1, resolve(lambda batch: 1 / 0, PORTS))
    bench.take(FRAMES)
    assert bench.hand.run(table, 1) == [DONE] * 4 and table.stats(1)["raised"] == 1


def test_a_long_or_strange_error_is_cut_where_its_room_ends(bench):
    def handler(batch):
        raise ValueError("ä" * 500)

    bench.verdicts(handler, FRAMES)
    assert "handler raised ValueError: ä" in bench.stats()["last_error"]
    assert len(bench.stats()["last_error"].encode()) <= 195 and bytes(bench.stats_memory[256 + 255 :][:1]) == b"\0"


# ---- statistics ----


def test_time_in_a_slow_handler_is_seen(bench):
    pauses = [0.01, 0.03, 0.0]  # popped from the end
    bench.load(lambda batch: time.sleep(pauses.pop()))
    bench.take(FRAMES)
    begun = time.monotonic()
    for _ in range(3):
        bench.run()
    spent = time.monotonic() - begun
    stats = bench.stats()
    assert 30e-3 <= stats["max_us"] / 1e6 <= spent and 10e6 <= stats["ns_last"] < stats["ns_max"]
    assert 40e-3 <= stats["ns_total"] / 1e9 <= spent
    assert stats["mean_us"] == pytest.approx(stats["ns_total"] / 3e3, abs=0.01)


def test_protocols_are_counted_apart_and_the_memory_is_anybodys_to_read(bench):
    bench.load("drop", 0)
    bench.load("forward:left", 16)
    bench.take(FRAMES)
    bench.run(0), bench.run(16), bench.run(16)
    assert [handler_stats(bytes(bench.stats_memory), p)["batches"] for p in (0, 1, 16)] == [1, 0, 2]


def test_what_was_counted_before_goes_on_in_the_next_worker(bench):
    bench.verdicts("drop", FRAMES)
    heir = HandlerTable(bench.region, PORTS)
    heir.install(1, resolve("drop", PORTS))
    bench.hand.run(heir, 1)
    heir.attach(bench.stats_memory, bench.region.pool)
    bench.hand.run(heir, 1)
    assert heir.stats(1)["batches"] == 2


@pytest.mark.parametrize("memory", [bytearray(STATS_SIZE - 1), bytes(STATS_SIZE), memoryview(bytearray(STATS_SIZE + 8))[4:]])
def test_memory_that_cannot_hold_the_statistics_is_refused(bench, memory):
    with pytest.raises((ValueError, BufferError)):
        bench.table.attach(memory, bench.region.pool)
    assert bench.verdicts("drop", FRAMES) == [DONE] * 4


@pytest.mark.parametrize("proto", [17, 2**32 - 1])
def test_there_is_no_protocol_17(bench, proto):
    for call in (lambda: bench.load("drop", proto), lambda: bench.table.clear(proto), lambda: bench.stats(proto)):
        with pytest.raises(ValueError):
            call()
    bench.take(FRAMES)
    assert bench.run(proto) == [DONE] * 4


# ---- C ----

SOURCE = """
#include <pktring_handler.h>
#include <time.h>

struct { uint64_t calls; } kept;

void swap(struct pktring_batch *b)
{
    if (b->version < PKTRING_HANDLER_VERSION || b->port_count != 6 || b->state)
        return;
    kept.calls++;
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->length[i] == 0) {
            b->raised++;
            continue;
        }
        b->frame[i][0] = (uint8_t)b->length[i];
        b->verdict[i] = b->frame_length[i] > b->length[i] ? 5 : b->hash[i] ? 1 : b->timestamp_ns[i] ? 0 : b->port[i];
    }
}

volatile int go;

void wait_for_go(struct pktring_batch *b)
{
    time_t begun = time(0);
    while (!go && time(0) < begun + 20)
        ;
    for (uint32_t i = 0; i < b->n; i++)
        b->verdict[i] = go;
}

int flow(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash)
{
    *hash = proto * 1000 + n;
    return ctx && desc;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("so") / "lib.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC", "-I", pktring.get_include()]
    subprocess.run(["cc", *flags, "-x", "c", "-o", path, "-"], input=SOURCE.encode(), check=True, timeout=60)
    return path


def test_a_function_of_a_shared_object_is_a_handler(bench, library):
    frames = [b"ab", b"cde", b"f", b"g" * (ROOM + 1), b""]
    facts = {"port": [0, 0, 1, 0, 0], "hash": [7, None, None, None, None], "timestamp": [0, 9, 0, 0, 0]}
    assert bench.verdicts(f"so:{library}:swap", frames, **facts) == [1, 0, 1, 5, DONE]
    assert [frame[:1] for frame in bench.hand.frames()] == [b"\2", b"\3", b"\1", b"\0", b""]
    assert (bench.stats()["raised"], bench.stats()["lost"]) == (1, 1) and "machine code" in bench.lines[0]


@pytest.mark.parametrize(
    "spec, words",
    [
        ("so:", "write so:/path/lib.so:symbol"),
        ("so:/lib.so", "write so:/path/lib.so:symbol"),
        ("so:/no/such/lib.so:f", "cannot open shared object file"),
        ("so:/etc/passwd:f", "invalid ELF header"),
        ("so:LIBRARY:nothing", "there is no function 'nothing' in"),
    ],
)
def test_a_shared_object_that_does_not_have_it_is_refused(library, spec, words):
    assert words in refused(spec.replace("LIBRARY", str(library)))


# ---- netisr's callbacks ----


def ask(bench, which, callback, frame=b"frame", proto=1, source=0):
    """What netisr gets when it asks about a frame, through the callback that a registration brought."""
    registered = types.SimpleNamespace(proto=proto, handler="drop", **{which: callback})
    bench.table.load(registered)
    bench.take([frame])
    return bench.hand.ask(bench.table, proto, which, 0, source)


@pytest.mark.parametrize("said, answer", [(None, (0, 0)), (0, (1, 0)), (2**32 - 1, (1, 2**32 - 1)), (-1, (-1, 0))])
def test_N_P4_m2flow_gives_a_hash_or_none_or_takes_the_frame(bench, said, answer):
    seen = []
    assert ask(bench, "m2flow", lambda frame: seen.append(bytes(frame)) or said) == answer
    assert seen == [b"frame"] and bench.stats()["raised"] == 0
    if said == -1:
        assert bench.region.pool.free == bench.free, "a frame that is not wanted goes home"


@pytest.mark.parametrize("said, answer", [(None, (0, 2**32 - 1)), (0, (0, 0)), (7, (0, 7)), (-1, (-1, 2**32 - 1))])
def test_N_P6_m2cpuid_gives_an_index_or_none_or_takes_the_frame(bench, said, answer):
    seen = []
    assert ask(bench, "m2cpuid", lambda frame, source: seen.append((bytes(frame), source)) or said, source=11) == answer
    assert seen == [(b"frame", 11)]
    assert ask(bench, "m2cpuid", lambda frame: said) == answer
    assert ask(bench, "m2cpuid", lambda frame, source=5: source, source=9) == (0, 9)


@pytest.mark.parametrize("said", ["x", 2**32, -2, 2**80, 1.5])
def test_an_answer_that_makes_no_sense_is_no_answer(bench, said):
    assert ask(bench, "m2flow", lambda frame: said) == (0, 0)
    assert ask(bench, "m2cpuid", lambda frame: said) == (0, 2**32 - 1)
    assert (bench.stats()["raised"], bench.stats()["lost"]) == (2, 0)


def test_a_callback_that_raises_is_no_answer(bench):
    def callback(frame):
        raise SystemExit

    assert ask(bench, "m2flow", callback) == (0, 0) and bench.stats()["raised"] == 1
    assert "raised SystemExit" in bench.lines[0]


def test_without_callbacks_netisr_gets_no_answer(bench):
    assert ask(bench, "m2flow", None) == (0, 0)
    assert ask(bench, "m2cpuid", None) == (0, 2**32 - 1)


def test_a_callback_may_be_a_function_of_a_shared_object(bench, library):
    assert ask(bench, "m2flow", f"so:{library}:flow", proto=3) == (1, 3001)


def test_a_callback_is_found_by_module_and_name(bench, module):
    assert ask(bench, "m2flow", f"{module('def f(frame): return len(frame)')}:f", b"x" * (ROOM + 2)) == (1, ROOM + 2)


@pytest.mark.parametrize(
    "which, callback, words",
    [
        ("m2flow", lambda: 0, "called with the frame"),
        ("m2flow", 3.5, "cannot be called"),
        ("m2flow", "no_such_module:f", "there is no module"),
        ("m2cpuid", lambda a, b, c: 0, "called with the frame"),
        ("drainedcpu", lambda: 0, "called with the CPU"),
        ("drainedcpu", "so:/no/such:f", "cannot open"),
    ],
)
def test_a_callback_that_cannot_work_is_refused(which, callback, words):
    with pytest.raises(Error, match=words) as why:
        resolve_callback(callback, which)
    assert why.value.code == "E_HANDLER"


# ---- the table ----


def test_machine_code_runs_while_another_thread_has_the_interpreter(bench, library):
    go = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "go")
    bench.load(f"so:{library}:wait_for_go")
    bench.take(FRAMES)
    begun = threading.Event()

    def release():
        begun.wait(10)
        go.value = 1

    thread = threading.Thread(target=release)
    thread.start()
    begun.set()
    assert bench.run() == [1] * 4, "it never saw what Python did meanwhile"
    thread.join(10)


THREAD = """
#include <pthread.h>
#include "handler.h"

struct job { struct pr_handlers *hs; struct pr_batch *b; };
static void *work(void *p) { struct job *j = p; pr_handlers_run(j->hs, 1, j->b); return 0; }

int in_a_thread(void *hs, void *b)
{
    struct job job = {hs, b};
    pthread_t thread;
    return pthread_create(&thread, 0, work, &job) || pthread_join(thread, 0);
}
"""


def test_a_python_handler_may_run_in_a_thread_that_python_does_not_know(bench):
    in_a_thread = ckernel.load(THREAD).in_a_thread
    in_a_thread.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    bench.load(lambda batch: batch.forward("right"))
    bench.take(FRAMES)
    assert in_a_thread(pointer(bench.table.capsule, b"pktring.handlers"), pointer(bench.hand.capsule, b"pktring.batch")) == 0
    assert bench.hand.verdicts == [1] * 4 and bench.stats()["batches"] == 1


def test_what_was_installed_is_let_go_with_the_table(bench):
    class Call:
        def __call__(self, batch):
            pass

    call = Call()
    table = HandlerTable(bench.region, PORTS)
    table.install(1, resolve(call, PORTS))
    bench.take(FRAMES)
    bench.hand.run(table, 1)
    gone = weakref.ref(call)
    table.install(1, resolve("drop", PORTS))
    del call
    gc.collect()
    assert gone() is None
    last = weakref.ref(table)
    del table
    gc.collect()
    assert last() is None


def test_only_machine_code_that_was_made_here_needs_a_compiler_in_the_worker(bench, library):
    bench.load("drop", 1)
    bench.load(f"so:{library}:swap", 2)
    assert not bench.table.compiled


def test_the_front_door_has_what_handlers_are_made_with():
    assert pktring.DONE == -1 == _engine.PR_DONE
    assert pktring.per_frame(len).function is len
