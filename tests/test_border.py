"""The border between a worker and an attached app, both sides in this process: what passes, what is refused, and whose each buffer is."""

import ctypes
import fcntl
import itertools
import os
import random
import select
import socket
import threading
import time

import ckernel
import pytest
from attached import CUR, HEAD, NEED, STRANGER, TAIL, Border, Words
from frames import numbered

from pktring.engine import _engine, apps
from pktring.engine.filter import compile as compile_filter
from pktring.shm.errors import Error

KINDS = pytest.mark.parametrize("uid", [0, STRANGER], ids=["shared", "sealed"])
MOREFRAG = 0x20


@pytest.fixture
def border():
    with Border() as border:
        yield border


def taken(port, n=1000):
    got = []
    while True:
        with port.recv(max=n, timeout=0) as batch:
            if not len(batch):
                return got
            got += [bytes(frame) for frame in batch]


# ---- frames pass ----


@KINDS
def test_a_copy_is_the_frame_byte_for_byte(border, uid):
    app, port = border.attach(uid=uid)
    sent = [numbered(i, length) for i, length in enumerate((60, 61, 1514, 1792, 1793, 9000))]
    assert border.offer(app, sent) == 6
    assert taken(port) == sent
    counted = border.counters(app)
    assert counted["offered"] == counted["copied"] == 6 and counted["rx_bytes"] == sum(map(len, sent))
    assert port.stats()["rx_frames"] == port.stats()["delivered"] == 6


@KINDS
def test_what_an_app_sends_is_in_the_workers_hands_byte_for_byte(border, uid):
    app, port = border.attach(uid=uid)
    sent = [numbered(i, length) for i, length in enumerate((60, 61, 1514, 1792, 1793, 9000))]
    assert port.send(sent) == 6
    assert border.collect(app) == sent
    counted = border.counters(app)
    assert counted["tx_frames"] == 6 and counted["tx_bytes"] == sum(map(len, sent)) and not counted["violations"]
    assert port.stats()["tx_frames"] == 6


@KINDS
@pytest.mark.parametrize("give", [False, True], ids=["copy", "consume"])
def test_many_rounds_lose_nothing_and_leak_nothing(border, uid, give):
    app, port = border.attach(uid=uid, mode="consume" if give else "copy")
    for i in range(300):
        sent = [numbered(i * 50 + k, 60 + (i * 7 + k * 31) % 3000) for k in range(1 + i % 20)]
        assert border.offer(app, sent, give=give) == len(sent)
        assert taken(port) == sent
        assert port.send(sent) == len(sent)
        assert border.collect(app) == sent
    counted = border.counters(app)
    assert not counted["violations"] and not counted["drop_app_full"]
    assert counted["offered"] == counted["consumed" if give else "copied"] == counted["tx_frames"]
    if not uid:
        assert border.count()["lent"] == 2 * 64, "as many buffers are lent as there are slots"


def test_a_trusted_app_is_given_the_buffer_itself_and_sends_it_back_as_it_is(border):
    app, port = border.attach(mode="consume")
    hold, pool = border.holds[app.id, 0], border.pools[0]
    hold.turn()
    before = {b for b in range(2, 2048) if pool.word(b)[:2] == (4, app.id)}
    assert hold.offer(pool, [numbered(1)], True) == 1
    batch = port.recv(timeout=0)
    given = int(batch.buffers[0])
    assert given not in before and pool.word(given)[:2] == (4, app.id), "a buffer that was the worker's is lent now"
    assert batch.forward(port) == 1 and port.stats()["copies"] == 0
    batch.release()
    assert border.collect(app) == [numbered(1)]
    assert pool.word(given)[0] != 4, "the same buffer came back"


