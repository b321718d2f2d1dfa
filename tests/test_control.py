"""The control socket: questions and answers, who may, how much, and that nobody can keep the controller from its work."""

import contextlib
import grp
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from control_lab import VERBS, Serving, answer_of, as_user, connected, fd_of_process, fds, process, settled, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from pktring.engine import control_server, rundir
from pktring.engine import control_wire as wire
from pktring.engine.control import Answer, Client, Later, Quota, Server, Verb
from pktring.shm.errors import Error

NOBODY = 65534


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving


def refused(code, function, *args, **how):
    with pytest.raises(Error) as why:
        function(*args, **how)
    assert why.value.code == code, why.value
    return why.value.text


# ---- questions and answers ----


def test_a_question_is_answered(serving):
    with Client(serving.path) as client:
        assert client.call("status") == ({"name": "eng0"}, [])
        assert client.call("echo", a=1, b=[None, "é\n", {"c": 2.5}]) == ({"a": 1, "b": [None, "é\n", {"c": 2.5}]}, [])
        assert client.call("who")[0] == {"uid": os.geteuid(), "pid": os.getpid(), "trusted": True, "why": client.call("who")[0]["why"]}


@pytest.mark.parametrize("size", [0, 10, wire.ROOM - 40, wire.ROOM, wire.ROOM * 10, wire.MAX_REQUEST - 100])
def test_a_body_of_any_size_goes_and_comes_back_and_leaves_no_descriptor(serving, size):
    with Client(serving.path) as client:
        client.call("status")
        before = fds()
        assert client.call("echo", text="x" * size)[0] == {"text": "x" * size}
        settled(before)


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(serving):
    with Client(serving.path) as client:
        refused("E_CTRL_MSG", client.call, "echo", text="x" * wire.MAX_REQUEST)
        assert client.call("status")[0] == {"name": "eng0"}


def test_what_a_handler_refuses_is_raised_and_the_connection_goes_on(serving):
    with Client(serving.path) as client:
        client.call("status")
        before = fds()
        for _ in range(3):
            assert refused("E_PORT", client.call, "refuse") == "no port of that name: choose another"
        assert "no verb 'nonsense'" in refused("E_CTRL_MSG", client.call, "nonsense")
        assert client.call("status")[0] == {"name": "eng0"}
        settled(before)
        assert serving.server.stats["accepted"] == 1


def test_a_defect_of_a_handler_is_told_and_ends_nothing(serving):
    with Client(serving.path) as client:
        assert "ZeroDivisionError" in refused("E_INTERNAL", client.call, "fail")
        assert client.call("status")[0] == {"name": "eng0"}
    assert serving.server.stats["defects"] == 1


@pytest.mark.parametrize("body", [{"x": object()}, {"x": float("nan")}, {1: {2, 3}}])
def test_an_answer_that_is_no_json_is_a_defect(body):
    with Serving({"odd": lambda peer, asked, fds: body}) as serving, Client(serving.path) as client:
        refused("E_INTERNAL", client.call, "odd")
        assert serving.server.connections == 1


def test_a_long_refusal_fits():
    def refuse(peer, body, fds):
        raise Error("E_PORT", "é\U0001f600\x01\udc80" * 5000)

    with Serving({"refuse": refuse}) as serving, Client(serving.path) as client:
        assert refused("E_PORT", client.call, "refuse").startswith("é\U0001f600\x01?é")


def test_an_answer_may_come_later():
    waiting = []

    def ask(peer, body, fds):
        waiting.append(Later())
        return waiting[-1]

    def at_once(peer, body, fds):
        later = Later()
        later.give({"early": True})
        return later

    def give(peer, body, fds):
        waiting[0].give(Answer({"late": True}))
        return {}

    with Serving({"ask": ask, "at_once": at_once, "give": give, "status": VERBS["status"]}) as serving:
        one, other = connected(serving.path), Client(serving.path)
        wire.send(one, wire.encode("ask", b"{}", request=1))
        wait_for(lambda: waiting)
        wire.send(one, wire.encode("status", b"", request=2))  # its turn comes after the first
        assert other.call("at_once")[0] == {"early": True} and other.call("status")[0] == {"name": "eng0"}
        assert not select.select([one], [], [], 0.05)[0]
        other.call("give")
        assert answer_of(one) == ("ok", {"late": True}) and answer_of(one) == ("ok", {"name": "eng0"})
        other.call("give")  # too late: nothing happens
        assert not select.select([one], [], [], 0.05)[0]
        one.close()
        other.close()


