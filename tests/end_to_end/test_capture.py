"""`pktring capture` over real veths: every flag, what the files hold, and what is said when it cannot be."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
from command import COMMAND, answer, ended, hear, left, pktring, refused, started
from frames import number, numbered, tagged
from lab import End, Lab
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket, InterfaceDescription, InterfaceStatistics

pytestmark = pytest.mark.needs("root")

ISB_IFRECV, ISB_OSDROP = "isb_ifrecv", "isb_osdrop"


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def wire(lab):
    return lab.pair(offloads=False)


class File:
    """A pcapng file, read by a program that is not ours."""

    def __init__(self, path):
        with open(path, "rb") as file:
            blocks = list(FileScanner(file))
        self.interfaces = [block.options.get("if_name") for block in blocks if isinstance(block, InterfaceDescription)]
        self.described = [block for block in blocks if isinstance(block, InterfaceDescription)]
        self.packets = [block for block in blocks if isinstance(block, EnhancedPacket)]
        self.statistics = [block.options for block in blocks if isinstance(block, InterfaceStatistics)]
        self.frames = [bytes(packet.packet_data) for packet in self.packets]


def captured(lab, where, send, *words, **how):
    """Capture at an end while `send()` runs, then end it by SIGINT. -> (status, stdout, stderr)."""
    child = started(lab, where.netns, "capture", "-i", where.name, *words, **how)
    send()
    return ended(child)


def file_of(lab, where, send, path, *words):
    status, _, err = captured(lab, where, send, "-w", path, *words)
    assert status == 0, err
    return File(path)


def looks_right(path):
    """capinfos and tshark read it to its end without a complaint."""
    for argv in (["capinfos", path], ["tshark", "-n", "-r", path]):
        got = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        said = [line for line in got.stderr.splitlines() if not line.startswith("Running as user")]
        assert (got.returncode, said) == (0, []), got
    return True


# ---- to a file ----


def test_every_frame_is_written_byte_for_byte_with_its_time(lab, wire, tmp_path):
    a, b = wire
    sent = [numbered(i, 60 + i % 1455) for i in range(3000)]
    before = time.time_ns()
    file = file_of(lab, b, lambda: lab.send(a, sent), tmp_path / "x.pcapng")
    assert file.frames == sent
    assert file.interfaces == ["vb"]
    times = [packet.timestamp for packet in file.packets]
    assert times == sorted(times) and before / 1e9 - 1 < times[0] <= times[-1] < time.time() + 1
    assert any(round(t * 10**9) % 1000 for t in times), "the times have no nanoseconds"


@pytest.mark.needs("tshark", "capinfos")
def test_wireshark_finds_nothing_wrong_with_a_file(lab, wire, tmp_path):
    a, b = wire
    file_of(lab, b, lambda: lab.send(a, [numbered(i) for i in range(100)]), tmp_path / "x.pcapng", "ether", "proto", "0x88b5")
    assert looks_right(tmp_path / "x.pcapng")


def test_the_json_says_what_happened(lab, wire, tmp_path):
    a, b = wire
    path = tmp_path / "x.pcapng"
    status, out, _ = captured(lab, b, lambda: lab.send(a, [numbered(0)], 50), "-w", path, "--json")
    report = json.loads(out)
    assert status == 0 and 0 < report.pop("seconds") < 30
    assert report == {
        "captured": 50,
        "dropped_kernel": 0,
        "dropped_engine": 0,
        "written_bytes": path.stat().st_size,
        "files": [str(path)],
        "reasons": {},
    }


def test_the_end_is_told_as_by_tcpdump(lab, wire, tmp_path):
    a, b = wire
    status, out, err = captured(lab, b, lambda: lab.send(a, [numbered(0)], 3), "-w", tmp_path / "x.pcapng")
    assert (status, out) == (0, "")
    assert re.search(
        r"3 packets captured\n3 packets received by filter\n0 packets dropped by kernel\n0 packets dropped by pktring\n$", err
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(lab, wire, tmp_path, number):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x.pcapng")
    lab.send(a, [numbered(0)], 10)
    status, _, err = ended(child, number)
    assert status == 0 and "10 packets captured" in err
    assert len(File(tmp_path / "x.pcapng").statistics) == 1


def test_a_frame_just_before_the_end_is_not_lost(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x.pcapng")
    with lab.inside(a.netns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("va", 0))
    time.sleep(0.3)  # by now it sleeps, and the kernel keeps a lone frame for 2 ms before it wakes it
    sock.send(numbered(1))
    child.send_signal(signal.SIGINT)
    child.wait(10)
    sock.close()
    assert ended(child)[0] == 0
    assert File(tmp_path / "x.pcapng").frames == [numbered(1)]


def test_duration_ends_it(lab, wire, tmp_path):
    began = time.monotonic()
    got = pktring("capture", "-i", "vb", "-w", tmp_path / "x.pcapng", "--duration", "300ms", "--json", lab=lab, netns=wire[1].netns)
    assert 0.3 <= answer(got)["seconds"] < 3 and time.monotonic() - began < 10


def test_sigusr1_tells_the_counts_so_far(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x.pcapng")
    lab.send(a, [numbered(0)], 7)
    time.sleep(0.3)
    child.send_signal(signal.SIGUSR1)
    assert child.stderr.readline() == "pktring: 7 packets captured, 0 dropped by kernel\n"
    assert ended(child)[0] == 0


def test_c_stops_at_exactly_so_many(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x.pcapng", "-c", "1k")
    lab.send(a, [numbered(i) for i in range(1500)])
    child.wait(10)
    assert [number(frame) for frame in File(tmp_path / "x.pcapng").frames] == list(range(1000))
    assert "1000 packets captured" in ended(child)[2]


def test_s_keeps_the_first_bytes_and_says_how_long_it_was(lab, wire, tmp_path):
    a, b = wire
    file = file_of(lab, b, lambda: lab.send(a, [numbered(1, 1000), numbered(2, 60)]), tmp_path / "x.pcapng", "-s", "64")
    assert [(len(packet.packet_data), packet.packet_len) for packet in file.packets] == [(64, 1000), (60, 60)]
    assert file.described[0].snaplen == 64


@pytest.mark.parametrize("words", [["ether", "proto", "0x1234"], ["-f", "ether proto 0x1234"], ["--filter", "ether proto 0x1234"]])
def test_a_filter_in_words_or_behind_f(lab, wire, tmp_path, words):
    a, b = wire
    mixed = [numbered(i, ethertype=0x1234 if i % 3 == 0 else 0x88B5) for i in range(30)]
    file = file_of(lab, b, lambda: lab.send(a, mixed), tmp_path / "x.pcapng", *words)
    assert file.frames == mixed[::3]
    assert b"ether proto 0x1234" in file.described[0].options["if_filter"]


def test_flags_may_follow_the_words_of_the_filter(lab, wire, tmp_path):
    got = pktring("capture", "-r", _small(lab, wire, tmp_path), "ether", "-c", "2", "proto", "0x88b5", "--json", timeout_s=30)
    assert answer(got)["captured"] == 2


def _small(lab, wire, tmp_path):
    a, b = wire
    file_of(lab, b, lambda: lab.send(a, [numbered(i) for i in range(10)]), tmp_path / "small.pcapng")
    return tmp_path / "small.pcapng"


def test_vlan_tags_are_in_the_file_and_filters_see_them(lab, wire, tmp_path):
    a, b = wire
    sent = [tagged(numbered(1), 5), numbered(2), tagged(tagged(numbered(3), 7), 100, 0x88A8), tagged(numbered(4), 6)]
    for vlan, expected in ((5, sent[0]), (100, sent[2])):
        file = file_of(lab, b, lambda: lab.send(a, sent), tmp_path / "x.pcapng", "vlan", str(vlan))
        assert file.frames == [expected]


def test_Q_chooses_a_direction(lab, wire, tmp_path):
    a, b = wire
    for way, expected in (("in", [1]), ("out", [2]), ("inout", [1, 2])):
        file = file_of(lab, b, lambda: (lab.send(a, [numbered(1)]), lab.send(b, [numbered(2)])), tmp_path / way, "-Q", way)
        assert [number(frame) for frame in file.frames] == expected
    flags = [packet.options["epb_flags"] for packet in file.packets]
    assert flags[0] != flags[1]


def test_p_leaves_the_interface_as_modest_as_it_is(lab, wire, tmp_path):
    from pyroute2 import IPRoute

    def promiscuous():
        with lab.inside(wire[1].netns), IPRoute() as ipr:
            (link,) = ipr.link("get", index=lab.index(wire[1]))
            return link.get_attr("IFLA_PROMISCUITY")

    for words, expected in (([], 1), (["-p"], 0)):
        child = started(lab, wire[1].netns, "capture", "-i", "vb", "-w", tmp_path / "x", *words)
        assert promiscuous() == expected
        ended(child)
        assert promiscuous() == 0


def test_several_interfaces_share_a_file(lab, tmp_path):
    here = lab.namespace("here")
    ends = [End(here, f"v{i}") for i in range(3)]
    others = [End(lab.namespace(f"there{i}"), "far") for i in range(3)]
    for end, other in zip(ends, others, strict=True):
        lab.veth(end, other)
    child = started(lab, here, "capture", "-i", "v0", "-i", "v1", "-i", "v2", "-w", tmp_path / "x.pcapng")
    for i, other in enumerate(others):
        lab.send(other, [numbered(100 * i + k) for k in range(5)])
    assert ended(child)[0] == 0
    file = File(tmp_path / "x.pcapng")
    assert file.interfaces == ["v0", "v1", "v2"] and len(file.statistics) == 3
    by_interface = {i: [number(p.packet_data) for p in file.packets if p.interface_id == i] for i in range(3)}
    assert by_interface == {i: [100 * i + k for k in range(5)] for i in range(3)}


def test_what_the_kernel_dropped_is_told(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb?buffer=1", "-w", tmp_path / "x.pcapng", "--json")
    child.send_signal(signal.SIGSTOP)
    lab.send(a, [numbered(i, 1500) for i in range(3000)])
    child.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    lab.send(a, [numbered(9999)])
    status, out, err = ended(child)
    report = json.loads(out)
    assert status == 0 and report["dropped_kernel"] > 100, err
    assert report["captured"] + report["dropped_kernel"] == 3001
    file = File(tmp_path / "x.pcapng")
    assert file.statistics[0][ISB_OSDROP] == report["dropped_kernel"] and file.statistics[0][ISB_IFRECV] == 3001
    assert sum(packet.options.get("epb_dropcount", 0) for packet in file.packets) == report["dropped_kernel"]


# ---- rotation ----


def test_G_starts_a_file_every_so_many_seconds(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "%s.pcapng", "-G", "1", "--json")
    for i in range(24):
        lab.send(a, [numbered(i)])
        time.sleep(0.1)
    status, out, _ = ended(child)
    files = json.loads(out)["files"]
    assert status == 0 and 3 <= len(files) <= 4 and len(set(files)) == len(files)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(files)
    assert [number(frame) for name in files for frame in File(name).frames] == list(range(24))


def test_G_with_W_ends_after_so_many_files(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "%s.pcapng", "-G", "1", "-W", "2")
    for _ in range(60):
        lab.send(a, [numbered(0)])
        time.sleep(0.1)
        if child.poll() is not None:
            break
    assert ended(child)[0] == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_C_starts_a_file_before_one_is_too_long(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x", "-C", "0.01", "--json")
    lab.send(a, [numbered(i, 500) for i in range(100)])
    status, out, _ = ended(child)
    files = json.loads(out)["files"]
    assert status == 0 and files == [f"{tmp_path}/x{n or ''}" for n in range(len(files))] and len(files) >= 6
    assert all(os.path.getsize(name) <= 10_000 for name in files)
    assert [number(frame) for name in files for frame in File(name).frames] == list(range(100))


def test_C_with_W_is_a_ring_of_files(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x", "-C", "10k", "-W", "2")
    lab.send(a, [numbered(i, 500) for i in range(100)])
    assert ended(child)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x0", "x1"]
    kept = sorted(number(frame) for name in ("x0", "x1") for frame in File(tmp_path / name).frames)
    assert kept == list(range(100 - len(kept), 100))


def test_z_runs_a_command_on_each_finished_file(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x", "-C", "10k", "-z", "gzip -1")
    lab.send(a, [numbered(i, 500) for i in range(60)])
    assert ended(child)[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) >= 3 and all(name.endswith(".gz") for name in names)


# ---- pipes ----


@pytest.mark.needs("tshark")
def test_tshark_reads_it_live(lab, wire, tmp_path):
    a, b = wire
    capture = started(lab, b.netns, "capture", "-i", "vb", "-w", "-", "--json", stdout=subprocess.PIPE)
    argv = ["tshark", "-l", "-n", "-i", "-", "-c", "3"]
    tshark = subprocess.Popen(argv, stdin=capture.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    capture.stdout.close()
    try:
        deadline = time.monotonic() + 20
        while tshark.poll() is None and time.monotonic() < deadline:
            lab.send(a, [numbered(7)])
            time.sleep(0.1)
        assert tshark.communicate(timeout=5)[0].count(b"0x88b5") == 3
    finally:
        tshark.kill()
        tshark.wait()
    lab.send(a, [numbered(7)])
    assert capture.wait(10) == 0  # its reader went away: that is an end like any other
    assert json.loads(capture.stderr.read().splitlines()[-1])["captured"] >= 3  # stdout was taken


@pytest.mark.parametrize("words", [["-w", "-"], ["-l"]])
def test_a_reader_that_goes_away_is_no_error(lab, wire, words):
    a, b = wire
    reader = lab.start(None, ["head", "-c", "10"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    child = started(lab, b.netns, "capture", "-i", "vb", *words, stdout=reader.stdin)
    reader.stdin.close()
    deadline = time.monotonic() + 15
    while child.poll() is None and time.monotonic() < deadline:
        lab.send(a, [numbered(i) for i in range(100)])
        time.sleep(0.1)
    assert child.wait(1) == 0
    assert "Traceback" not in child.stderr.read()


def test_a_file_is_read_from_a_pipe(lab, wire, tmp_path):
    with open(_small(lab, wire, tmp_path), "rb") as file:
        got = subprocess.run([*COMMAND, "capture", "-r", "-", "-w", tmp_path / "y", "--json"], stdin=file, capture_output=True, timeout=30)
    assert got.returncode == 0 and File(tmp_path / "y").frames == [numbered(i) for i in range(10)]


# ---- text ----


def udp(lab, a, n=1):
    with lab.inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((a.host, 4000))
        for _ in range(n):
            sock.sendto(b"hello", ("10.0.0.2", 53))


def test_a_line_a_frame(lab, wire):
    a, b = wire
    _, out, err = captured(lab, b, lambda: udp(lab, a), "-Q", "in", "udp", "port", "53")
    line = r"\d\d:\d\d:\d\d\.\d{9} vb In  IP / UDP .*10\.0\.0\.1:4000 > 10\.0\.0\.2:domain.*, length 47\n"
    assert re.fullmatch(line, out), out
    assert "1 packet captured" in err


@pytest.mark.parametrize(
    "flag, shape",
    [
        ("-n", r"10\.0\.0\.1:4000 > 10\.0\.0\.2:53"),
        ("-ne", r"(\w\w:){5}\w\w > (\w\w:){5}\w\w, ethertype 0x0800: IP"),
        ("-q", r" IP 10\.0\.0\.1 > 10\.0\.0\.2 udp,"),
    ],
)
def test_the_letters_of_text(lab, wire, flag, shape):
    a, b = wire
    _, out, _ = captured(lab, b, lambda: udp(lab, a), "-Q", "in", flag, "udp", "and", "port", "53")
    assert re.search(shape, out), out


def test_text_counts_and_stops(lab, wire):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-n", "-c", "3", "-U", "ether proto 0x88b5")
    lab.send(a, [numbered(i) for i in range(10)])
    out, _ = child.communicate(timeout=10)
    assert child.returncode == 0 and len(out.splitlines()) == 3


def test_text_goes_to_stderr_where_json_is_asked_for(lab, wire, tmp_path):
    got = pktring("capture", "-r", _small(lab, wire, tmp_path), "--json", timeout_s=30)
    assert answer(got)["captured"] == 10 and got.stderr.count("0x88b5") == 10
    assert answer(got)["files"] == [] and answer(got)["written_bytes"] == 0


def test_loopback_shows_a_frame_once(lab):
    here = lab.namespace("here")
    child = started(lab, here, "capture", "-i", "lo", "-n", "udp port 5353")
    with lab.inside(here), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", ("127.0.0.1", 5353))
    _, out, _ = ended(child)
    assert len(out.splitlines()) == 1


# ---- files again ----


def test_r_filters_a_file_into_another_and_keeps_what_it_knows(lab, wire, tmp_path):
    small = _small(lab, wire, tmp_path)
    got = pktring("capture", "-r", small, "-w", tmp_path / "y", "-c", "4", "ether[21] & 1 = 1", "--json")
    assert answer(got)["captured"] == 4
    before, after = File(small), File(tmp_path / "y")
    assert [number(frame) for frame in after.frames] == [1, 3, 5, 7]
    assert after.interfaces == ["vb"]
    assert [packet.timestamp for packet in after.packets] == [packet.timestamp for packet in before.packets[1:8:2]]


@pytest.mark.needs("tcpdump")
def test_r_reads_what_tcpdump_wrote(lab, wire, tmp_path):
    a, b = wire
    # -Z root: in a user namespace there is nobody else to become.
    argv = ["tcpdump", "-Z", "root", "-i", "vb", "-U", "-w", tmp_path / "t.pcap", "-c", "5"]
    other = lab.start(b.netns, argv, stderr=subprocess.PIPE)
    other.said = ""
    hear(other, "listening")
    lab.send(a, [numbered(i) for i in range(5)])
    other.wait(10)
    got = pktring("capture", "-r", tmp_path / "t.pcap", "-w", tmp_path / "y", "--json")
    assert answer(got)["captured"] == 5 and [number(frame) for frame in File(tmp_path / "y").frames] == list(range(5))


def test_the_good_frames_of_a_damaged_file_are_kept(lab, wire, tmp_path):
    small = _small(lab, wire, tmp_path)
    whole = small.read_bytes()
    small.write_bytes(whole[: len(whole) * 2 // 3])
    for words in (["-w", tmp_path / "y"], []):
        got = pktring("capture", "-r", small, *words, timeout_s=30)
        assert got.returncode == 2 and got.stderr.splitlines()[-1].startswith("pktring: E_PCAP offset=")
    kept = [number(frame) for frame in File(tmp_path / "y").frames]
    assert kept and kept == list(range(len(kept))) and len(got.stdout.splitlines()) == len(kept)


def test_a_full_disk_leaves_a_file_that_is_whole(lab, wire, tmp_path):
    a, b = wire
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=64k t {disk} && "$@"; status=$?; cp {disk}/x {out}; exit $status'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *COMMAND, "capture", "-i", "vb", "-w", f"{disk}/x", "--json"]
    child = lab.start(b.netns, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr.readline().startswith("pktring: capturing on vb")
    lab.send(a, [numbered(i, 1000) for i in range(200)])
    said, err = child.communicate(timeout=20)
    report = json.loads(said)
    assert child.returncode == 1 and re.match(r"pktring: E_CAPTURE_SPACE file=\S+ written=\d+ frames", err.splitlines()[-1])
    assert [number(frame) for frame in File(out).frames] == list(range(report["captured"]))
    assert report["dropped_engine"] == report["reasons"]["unwritten"] > 0
    assert 30 < report["captured"] < 70


# ---- links ----


def test_an_interface_that_comes_back_is_captured_again(lab, wire, tmp_path):
    a, b = wire
    child = started(lab, b.netns, "capture", "-i", "vb", "-w", tmp_path / "x.pcapng")
    lab.send(a, [numbered(1)])
    time.sleep(0.2)
    lab.delete(b.netns, "vb")
    hear(child, "W_PORT_DOWN if=vb")
    hear(child, "E_PORT_GONE if=vb")
    lab.veth(a, b)
    hear(child, "I_PORT_UP if=vb")
    time.sleep(0.2)
    lab.send(a, [numbered(2)])
    assert ended(child)[0] == 0
    assert [number(frame) for frame in File(tmp_path / "x.pcapng").frames] == [1, 2]


# ---- what needs no capture ----


def test_D_lists_the_interfaces(lab, wire):
    got = pktring("capture", "-D", lab=lab, netns=wire[0].netns)
    assert re.fullmatch(r"1\.lo \[Up, Running, Loopback\].*\n2\.va \[Up, Running\] veth mtu 1500\n", got.stdout)
    found = answer(pktring("capture", "-D", "--json", lab=lab, netns=wire[0].netns))["interfaces"]
    assert [link["name"] for link in found] == ["lo", "va"]


@pytest.mark.needs("tcpdump")
@pytest.mark.parametrize("how", ["-d", "-dd", "-ddd"])
def test_d_prints_the_filter_as_tcpdump_does(how):
    def lines(argv):
        out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
        return [line.rstrip() for line in out.splitlines()]

    words = ["ether", "proto", "0x88b5"]
    assert lines([*COMMAND, "capture", how, *words]) == lines(["tcpdump", "-y", "EN10MB", how, *words])


def test_d_of_no_filter_lets_everything_pass():
    assert pktring("capture", "-d").stdout == "(000) ret      #262144\n"


# ---- what cannot be ----


def bad(lab, wire, tmp_path):
    (tmp_path / "garbage").write_bytes(b"this is no capture file at all, and long enough")
    (tmp_path / "empty").touch()
    file = str(tmp_path / "x")
    return [
        (["-i", "nosuch"], "E_NO_INTERFACE", 2),
        (["-i", "any"], "E_PORT", 2),
        (["-i", ""], "E_PORT", 2),
        ([], "E_USAGE", 2),
        (["-i", "vb", "-r", file], "E_USAGE", 2),
        (["-i", "vb", "-i", "vb"], "E_USAGE", 2),
        (["-i", "pcap:x"], "E_USAGE", 2),
        (["-i", "vb", "-w", file, "tcp prot 80"], "E_FILTER", 2),
        (["-i", "vb", "tcp prot 80"], "E_FILTER", 2),
        (["-i", "vb", "-f", "tcp", "udp"], "E_USAGE", 2),
        (["-i", "vb?colour=red"], "E_OPTION", 2),
        (["-i", "vb?take=maybe"], "E_OPTION", 2),
        (["-i", "vb?slots=many"], "E_OPTION", 2),
        (["-i", "vb?netns=nowhere"], "E_NO_NETNS", 2),
        (["-i", "vb", "-G", "1"], "E_USAGE", 2),
        (["-i", "vb", "-w", "-", "-C", "1"], "E_USAGE", 2),
        (["-i", "vb", "-w", file, "-W", "3"], "E_USAGE", 2),
        (["-i", "vb", "-w", file, "-C", "1", "-z", "no-such-command"], "E_USAGE", 2),
        (["-i", "vb", "-w", file, "-C", "much"], "E_USAGE", 2),
        (["-i", "vb", "-w", file, "-C", "1e9"], "E_USAGE", 2),
        (["-r", str(tmp_path / "nosuch")], "E_NO_FILE", 2),
        (["-r", str(tmp_path)], "E_NO_FILE", 2),
        (["-r", str(tmp_path / "garbage")], "E_PCAP", 2),
        (["-r", str(tmp_path / "empty")], "E_PCAP", 2),
    ]


def test_bad_input_is_one_line_and_leaves_nothing(lab, wire, tmp_path):
    cases = bad(lab, wire, tmp_path)
    before = left()
    files = sorted(tmp_path.iterdir())
    for words, code, status in cases:
        refused(pktring("capture", *words, lab=lab, netns=wire[1].netns), code, status)
    assert left() == before and sorted(tmp_path.iterdir()) == files


def test_without_the_privilege_it_says_which(lab, wire):
    prefix = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    line = refused(pktring("capture", "-i", "vb", lab=lab, netns=wire[1].netns, prefix=prefix), "E_PERM", 1)
    assert "CAP_NET_RAW" in line


def test_an_unreadable_folder_is_one_line(lab, wire, tmp_path):
    refused(pktring("capture", "-i", "vb", "-w", tmp_path / "no/such/x", lab=lab, netns=wire[1].netns), "E_NO_FILE", 2)


def test_a_full_dev_shm_is_one_line(lab, wire):
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M t /dev/shm && "$@"', "sh"]
    line = refused(pktring("capture", "-i", "vb", lab=lab, netns=wire[1].netns, prefix=prefix), "E_SHM_SPACE", 1)
    assert re.search(r"need \d+ free \d+ in /dev/shm: ", line)


def test_nothing_is_left_when_it_is_killed_and_another_runs(lab, wire, tmp_path):
    child = started(lab, wire[1].netns, "capture", "-i", "vb", "-w", tmp_path / "x")
    child.kill()
    child.wait()
    mine = {name for name in left() if f"pktring.{child.pid}-" in name}
    assert mine  # a killed process cannot clean up; the next one does
    answer(pktring("capture", "-i", "vb", "--duration", "10ms", "--json", lab=lab, netns=wire[1].netns))
    assert not mine & left()