@KINDS
def test_a_full_ring_drops_at_once_and_counts(border, uid):
    app, port = border.attach(uid=uid, mode="consume")
    frames = [numbered(i) for i in range(100)]
    assert border.offer(app, frames[:70]) == 63
    assert border.offer(app, frames[70:], give=True) == 0
    counted = border.counters(app)
    assert (counted["offered"], counted["copied"], counted["drop_app_full"]) == (100, 63, 37)
    assert port.stats()["drop_kernel"] == 37, "the app is told"
    assert taken(port) == frames[:63]
    assert border.offer(app, [numbered(5)], give=True) == 1


@KINDS
def test_only_what_the_filter_matches_is_offered_and_the_rest_stays_in_hand(border, uid):
    app, port = border.attach(uid=uid, filter=compile_filter("greater 200"), mode="consume")
    assert border.offer(app, [numbered(1, 100), numbered(2, 300)]) == 1
    assert border.offer(app, [numbered(3, 100), numbered(4, 300)], give=True) == 1
    assert [len(f) for f in taken(port)] == [300, 300]
    assert border.counters(app)["offered"] == 2


@KINDS
def test_a_burst_is_one_turn_however_much_an_app_sends(border, uid):
    app, port = border.attach(uid=uid)
    assert port.send([numbered(i) for i in range(63)]) == 63
    assert len(border.collect(app)) == 63
    for i in range(3):
        port.send([numbered(i, 5000)] * 21)
        assert len(border.collect(app)) == 21 and not border.collect(app)


@KINDS
def test_pairs_of_two_workers_are_separate(uid):
    with Border(workers=2) as border:
        app, port = border.attach(uid=uid)
        border.offer(app, [numbered(1)], worker=0)
        border.offer(app, [numbered(2)], worker=1)
        assert sorted(taken(port)) == sorted([numbered(1), numbered(2)])
        Words(port, "tx", 1).set(HEAD, 99)
        assert not border.collect(app, 1)
        assert not border.turn(app, 0), "what one worker saw, all act on"


# ---- who may be trusted ----


def test_the_engines_user_and_its_group_share_memory_and_nobody_else(monkeypatch):
    class Group:
        gr_gid = 4242

    monkeypatch.setattr(apps.grp, "getgrnam", lambda name: Group)
    assert apps.trust(os.geteuid(), 0)[0]
    assert apps.trust(1234, 4242) == (True, "member of group pktring")
    assert apps.trust(1234, 1234) == (False, "uid 1234 is not in group pktring")


def test_nobody_is_a_member_of_a_group_that_does_not_exist():
    trusted, why = apps.trust(STRANGER, STRANGER, "no-such-group")
    assert not trusted and "no-such-group" in why


def test_a_17th_app_is_refused_and_what_was_half_made_is_taken_back():
    with Border(slots=16, rings=64, buffers=4096) as border:
        for _ in range(16):
            border.attach(slots=8)
        with pytest.raises(Error, match="E_QUOTA"):
            border.attach(slots=8)
    with Border(slots=64, rings=3) as border:
        border.attach()
        with pytest.raises(Error, match="E_REGION_FULL"):
            border.attach()
        assert border.count()["lent"] == 128 and len(border.table.apps) == 1


# ---- F7: cursors ----


@KINDS
@pytest.mark.parametrize("word", [HEAD, CUR], ids=["head", "cur"])
@pytest.mark.parametrize(("direction", "value"), [*itertools.product(("rx", "tx"), (64, 1 << 31, 0xFFFF0000, 2**32 - 1)), ("rx", "behind")])
def test_R_F7_garbage_in_a_cursor_is_quarantine_at_once(border, uid, direction, word, value):
    app, port = border.attach(uid=uid)
    well, neighbour = border.attach(uid=uid)
    border.offer(app, [numbered(i) for i in range(20)])
    port.recv(max=10, timeout=0).release()
    port.send([numbered(i) for i in range(20)])
    border.collect(app)
    words = Words(port, direction)
    if value == "behind":  # what was seen last; in an empty transmit ring that is a ring full of frames
        value = words.get(HEAD) - 1
    words.set(word, value)
    assert not border.collect(app) and not border.turn(app)
    assert border.facts(app)["state"] == _engine.PR_APP_QUARANTINED
    (line,) = border.table.tick()
    told = f"E_RING_PROTO app={app.id} pid={os.getpid()} ring={direction}0 field={'head' if word == HEAD else 'cur'} val={value} limit=64"
    assert line.startswith(told), line
    assert not border.table.tick(), "said once"
    with pytest.raises(Error, match="E_RING_PROTO"):
        while True:
            port.recv(timeout=0)
    with pytest.raises(Error, match="E_RING_PROTO"):
        port.send([numbered(1)])
    assert border.offer(well, [numbered(2)]) == 1 and taken(neighbour) == [numbered(2)]