def test_whoever_hangs_up_while_he_waits_is_forgotten():
    waiting = []

    def ask(peer, body, fds):
        waiting.append(Later())
        return waiting[-1]

    with Serving({"ask": ask}) as serving:
        one = connected(serving.path)
        wire.send(one, wire.encode("ask", b"{}", request=1))
        wait_for(lambda: waiting)
        one.close()
        wait_for(lambda: waiting[0].gone)
        waiting[0].fail(Error("E_PORT", "too late"))
        serving.quiet()


# ---- descriptors ----


def test_descriptors_go_both_ways_and_are_closed_by_exec():
    bell = os.eventfd(0)

    def lend(peer, body, fds):
        return Answer({"n": len(fds)}, [bell, bell])

    with Serving({"lend": Verb(lend, fds=1)}) as serving, Client(serving.path) as client:
        client.call("lend")
        body, got = client.call("lend", send_fds=[bell])
        assert body == {"n": 1} and len(got) == 2 and not any(os.get_inheritable(fd) for fd in got)
        os.eventfd_write(got[0], 5)
        assert os.eventfd_read(bell) == 5
        large = os.eventfd(0)
        wire.closed([*got, large])
    os.close(bell)


def test_a_large_answer_may_bring_descriptors_too_but_not_any_number():
    bell = os.eventfd(0)

    def lend(peer, body, fds):
        return Answer({"x": "y" * 10000}, [bell] * body["n"])

    with Serving({"lend": lend}) as serving, Client(serving.path) as client:
        for n in (3, wire.MAX_ANSWER_FDS - 1):
            body, got = client.call("lend", n=n)
            assert len(body["x"]) == 10000 and len(got) == n
            wire.closed(got)
        refused("E_INTERNAL", client.call, "lend", n=wire.MAX_ANSWER_FDS)
    os.close(bell)


def test_descriptors_that_were_made_for_an_answer_are_closed_also_when_nobody_wants_it():
    waiting = []

    def made(peer, body, fds):
        answer = Answer({}, [os.eventfd(0)], close=True)
        if not body:
            return answer
        waiting.append((Later(), answer))
        return waiting[-1][0]

    with Serving({"made": made, "status": VERBS["status"]}) as serving, Client(serving.path) as client:
        client.call("status")
        before = fds()
        for _ in range(5):
            wire.closed(client.call("made")[1])
        settled(before)
        with connected(serving.path) as sock:
            wire.send(sock, wire.encode("made", b'{"later":1}', request=1))
            wait_for(lambda: waiting)
        wait_for(lambda: waiting[0][0].gone)
        waiting[0][0].give(waiting[0][1])
        with pytest.raises(OSError):
            os.fstat(waiting[0][1].fds[0])


def test_F10_a_handler_keeps_what_it_takes_and_the_rest_is_closed(serving):
    reading, writing = os.pipe()
    with Client(serving.path) as client:
        client.call("status")
        before = fds()
        for _ in range(5):
            assert client.call("keep", send_fds=[writing, writing])[0] == {"left": 1}
        assert os.read(reading, 100) == b"kept" * 5
        settled(before)
    os.close(reading)
    os.close(writing)


def test_F10_descriptors_that_nobody_asked_for_end_the_connection_and_stay_with_nobody(serving):
    bell = os.eventfd(0)
    serving.quiet()
    before = fds()
    for n in (1, 2, 4):  # CVE-2019-14818: descriptors with a message that takes none, again and again
        for _ in range(20):
            with Client(serving.path) as client:
                assert f"{n} descriptors with status" in refused("E_CTRL_MSG", client.call, "status", send_fds=[bell] * n)
    for n in (5, 20, 100):
        for _ in range(10):
            with Client(serving.path) as client:
                assert "more than 4 descriptors" in refused("E_CTRL_MSG", client.call, "keep", send_fds=[bell] * n)
    serving.quiet()
    settled(before)
    os.close(bell)