# ---- F8: buffers ----


def spare_index(border):
    """A buffer that is not lent to anybody."""
    return next(b for b in range(2047, 2, -1) if border.pools[0].word(b)[0] == 1)


@pytest.mark.parametrize("what", ["none", "sink", "beyond", "free", "other's", "twice", "sent already"])
def test_R_F8_a_buffer_that_is_not_the_apps_is_dropped_and_replaced(border, what):
    app, port = border.attach()
    other, _ = border.attach()
    words, theirs = Words(port), Words(border.ports[1])
    port.send([numbered(0)])
    sent_already = words.slot(0)[0]
    border.collect(app)
    index = {
        "none": 0,
        "sink": 1,
        "beyond": 2048,
        "free": spare_index(border),
        "other's": theirs.slot(3)[0],
        "twice": words.slot(1)[0],
        "sent already": sent_already,
    }[what]
    words.slot(1, length=60, flags=0)
    words.slot(2, index=index, length=60, flags=0)
    words.send(2)
    assert len(border.collect(app)) == 1
    counted = border.counters(app)
    assert counted["drop_bad_idx" if what in ("none", "sink", "beyond") else "drop_not_owner"] == 1 and counted["tx_frames"] == 2
    assert counted["violations"] == 1 and border.facts(app)["state"] == _engine.PR_APP_LIVE
    assert border.pools[0].word(words.slot(2)[0])[:2] == (4, app.id), "the slot has a buffer of the app's again"
    assert port.send([numbered(k) for k in range(60)]) == 60 and len(border.collect(app)) == 60


def test_R_F8_a_guess_at_the_buffer_that_it_is_about_to_be_lent_is_not_its_own_yet(border):
    app, port = border.attach()
    words, pool = Words(port), border.pools[0]
    (next_spare,) = pool.take(1)
    pool.give([next_spare])
    words.slot(0, length=60, flags=0)
    words.slot(1, index=next_spare, length=60, flags=0)
    words.send(2)
    assert len(border.collect(app)) == 1 and border.counters(app)["drop_not_owner"] == 1
    held = [words.slot(i)[0] for i in range(64)]
    assert len(set(held)) == 64 and all(pool.word(b)[:2] == (4, app.id) for b in held)


def test_R_F8_a_returned_receive_buffer_that_is_not_the_apps_is_replaced_and_the_frame_arrives(border):
    app, port = border.attach(mode="consume")
    words = Words(port, "rx")
    foreign = spare_index(border)
    before = [bytes(border.region.mem[border.region.view.buffer_offset(foreign) :][:64])]
    words.slot(0, index=foreign)
    words.slot(1, index=words.slot(2)[0])
    assert border.offer(app, [numbered(i) for i in range(5)], give=True) == 5
    assert taken(port) == [numbered(i) for i in range(5)]
    assert border.counters(app)["violations"] == 2
    assert before == [bytes(border.region.mem[border.region.view.buffer_offset(foreign) :][:64])]
    assert border.pools[0].word(foreign)[0] == 1, "it is still free"


def test_R_F8_sixteen_in_a_second_are_quarantine(border):
    app, port = border.attach()
    words = Words(port)
    for i in range(16):
        words.slot(i, index=2047, length=60, flags=0)
    words.send(16)
    border.collect(app)
    assert border.facts(app)["state"] == _engine.PR_APP_QUARANTINED
    (line,) = border.table.tick()
    assert line.startswith(f"E_BUF_OWNER app={app.id} ") and "idx=2047 owner=free:2" in line, line


def test_R_F8_an_app_that_leaks_slowly_costs_no_more_than_its_ring_holds(border):
    app, port = border.attach(slots=16)
    words = Words(port)
    for i in range(17):
        words.slot(words.get(HEAD), index=2047, length=60, flags=0)
        words.send()
        assert border.facts(app)["state"] == _engine.PR_APP_LIVE
        border.collect(app)
        if i == 9:
            time.sleep(1.05)  # never 16 in one second
    assert border.facts(app)["state"] == _engine.PR_APP_QUARANTINED and border.count()["lent"] <= 2 * 16 + 17


def test_in_its_own_memory_an_app_may_name_any_of_its_buffers_and_harms_only_itself(border):
    app, port = border.attach(uid=STRANGER)
    words, rx = Words(port), Words(port, "rx")
    words.slot(0, index=rx.slot(5)[0], length=60, flags=0)
    words.slot(1, index=words.slot(7)[0], length=60, flags=0)
    words.slot(2, index=port.region.geometry["buf_num"], length=60, flags=0)
    words.send(3)
    rx.slot(0, index=0xFFFFFFFF)
    assert border.offer(app, [numbered(9)]) == 1 and taken(port) == [numbered(9)]
    assert len(border.collect(app)) == 2
    assert border.counters(app)["drop_bad_idx"] == 1 and border.counters(app)["violations"] == 2


# ---- F9: lengths, flags, chains ----


@KINDS
@pytest.mark.parametrize(
    ("length", "flags", "counter"),
    [
        (1793, 0, "drop_bad_len"),
        (65535, 0, "drop_bad_len"),
        (0, 0, "drop_bad_len"),
        (60, 0x10, "drop_bad_flags"),
        (60, 0x80, "drop_bad_flags"),
        (60, 0x4000, "drop_bad_flags"),
    ],
)
def test_R_F9_a_slot_that_says_nonsense_is_dropped_and_counted(border, uid, length, flags, counter):
    app, port = border.attach(uid=uid)
    words = Words(port)
    words.slot(0, length=length, flags=flags)
    words.slot(1, length=60, flags=0)
    words.send(2)
    assert [len(f) for f in border.collect(app)] == [60]
    counted = border.counters(app)
    assert counted[counter] == 1 and counted["tx_frames"] == 1 and not counted["violations"]


@KINDS
def test_R_F9_a_chain_comes_whole_or_not_at_all(border, uid):
    app, port = border.attach(uid=uid)
    words = Words(port)
    for i in range(3):
        words.slot(i, length=60, flags=MOREFRAG)
    words.send(3)
    assert not border.collect(app), "it waits for the end"
    words.slot(3, length=60, flags=0)
    words.send()
    assert [len(f) for f in border.collect(app)] == [240]
    words.slot(4, length=60, flags=MOREFRAG)
    words.slot(5, length=2000, flags=MOREFRAG)
    words.slot(6, length=60, flags=0)
    words.slot(7, length=61, flags=0)
    words.send(4)
    assert [len(f) for f in border.collect(app)] == [61]
    assert border.counters(app)["drop_bad_len"] == 1


@KINDS
def test_R_F9_a_chain_without_end_is_dropped_to_its_end(uid):
    with Border(slots=256, buffers=4096) as border:
        app, port = border.attach(uid=uid, slots=256)
        words = Words(port)
        for i in range(200):
            words.slot(i, length=60, flags=MOREFRAG)
        words.slot(200, length=60, flags=0)
        words.slot(201, length=77, flags=0)
        words.send(202)
        got = [f for _ in range(5) for f in border.collect(app)]
        assert [len(f) for f in got] == [77]
        assert border.counters(app)["drop_bad_flags"] == 1