@pytest.mark.needs("host_root")
def test_F10_descriptors_of_those_who_may_not_change_things_never_arrive():
    seen = []
    verbs = {"status": Verb(lambda peer, body, fds: seen.append(list(fds)) or {}, public=True, fds=4)}
    with Serving(verbs) as serving:
        def send():
            bell = os.eventfd(0)
            for n in (1, 4, 50):
                with Client(serving.path) as client:
                    assert "more than 0 descriptors" in refused("E_CTRL_MSG", client.call, "status", send_fds=[bell] * n)
            assert Client(serving.path).call("status") == ({}, [])

        as_user(NOBODY, send)
        assert seen == [[]]


def sealed_with(raw, seals):
    import fcntl

    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, raw)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_F10_a_body_in_a_file_must_be_a_sealed_memfd_of_a_decent_size(serving, tmp_path):
    import fcntl

    shrink, write = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE
    (tmp_path / "file").write_bytes(b"{}")
    pipe, writing = os.pipe()
    cases = {
        "not sealed": [sealed_with(b"{}", 0), sealed_with(b"{}", shrink), sealed_with(b"{}", write | fcntl.F_SEAL_GROW)],
        "cannot be read": [os.open(tmp_path / "file", os.O_RDONLY), pipe, os.eventfd(0)],
        "bad length": [sealed_with(bytes(wire.MAX_REQUEST + 1), shrink | write)],
        "no JSON": [sealed_with(b"{", shrink | write), sealed_with(b"\xff", shrink | write)],
    }
    before = fds()
    for why, files in cases.items():
        for fd in files:
            with connected(serving.path) as sock:
                wire.send(sock, wire.encode("echo", b"", request=1, flags=wire.IN_MEMFD), [fd])
                code, text = answer_of(sock)
                assert code == "E_CTRL_MSG" and why in text and answer_of(sock)[0] == "end"
    with connected(serving.path) as sock:
        wire.send(sock, wire.encode("echo", b"", request=1, flags=wire.IN_MEMFD))
        assert answer_of(sock)[0] == "E_CTRL_MSG"
    serving.quiet()
    settled(before)
    wire.closed([writing, *(fd for files in cases.values() for fd in files)])


# ---- who may ----


@pytest.mark.needs("host_root")
def test_F10_strangers_may_read_and_change_nothing(serving):
    def ask():
        with Client(serving.path) as client:
            assert client.call("status")[0] == {"name": "eng0"}
            assert client.call("who")[0]["trusted"] is False
            for verb in ("down", "echo", "keep", "fail"):
                assert refused("E_DENIED", client.call, verb).startswith(f"uid={NOBODY} not in group pktring: {verb} ")
            assert client.call("status")[0] == {"name": "eng0"}, "the connection goes on"

    as_user(NOBODY, ask)
    assert serving.server.stats["denied"] == 4 and serving.server.stats["defects"] == 0


@pytest.mark.needs("host_root")
def test_a_member_of_the_group_may_change_things():
    some = next(g for g in grp.getgrall() if g.gr_gid not in (0, NOBODY))
    with Serving(group=some.gr_name) as serving:

        def ask():
            with Client(serving.path) as client:
                assert client.call("who")[0]["why"] == f"group {some.gr_name}"
                assert client.call("down")[0] == {"stopped": True}

        as_user(NOBODY, ask, groups=[some.gr_gid])
        as_user(NOBODY, lambda: refused("E_DENIED", Client(serving.path).call, "down"))


@pytest.mark.needs("host_root")
def test_F28_whoever_may_not_connect_is_told_what_he_lacks():
    with Serving(mode=0o660) as serving:
        as_user(NOBODY, lambda: refused("E_PERM", Client(serving.path).call, "status"))


def test_trust_is_asked_for_inside_a_public_verb_too():
    def sysctl(peer, body, fds):
        peer.trusted = False
        peer.require_trust("writing a sysctl")

    with Serving({"sysctl": Verb(sysctl, public=True)}) as serving, Client(serving.path) as client:
        refused("E_DENIED", client.call, "sysctl")


def test_F27_an_app_with_another_layout_is_refused_with_both():
    def attach(peer, body, fds):
        peer.require_layout()
        return {}

    with Serving({"attach": attach}) as serving, Client(serving.path) as client:
        assert client.call("attach")[0] == {}
        with connected(serving.path) as sock:
            data = bytearray(wire.encode("attach", b"", request=1))
            struct.pack_into("<Q", data, 24, 0x9F3A)
            wire.send(sock, bytes(data))
            code, text = answer_of(sock)
            assert code == "E_ABI" and "app layout 9f3a, engine " in text