@KINDS
def test_R_F9_a_ring_full_of_one_chain_does_not_stand_still(uid):
    with Border() as border:
        app, port = border.attach(uid=uid, slots=32)
        words = Words(port)
        for i in range(31):
            words.slot(i, length=60, flags=MOREFRAG)
        words.send(31)
        assert not border.collect(app) and border.counters(app)["drop_bad_flags"] == 1
        words.slot(31, length=60, flags=0)  # the end of it
        words.slot(0, length=99, flags=0)
        words.send(2)
        assert [len(f) for f in border.collect(app)] == [99]


# ---- coming and going ----


@KINDS
def test_R_F4_when_an_app_is_gone_its_buffers_are_back_and_what_it_sent_went_out(border, uid):
    app, port = border.attach(uid=uid)
    border.offer(app, [numbered(i) for i in range(30)])
    port.send([numbered(i) for i in range(20)])
    border.table._records.set_state(app.place, _engine.PR_APP_LEAVING)
    assert not border.table.detach(app.id, wait_s=0), "a worker has its hands on it"
    assert border.count()["lent"] == (0 if uid else 128)
    assert border.holds[app.id, 0].offer(border.pools[0], [numbered(1)]) == 1, "until its next turn"
    assert len(border.collect(app)) == 20
    assert not border.turn(app) and border.holds[app.id, 0].gone
    (line,) = border.table.tick()
    lent = 0 if uid else 128
    assert line == f"W_APP_GONE app={app.id} pid={os.getpid()} port=eth0 lent={lent} returned={lent}"
    assert border.count() == border.total and not border.table.apps
    received = 0
    with pytest.raises(Error, match="E_DETACHED"):
        while True:
            received += len(port.recv(timeout=0))
    assert received == 31, "what came before the end is received first"


@KINDS
def test_an_app_that_left_half_a_frame_behind_is_gone_too_and_keeps_no_worker_awake(border, uid):
    app, port = border.attach(uid=uid)
    words = Words(port)
    words.slot(0, length=60, flags=MOREFRAG)
    words.send()
    hold = border.holds[app.id, 0]
    assert hold.arm() and not border.collect(app) and not hold.arm()
    words.slot(1, length=60, flags=MOREFRAG)
    words.send()
    assert hold.arm()
    assert border.detach(app).startswith("W_APP_GONE")


def test_a_worker_that_died_has_let_go(border):
    app, _ = border.attach()
    border.living.clear()
    assert border.table.detach(app.id).startswith("W_APP_GONE")


def test_a_worker_that_never_took_hold_is_not_waited_for(border):
    app, _ = border.attach(hold=False)
    assert border.table.detach(app.id).startswith("W_APP_GONE")


def test_a_worker_that_comes_late_finds_the_app_gone(border):
    app, _ = border.attach(hold=False)
    rings, bells = list(app.rings), [os.dup(fd) for fd in app.bells]
    border.table._records.set_state(app.place, _engine.PR_APP_LEAVING)
    assert border.hold(app) is None
    border.holds.clear()
    assert border.table.detach(app.id)
    app.rings, app.bells = rings, bells  # as in a plan that was made before
    assert border.hold(app) is None
    again, port = border.attach()
    assert again.id == app.id and border.turn(again)
    border.holds[app.id, 1] = app.hold(border.region, 0, border.pools[0])
    assert border.holds.pop((app.id, 1)) is None, "the place is another's"
    for fd in bells:
        os.close(fd)
    app.bells = []
    assert border.offer(again, [numbered(1)]) == 1 and taken(port) == [numbered(1)]


@KINDS
def test_an_heir_goes_on_where_its_predecessor_stood(border, uid):
    app, port = border.attach(uid=uid)
    border.offer(app, [numbered(i) for i in range(10)])
    port.send([numbered(i) for i in range(10)])
    port.recv(max=4, timeout=0).release()
    border.collect(app)
    port.send([numbered(i) for i in range(10, 20)])
    border.hold(app)
    assert border.collect(app) == [numbered(i) for i in range(10, 20)]
    assert border.offer(app, [numbered(10)]) == 1
    assert taken(port) == [numbered(i) for i in range(4, 11)]


def test_a_new_controller_takes_the_apps_over(border):
    kept, port = border.attach(uid=STRANGER)
    shared, _ = border.attach()
    begun, _ = border.attach(hold=False)
    handed = [app.hand_on() for app in (kept, shared)]
    handed = [(state, [os.dup(fd) for fd in fds]) for state, fds in handed]
    border.table._records.set_state(begun.place, _engine.PR_APP_NONE)  # as if its attach had never been finished
    table = apps.AppTable(border.memory, border.region, border.pools[-1], living=lambda: border.living)
    (line,) = table.adopt(handed)
    assert "returned=128" in line
    assert set(table.apps) == {kept.id, shared.id}
    again = table.apps[kept.id].hold(border.region, 0, border.pools[0])
    assert again.turn() and again.offer(border.pools[0], [numbered(3)]) == 1 and taken(port) == [numbered(3)]
    border.table.apps.pop(begun.id).close()
    for app in table.apps.values():
        app.close()


def test_status_says_which_memory_and_why(border):
    border.attach()
    border.attach(uid=STRANGER)
    shared, sealed = border.table.describe()
    assert (shared["memory"], shared["why"], shared["lent"], shared["state"]) == ("shared", "same user", 128, "live")
    assert sealed["memory"] == "sealed" and "group pktring" in sealed["why"] and sealed["lent"] == 0


# ---- F11: the sealed memory ----


def test_R_F11_a_sealed_memory_cannot_be_cut_and_holes_in_it_are_zeros(border):
    app, port = border.attach(uid=STRANGER)
    fd = app.memory_fds[0]
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & memfd_seals() == memfd_seals()
    port.send([numbered(1)])
    buffer = Words(port).slot(0)[0]
    offset = port.region.view.buffer_offset(buffer)
    punch(fd, 0, port.region.geometry["size"])
    assert bytes(port.region.mem[offset : offset + 60]) == bytes(60)
    assert not border.collect(app), "head went back to 0: a breach, or nothing"
    assert border.offer(app, [numbered(1)]) in (0, 1)


def memfd_seals():
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def punch(fd, offset, size):
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size_punch_hole = 0x01 | 0x02
    assert libc.fallocate(fd, keep_size_punch_hole, ctypes.c_long(offset), ctypes.c_long(size)) == 0, os.strerror(ctypes.get_errno())


# ---- waking ----


def readable(fd, timeout=0.0):
    return bool(select.select([fd], [], [], timeout)[0])


@KINDS
def test_the_descriptor_is_readable_while_there_is_something_to_receive(border, uid):
    app, port = border.attach(uid=uid)
    assert not len(port.recv(timeout=0)) and not readable(port.fileno())
    for _ in range(3):
        border.offer(app, [numbered(1), numbered(2)])
        assert readable(port.fileno())
        assert len(port.recv(max=1, timeout=0)) == 1 and readable(port.fileno())
        border.offer(app, [numbered(3)])
        assert len(port.recv(max=2, timeout=0)) == 2
        assert not len(port.recv(timeout=0)) and not readable(port.fileno())