# ---- quotas ----


def test_F10_a_user_has_at_most_so_many_apps_and_so_much_memory():
    with Serving(quota=Quota(apps=3, memory=1000, connections=16)) as serving:
        clients = [Client(serving.path) for _ in range(5)]
        clients[0].call("attach", memory=600)
        assert "has 600 bytes and wants 401" in refused("E_QUOTA", clients[1].call, "attach", memory=401)
        clients[1].call("attach", memory=400)
        clients[2].call("attach")
        assert "has 3 apps" in refused("E_QUOTA", clients[3].call, "attach")
        assert [peer.memory for peer in serving.server.apps] == [600, 400, 0]
        clients[0].close()
        wait_for(lambda: len(serving.server.apps) == 2)
        clients[3].call("attach", memory=600)
        refused("E_CTRL_MSG", clients[3].call, "attach")
        for client in clients:
            client.close()
        serving.quiet()
        assert serving.server._used == {} and len(serving.gone) == 4


def test_F10_one_connection_too_many_costs_the_longest_idle_one_and_no_app():
    with Serving(quota=Quota(connections=4)) as serving:
        app = Client(serving.path)
        app.call("attach")
        silent = [connected(serving.path) for _ in range(3)]
        wait_for(lambda: serving.server.connections == 4)
        with Client(serving.path) as client:
            assert client.call("status")[0] == {"name": "eng0"}
            assert [answer_of(silent[0])[0] for _ in range(2)] == ["E_BUSY", "end"] and not select.select([silent[1]], [], [], 0)[0]
            assert app.call("status")[0] == {"name": "eng0"} and serving.server.connections == 4
        for sock in silent:
            sock.close()
        app.close()


def test_F10_when_all_connections_are_in_use_one_more_is_refused():
    with Serving(quota=Quota(apps=2, connections=2)) as serving:
        apps = [Client(serving.path) for _ in range(2)]
        for app in apps:
            app.call("attach")
        with Client(serving.path) as client:
            assert "2 connections in use" in refused("E_QUOTA", client.call, "status")
        assert apps[0].call("status")[0] == {"name": "eng0"}
        for app in apps:
            app.close()
        with Client(serving.path) as client:
            wait_for(lambda: not serving.server.connections)
            client.call("status")


def low_limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


@pytest.mark.needs("host_root")
def test_F20_descriptors_are_kept_in_reserve_and_who_is_there_goes_on():
    with process(low_limit, quota=Quota(connections=100)) as (pid, path):
        old = Client(path)
        old.call("attach")
        crowd, texts = [], []
        for _ in range(60):
            sock = connected(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.send(sock, wire.encode("attach" if len(crowd) < 8 else "status", b"", request=1))
            code, text = answer_of(sock)
            texts += [text] if code == "E_FD_LIMIT" else []
            crowd.append(sock)
        assert texts and texts[0].endswith("/40 used; raise LimitNOFILE")
        wait_for(lambda: fd_of_process(pid) <= 40 - control_server.RESERVE)
        assert old.call("status")[0] == {"name": "eng0"}
        for sock in crowd:
            sock.close()
        wait_for(lambda: fd_of_process(pid) < 20)
        assert Client(path).call("status")[0] == {"name": "eng0"}
        old.close()


def test_F20_descriptors_that_are_sent_do_not_use_up_the_reserve():
    null = os.open("/dev/null", os.O_WRONLY)
    with process(low_limit) as (pid, path), Client(path) as client:
        hogs = [Client(path) for _ in range(7)]
        for hog in hogs:
            hog.call("attach")
        assert "/40 used; raise LimitNOFILE" in refused("E_FD_LIMIT", client.call, "keep", send_fds=[null] * 4)
        for hog in hogs:
            assert hog.call("status")[0] == {"name": "eng0"}
            hog.close()
        wait_for(lambda: fd_of_process(pid) < 20)
        assert client.call("keep", send_fds=[null] * 2)[0] == {"left": 1}
    os.close(null)


@pytest.mark.needs("host_root")
def test_F20_without_any_descriptor_left_callers_are_turned_away_and_the_loop_does_not_spin(tmp_path):
    hog = []

    def no_reserve():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        while True:
            try:
                hog.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                return

    with process(no_reserve) as (_, path):
        for _ in range(50):
            refused("E_NO_CONTROLLER", Client(path, 2).call, "status")


# ---- time ----


def test_F10_whoever_says_nothing_is_hung_up_on_and_apps_are_not(monkeypatch):
    monkeypatch.setattr(control_server, "IDLE_S", 0.3)
    with Serving() as serving:
        silent, asked, app = connected(serving.path), Client(serving.path), Client(serving.path)
        begin = time.monotonic()
        asked.call("status")
        app.call("attach")
        assert [answer_of(silent)[0] for _ in range(2)] == ["E_BUSY", "end"] and 0.25 < time.monotonic() - begin < 3
        wait_for(lambda: serving.server.connections == 1)
        assert serving.server.stats["expired"] == 2
        assert asked.call("status")[0] == {"name": "eng0"}, "it connects again by itself"
        assert not select.select([app], [], [], 0)[0] and app.call("status")[0] == {"name": "eng0"}
        for one in (silent, asked, app):
            one.close()


def test_a_question_that_meets_the_end_of_an_idle_connection_is_asked_again(tmp_path):
    (tmp_path / "eng0").mkdir()
    path = str(tmp_path / "eng0/control.sock")
    ear = rundir.listen(path)
    pid = os.fork()
    if pid == 0:
        for last_words in (control_server.TURNED_AWAY, control_server.TURNED_AWAY, None):
            select.select([ear], [], [], 5)
            with ear.accept()[0] as sock:
                assert select.select([sock], [], [], 5)[0]  # the question is there, and is not read
                if last_words:
                    sock.send(last_words)
                else:
                    request = wire.decode(sock.recv(5000)).request
                    sock.send(wire.encode("answer", b'{"heard":3}', request=request, flags=wire.ANSWER))
        os._exit(0)
    with Client(path) as client:
        assert client.call("status")[0] == {"heard": 3}
    assert os.waitpid(pid, 0)[1] == 0
    ear.close()


def test_F10_whoever_does_not_read_his_answers_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(control_server, "IDLE_S", 0.3)
    with Serving({"lots": lambda peer, body, fds: {"x": "y" * 100000}}) as serving:
        sock = connected(serving.path)
        sock.setblocking(False)
        before = fds()
        with pytest.raises((BlockingIOError, BrokenPipeError, ConnectionResetError)):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                wire.send(sock, wire.encode("lots", b"", request=1))
        wait_for(lambda: serving.server.connections == 0)
        sock.close()
        wait_for(lambda: fds() <= before)


def test_answers_that_do_not_fit_wait_for_their_reader():
    with Serving({"lots": lambda peer, body, fds: {"x": "y" * 3000, "n": body["n"]}}) as serving:
        sock = connected(serving.path)
        for n in range(10):  # as many as a socket's queue takes, net.unix.max_dgram_qlen; two or three answers fit into ours
            wire.send(sock, wire.encode("lots", json.dumps({"n": n}).encode(), request=n))
        time.sleep(0.1)
        assert serving.server.stats["messages"] < 8
        assert [answer_of(sock)[1]["n"] for _ in range(10)] == list(range(10))
        sock.close()


def test_F5_a_dead_controller_is_told_at_once(tmp_path):
    (tmp_path / "eng0").mkdir()
    path = str(tmp_path / "eng0/control.sock")
    begin = time.monotonic()
    assert refused("E_NO_CONTROLLER", Client(path).call, "status").startswith("name=eng0: ")
    rundir.listen(path).close()
    assert refused("E_NO_CONTROLLER", Client(path).call, "status").startswith("name=eng0: ")
    worker = rundir.listen(str(tmp_path / "eng0/worker-1.sock"))
    assert refused("E_NO_CONTROLLER", Client(path).call, "status").startswith("name=eng0 (data path still up): ")
    assert time.monotonic() - begin < 2
    worker.close()
    refused("E_NO_ENGINE", Client(str(tmp_path / "no/control.sock")).call, "status")


def test_F5_a_controller_that_dies_during_a_call_is_told_at_once():
    def die(peer, body, fds):
        os.kill(os.getpid(), signal.SIGKILL)

    VERBS["die"] = die
    try:
        with process() as (_, path):
            begin = time.monotonic()
            refused("E_NO_CONTROLLER", Client(path, 30).call, "die")
            assert time.monotonic() - begin < 5
    finally:
        del VERBS["die"]


def test_F5_an_app_sees_that_its_controller_is_gone():
    with process() as (pid, path):
        app = Client(path)
        app.call("attach")
        assert not select.select([app], [], [], 0)[0]
        os.kill(pid, signal.SIGKILL)
        assert select.select([app], [], [], 5)[0]
        app.close()


def test_a_stopped_controller_hangs_nobody():
    with process() as (pid, path):
        old = Client(path, 0.3)
        old.call("status")
        os.kill(pid, signal.SIGSTOP)
        crowd = []
        for client in (old, Client(path, 0.3)):
            begin = time.monotonic()
            assert "did not answer within 0.3 s" in refused("E_NO_CONTROLLER", client.call, "status")
            assert 0.25 < time.monotonic() - begin < 2
            crowd.append(client)
        with pytest.raises(BlockingIOError):  # fill its queue
            while True:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                crowd.append(sock)
                sock.connect(path)
        begin = time.monotonic()
        refused("E_NO_CONTROLLER", Client(path, 0.6).call, "status")
        assert 0.5 < time.monotonic() - begin < 2
        os.kill(pid, signal.SIGCONT)
        assert Client(path).call("status")[0] == {"name": "eng0"}
        for one in crowd:
            one.close()


def test_a_late_answer_is_not_taken_for_the_answer_to_another_question():
    import threading

    slow = threading.Event()

    def ask(peer, body, fds):
        slow.wait(2)
        return body

    with Serving({"ask": ask}) as serving, Client(serving.path, 0.2) as client:
        refused("E_NO_CONTROLLER", client.call, "ask", n=1)
        slow.set()
        client.timeout_s = 5
        assert client.call("ask", n=2)[0] == {"n": 2}


def test_F10_a_step_ends_in_time_however_much_there_is_to_do(tmp_path):
    (tmp_path / "eng0").mkdir()

    def slow(peer, body, fds):
        end = time.monotonic() + 0.003
        while time.monotonic() < end:
            pass
        return {}

    server = Server(str(tmp_path / "eng0/control.sock"), handlers={"slow": slow, "fast": lambda peer, body, fds: {}})
    socks = [connected(server.path) for _ in range(12)]
    while server.connections < 12:
        server.step()
    for sock in socks:
        for n in range(2):  # as many answers fit, unread
            wire.send(sock, wire.encode("slow", b"", request=n))
    answered = []
    for _ in range(1000):
        before = server.stats["messages"]
        server.step()
        answered.append(server.stats["messages"] - before)
    assert max(answered) <= 2 and sum(answered) == 24
    for sock in socks:  # everybody had his turn
        assert [answer_of(sock)[0] for _ in range(2)] == ["ok"] * 2
        sock.close()
    server.close()


# ---- apps that go ----


def test_F4_the_end_of_an_app_is_told_once(serving):
    app = Client(serving.path)
    app.call("attach", memory=5)
    assert serving.gone == []
    app.close()
    wait_for(lambda: serving.gone)
    assert serving.gone[0].pid == os.getpid() and not serving.gone[0].attached
    with Client(serving.path) as client:
        client.call("status")
    serving.quiet()
    assert len(serving.gone) == 1


def test_F4_an_app_that_dies_is_gone_even_if_its_child_holds_the_connection(serving):
    code = """
import os, sys, time
from pktring.engine.control import Client
client = Client(sys.argv[1])
client.call("attach")
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("up", flush=True)
time.sleep(60)"""
    child = subprocess.Popen([sys.executable, "-c", code, serving.path], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert child.stdout.readline() == "up\n"
        assert serving.gone == []
        child.kill()
        wait_for(lambda: serving.gone, 2)
        assert serving.gone[0].pid == child.pid and serving.server.connections == 0
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)
        child.stdout.close()


def test_an_app_may_become_a_plain_caller_again():
    verbs = {"attach": VERBS["attach"], "detach": lambda peer, body, fds: peer.detach() or {}}
    with Serving(verbs) as serving, Client(serving.path) as client:
        for _ in range(20):
            client.call("attach", memory=1000)
            client.call("detach")
        assert serving.server.apps == [] and serving.gone == [] and serving.server._used[os.geteuid()].memory == 0


def test_a_forked_worker_that_lets_go_does_not_keep_connections_open(serving):
    app = Client(serving.path)
    app.call("attach")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        app._sock.close()
        serving.server.release_in_child()
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        assert app.call("status")[0] == {"name": "eng0"}, "the parent's goes on"
        app.close()
        wait_for(lambda: serving.gone, 2)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_whoever_is_hung_up_on_sees_it_even_if_a_forked_child_has_not_let_go(serving):
    with connected(serving.path) as sock:
        wait_for(lambda: serving.server.connections)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        try:
            sock.send(b"x")
            assert [answer_of(sock)[0] for _ in range(2)] == ["E_CTRL_MSG", "end"]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_nothing_is_left_open_by_a_server_that_ends():
    before = fds()
    with Serving() as serving:
        clients = [Client(serving.path) for _ in range(6)]
        for client in clients[:3]:
            client.call("attach")
        for client in clients[3:]:
            client.call("status")
    for client in clients:
        assert select.select([client], [], [], 1)[0]
        client.close()
    assert serving.gone == [], "its own end is no app's"
    settled(before)


def test_F26_two_servers_do_not_share_a_path(serving):
    refused("E_NAME_BUSY", Server, serving.path, handlers=VERBS)


# ---- F10, R9: bad messages ----


def changed(at, value, form="<I", data=None):
    data = bytearray(data or wire.encode("status", b"{}", request=7))
    struct.pack_into(form, data, at, value)
    return bytes(data)


GOOD = wire.encode("status", b"{}", request=7)
BAD = {
    "one byte": b"x",
    "a part of the header": GOOD[:30],
    "no body": GOOD[:64],
    "cut short": GOOD[:-1],
    "too long": GOOD + b"\0",
    "far too long": bytes(70000),
    "magic": changed(0, 0xDEADBEEF),
    "flags": changed(8, 0x80),
    "an answer": changed(8, wire.ANSWER),
    "a refusal": changed(8, wire.REFUSED | wire.ANSWER),
    "length": changed(12, 4097),
    "length that wraps": changed(12, 0xFFFFFFFF),
    "length beside a memfd": changed(8, wire.IN_MEMFD),
    "reserved": changed(56, 1),
    "padding": changed(4092, 1),
    "no verb": changed(32, b"", "24s"),
    "verb of zeros and letters": changed(32, b"sta\0tus", "24s"),
    "verb in capitals": changed(32, b"STATUS", "24s"),
    "verb with a path": changed(32, b"../status", "24s"),
    "not UTF-8": wire.encode("status", b'{"a":"\xff"}', request=1),
    "no JSON": wire.encode("status", b"{", request=1),
    "no object": wire.encode("status", b"[1]", request=1),
    "NaN": wire.encode("status", b'{"a":NaN}', request=1),
    "infinite": wire.encode("status", b'{"a":1e999}', request=1),
    "half a pair": wire.encode("status", b'{"a":"\\ud800"}', request=1),
    "deep": wire.encode("status", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", request=1),
    "very deep": wire.encode("status", b"[" * 4000, request=1),
    "two objects": wire.encode("status", b"{}{}", request=1),
}


@pytest.mark.parametrize("name", BAD)
def test_F10_a_bad_message_is_refused_with_its_reason_and_is_the_last(serving, name):
    before = fds()
    for _ in range(3):
        with connected(serving.path) as sock:
            sock.send(BAD[name])
            code, text = answer_of(sock)
            assert code == "E_CTRL_MSG" and f"from uid={os.geteuid()}" in text
            assert answer_of(sock)[0] == "end"
    serving.quiet()
    assert serving.server.stats["bad"] == 3 and serving.server.stats["defects"] == 0
    settled(before)
    assert len(serving.notes) <= 2, "a stranger does not fill the log"
    with Client(serving.path) as client:
        assert client.call("status")[0] == {"name": "eng0"}


def test_F10_the_length_of_a_message_that_is_too_long_is_named(serving):
    with connected(serving.path) as sock:
        sock.send(GOOD + bytes(66000))
        assert "bad length, over 4096" in answer_of(sock)[1]


def test_F10_an_empty_message_is_an_end(serving):
    with connected(serving.path) as sock:
        sock.send(b"")
        assert answer_of(sock)[0] == "end"


def test_F27_another_version_is_told_both(serving):
    for version in (0, 2, 65535):
        for data in (changed(4, version, "<H"), changed(4, version, "<H")[:100]):
            with connected(serving.path) as sock:
                sock.send(data)
                code, text = answer_of(sock)
                assert code == "E_ABI" and f"version {version}.0 there, 1.0 here" in text
    with connected(serving.path) as sock:
        sock.send(changed(6, 9, "<H"))  # a newer minor version says nothing that we must not ignore
        assert answer_of(sock)[0] == "ok"


def test_F27_a_client_of_another_version_finds_out_by_itself(tmp_path):
    (tmp_path / "eng0").mkdir()
    path = str(tmp_path / "eng0/control.sock")
    ear = rundir.listen(path)
    pid = os.fork()
    if pid == 0:
        select.select([ear], [], [], 5)
        sock = ear.accept()[0]
        sock.setblocking(True)
        sock.recv(5000)
        sock.send(changed(4, 3, "<H") + b"and more that we do not know")
        os._exit(0)
    assert "control version 3.0 there, 1.0 here" in refused("E_ABI", Client(path).call, "status")
    os.waitpid(pid, 0)
    ear.close()


NO_MEMFD = changed(8, wire.ANSWER | wire.IN_MEMFD, data=wire.encode("a", b"", request=1))


@pytest.mark.parametrize("answer", [b"x", GOOD, NO_MEMFD, bytes(9000)])
def test_a_client_believes_no_answer_that_is_none(tmp_path, answer):
    (tmp_path / "eng0").mkdir()
    path = str(tmp_path / "eng0/control.sock")
    ear = rundir.listen(path)
    pid = os.fork()
    if pid == 0:
        select.select([ear], [], [], 5)
        sock = ear.accept()[0]
        sock.setblocking(True)
        sock.recv(5000)
        bell = os.eventfd(0)
        socket.send_fds(sock, [answer], [] if answer == NO_MEMFD else [bell, bell])
        os._exit(0)
    client = Client(path)
    before = fds()
    refused("E_CTRL_MSG", client.call, "status")
    settled(before)
    os.waitpid(pid, 0)
    ear.close()


# ---- the rules alone ----


@given(st.binary(max_size=200) | st.binary(min_size=wire.MESSAGE - 2, max_size=wire.MESSAGE + 2))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message_or_a_refusal(data):
    for given_ in (data, GOOD[:8] + data):
        try:
            wire.decode(given_)
        except Error as why:
            assert why.code in ("E_CTRL_MSG", "E_ABI")


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_body_or_a_refusal(raw):
    try:
        assert isinstance(wire.loads(raw), dict)
    except Error as why:
        assert why.code == "E_CTRL_MSG"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(
    st.from_regex(r"[a-z][a-z0-9._-]{0,23}", fullmatch=True),
    st.dictionaries(st.sampled_from("abc"), json_values),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, wire.ANSWER, wire.ANSWER | wire.REFUSED]),
)
@settings(max_examples=200, deadline=None)
def test_what_is_packed_is_unpacked_the_same(verb, body, request, flags):
    raw = wire.dumps(body)
    if len(raw) > wire.ROOM:
        return
    data = wire.encode(verb, raw, request=request, flags=flags)
    message = wire.decode(data)
    assert len(data) == wire.MESSAGE and (message.verb, message.request, message.flags) == (verb, request, flags)
    assert wire.loads(message.raw) == body


@given(st.integers(0, wire.MESSAGE * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_refused_or_changes_just_what_it_says(bit):
    good = wire.encode("status", b'{"a":1}', request=7)
    data = bytearray(good)
    data[bit // 8] ^= 1 << bit % 8
    try:
        message = wire.decode(bytes(data))
    except Error as why:
        assert why.code in ("E_CTRL_MSG", "E_ABI")
    else:
        assert bit // 8 < 64 + 7 or not any(data[64 + 7 :]), "nothing is overlooked"
        assert message != wire.decode(good) or bit // 8 in (6, 7)


def test_what_does_not_fit_is_not_packed():
    for verb, raw in (("x" * 25, b""), ("x", bytes(wire.ROOM + 1)), ("é", b"")):
        with pytest.raises(ValueError):
            wire.encode(verb, raw, request=1)