def test_no_wake_up_is_lost_between_two_that_sleep(border):
    """Each answers the other's frame and sleeps without a limit of its own; a lost ring would cost 100 ms."""
    app, port = border.attach()
    hold, pool = border.holds[app.id, 0], border.pools[0]
    rounds, slow = 3000, []

    def echo():
        for _ in range(rounds):
            begun = time.monotonic()
            while not (frames := hold.collect(pool) if hold.turn() else []):
                if not hold.arm():
                    select.select([hold.bell], [], [], 0.1)
                    hold.heard()
            slow.append(time.monotonic() - begun)
            hold.offer(pool, frames)

    thread = threading.Thread(target=echo)
    thread.start()
    for i in range(rounds):
        port.send([numbered(i)])
        begun = time.monotonic()
        while not len(batch := port.recv(timeout=0)):
            select.select([port.fileno()], [], [], 0.1)
        slow.append(time.monotonic() - begun)
        assert bytes(batch[0]) == numbered(i)
    thread.join(20)
    assert not thread.is_alive() and sum(t > 0.095 for t in slow) <= 2, sorted(slow)[-5:]


def test_a_bell_that_an_app_shut_down_is_not_listened_to_any_more(border):
    app, port = border.attach(uid=STRANGER)
    hold = border.holds[app.id, 0]
    bell = socket.socket(fileno=os.dup(port.device.queues[0].tx_fd))
    bell.shutdown(socket.SHUT_RDWR)
    bell.close()
    assert readable(app.bells[0]) and hold.heard() == -1
    assert border.offer(app, [numbered(1)]) == 1 and taken(port) == [numbered(1)]


def test_a_flooded_bell_blocks_nobody(border):
    app, port = border.attach(uid=STRANGER)
    bell = port.device.queues[0].tx_fd
    os.set_blocking(app.bells[0], True)
    os.set_blocking(bell, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(bell, b"x" * 4096)
    words, begun = Words(port, "rx"), time.monotonic()
    for i in range(3000):
        words.set(NEED, i + 1)  # it asks to be rung each time, and never listens
        words.set(CUR, words.get(TAIL))
        words.set(HEAD, words.get(TAIL))
        assert border.offer(app, [numbered(i)]) == 1
    assert border.holds[app.id, 0].heard() >= 0 and time.monotonic() - begun < 5


# ---- super-frames ----

CUT = """
#include "border_tx.h"
#include <stdlib.h>

enum { SLOTS = 32 };
static struct pr_region rg, own;
static struct pr_app_record record;

static void make(struct pr_region *r, uint32_t bufs)
{
    uint64_t size = pr_carve(&r->g, 1, 2, SLOTS, bufs, 2048);
    r->mem = aligned_alloc(PR_PAGE, size);
    memset(r->mem, 0, size);
    r->owner = calloc(bufs, 8);
    r->krings = calloc(2, sizeof *r->krings);
    r->rows = calloc(2, sizeof *r->rows);
}

static struct pr_ringh ring(struct pr_region *r, uint32_t i, uint32_t dir)
{
    uint64_t at = r->g.ring_ofs + (uint64_t)i * r->g.ring_size;
    r->krings[i] = (struct pr_kring){.num_slots = SLOTS, .dir = dir, .row = i, .ring_ofs = at};
    return (struct pr_ringh){.ring = (struct pr_ring *)(r->mem + at), .k = &r->krings[i], .row = &r->rows[i], .rg = r, .n = SLOTS};
}

/* Offer a super-frame to an app; what lies in its ring then goes to out. Frames, -1 = it was dropped. */
int cut(uint8_t *frame, uint32_t len, uint32_t gso_size, uint32_t l4, int trusted, int whole, int give, uint8_t *out, uint32_t *lens)
{
    struct pr_pool pool;
    uint32_t bufs[64], n = (len + 1791) / 1792, frames = 0;
    uint64_t desc[64], counts[PR_N_OWNER_STATES + 1];
    make(&rg, 256);
    make(&own, 2 + 2 * SLOTS);
    pr_pool_init(&pool, rg.owner, 256, 1, 1, 254, malloc(4096));
    pr_pool_deal(&pool);
    record = (struct pr_app_record){.state = PR_APP_LIVE, .generation = 1, .id = 3, .sides = 1};
    struct pr_app a = {.rec = &record, .side = record.side, .rx = ring(trusted ? &rg : &own, 0, PR_RX), .rg = &rg, .generation = 1,
                       .tx = ring(trusted ? &rg : &own, 1, PR_TX), .id = 3, .trusted = trusted, .whole = whole, .bell = -1};
    for (int r = 0; r < 2; r++) {
        struct pr_ringh *h = r ? &a.tx : &a.rx;
        pr_pool_take(&pool, bufs, SLOTS);
        for (uint32_t i = 0; i < SLOTS; i++)
            if (!trusted)
                bufs[i] = pr_app_first(h, i);
            else
                pr_pool_lend(&pool, bufs[i], 3);
        pr_ring_deal(h, bufs);
    }
    if (!pr_app_begin(&a, &pool) || !pr_app_turn(&a) || pr_pool_take(&pool, bufs, n) != n)
        return -2;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t put = len - k * 1792 < 1792 ? len - k * 1792 : 1792;
        memcpy(pr_buf(&rg, bufs[k]), frame + k * 1792, put);
        desc[k] = pr_desc(bufs[k], (uint16_t)put, k + 1 < n ? PR_NS_MOREFRAG : 0);
    }
    *pr_meta_of(&rg, bufs[0]) = (struct pr_meta){.flags = PR_META_GSO, .gso_type = 1, .gso_size = (uint16_t)gso_size,
                                                 .vnet_flags = 1, .csum_start = (uint16_t)l4, .csum_offset = 16};
    int got = give ? pr_app_give(&a, &pool, desc, n) : pr_app_offer(&a, &pool, desc, n);
    if (!give)
        pr_hand_free(&pool, desc, n);
    pr_pool_count(&pool, counts);
    if (counts[PR_OWNED] != (trusted ? 0 : 2 * SLOTS)) /* a sealed app's slots took none of these; ours were taken to be dealt */
        return -3;
    pr_app_publish(&a);
    for (uint32_t i = 0, tail = a.rx.ring->tail, slots; got > 0 && (slots = pr_frame_slots(&a.rx, i, tail)); frames++)
        for (lens[frames] = 0; slots; slots--, i = pr_next(&a.rx, i)) {
            const struct pr_slot *s = &a.rx.ring->slot[i];
            memcpy(out, pr_buf(a.rx.rg, s->buf_idx), s->len);
            out += s->len;
            lens[frames] += s->len;
        }
    return got < 0 ? -1 : (int)frames;
}
"""


@KINDS
@pytest.mark.parametrize("give", [0, 1], ids=["copy", "consume"])
def test_an_app_gets_wire_frames_of_a_super_frame_unless_it_wants_it_whole(uid, give):
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    lib = ckernel.load(CUT, sanitize=True)
    payload = bytes(random.Random(7).randbytes(9000))
    frame = bytes(Ether() / IP(dst="10.0.0.1") / TCP(seq=1000, flags="PA") / payload)

    def cut(gso_size, whole=0):
        out, lens = ctypes.create_string_buffer(1 << 17), (ctypes.c_uint32 * 64)()
        n = lib.cut(frame, len(frame), gso_size, 34, not uid, whole, give, out, lens)
        ends = list(itertools.accumulate(lens[: max(n, 0)]))
        return n if n < 0 else [out.raw[end - length : end] for end, length in zip(ends, lens[:n], strict=True)]

    parts = [Ether(part) for part in cut(1448)]
    assert [len(part[TCP].payload) for part in parts] == [1448] * 6 + [9000 - 6 * 1448]
    assert b"".join(bytes(part[TCP].payload) for part in parts) == payload
    assert [part[TCP].seq for part in parts] == [1000 + 1448 * i for i in range(7)]
    assert cut(1448, whole=1) == [frame]
    assert cut(100) == -1, "90 frames do not fit 31 slots: none comes"
