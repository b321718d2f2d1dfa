"""Configurations as text: lines, files, sizes, what is written back, what a reload changes, and that no input does anything worse."""

import os
import random
import re
import time
from pathlib import Path

import pytest
from configurations import CPUS, EXAMPLE, PORTS, problems, protocol, read, rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pktring.engine import config, config_keys
from pktring.engine.config import Config, ConfigError
from pktring.shm.errors import Error

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))


# ---- lines ----


@pytest.mark.parametrize(
    "text, line",
    [
        ("# x\n\n[engine]\nburst = [\n  1,\n]\nx=1", 4),
        ('[metrics]\nlisten = """a\n[engine]\nburst = 0\n"""\n[engine]\nburst = 0', 2),
        ("[metrics]\nlisten = '''\n\n'''\n", 2),
        ('[engine]\nname = "a#b"\nburst = 0', 2),
        ("engine.burst = 0", 1),
        ("\nengine = { name = 'a', burst = 0 }", 2),
        ("[engine]\n'burst' = 0 # burst", 2),
        ('[port.a]\ninterface="a"\n[port.b]\ninterface="b"\n[[forward]]\nfrom="a"\nto="b"\n[[forward]]\nfrom="a"\nto="z"', 10),
        ('port.a.interface = "a"\nforward = [\n{ from = "z", to = "a" }\n ]', 2),
    ],
)
def test_the_line_of_a_problem(text, line):
    assert problems(text)[0].startswith(f"edge.toml line {line}: ")


# ---- files ----


def test_F25_bytes_that_are_no_text(tmp_path):
    for data, line, word in (
        (b"\n\nx = '\xff'", 3, "0xff is not UTF-8"),
        (b"a = 1\n\0", 2, "NUL"),
        (b"\x7fELF\0", 1, "NUL"),
        (b"\xfe\xff", 1, "UTF-8"),
    ):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ConfigError, match=f"x line {line}: .*{word}"):
            config.load(tmp_path / "x")


def test_F25_a_file_has_a_size(tmp_path):
    path = tmp_path / "x"
    path.write_text("#" * (1 << 20))
    assert config.load(path) == Config()
    path.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        config.load(path)


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(ConfigError, match="not a regular file"):
            config.load(tmp_path / name)
    for name in (tmp_path / "none", "a\0b", "/dev/null/x"):
        with pytest.raises(Error) as e:
            config.load(name)
        assert e.value.code == "E_NO_FILE" and ": " in e.value.text


@pytest.mark.parametrize(
    "text",
    [
        "a =",
        "x = [1",
        "[engine]\nname = 1\n[engine]",
        "x = " + "[" * 50000,
        "x = 1" + "0" * 5000,
        "x = 2024-99-99",
        '"\\ud800" = 1',
        ".".join(["a"] * 300_000) + " = 1",
        ".".join(['"a"'] * 200_000) + " = 1",
        "[" + " . ".join(["a"] * 200_000) + "]",
        "a" * 1_000_000,
        '"' * 1_000_000,
        "x = {" * 20000,
        "a.b = 1\n" * 100_000,
    ],
    ids=lambda text: f"{text[:12]!r}{len(text)}",
)
@pytest.mark.timeout(60)
def test_F25_what_is_no_toml_is_one_line_soon(text):
    began = time.monotonic()
    with pytest.raises(ConfigError) as e:
        read(text)
    assert time.monotonic() - began < 20 and len(e.value.problems) == 1 and len(str(e.value)) < 400 and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "[engine]\n" + "".join(f"k{n} = 1\n" for n in range(30_000)),
        "".join(f"[t{n}]\n" for n in range(30_000)),
        "".join(f"[port.p{n}]\ninterface = 'e{n}'\n" for n in range(7_000)),
        PORTS + "".join(f"[[forward]]\nfrom = 'a'\nto = 'b'\nfilter = 'port {n}'\n" for n in range(5_000)),
        PORTS + "".join(f"[[mirror]]\nfrom = 'a'\nto = 'pcap:{n}'\n" for n in range(6_000)),
        "".join(f"[[protocol]]\nname = 'a{n}'\nhandler = 'drop'\npolicy = 'flow'\nproto = 1\n" for n in range(4_000)),
        "[sysctl]\n" + "".join(f"net.isr.x{n} = 1\n" for n in range(20_000)),
        "[engine]\nworkers = [" + "1," * 150_000 + "]\n",
        "[engine]\nwrokers = [" + "1," * 150_000 + "]\n",
        '[engine]\nname = """' + '\\"a\n' * 200_000 + '"""\n',
    ],
    ids=["keys", "tables", "ports", "forwards", "mirrors", "protocols", "knobs", "numbers", "unknown", "string"],
)
@pytest.mark.timeout(60)
def test_F25_far_too_much_is_refused_soon(text):
    began = time.monotonic()
    with pytest.raises(ConfigError) as e:
        read(text)
    assert time.monotonic() - began < 20 and len(e.value.problems) <= 21


# ---- writing ----


def test_a_configuration_is_written_and_read_back():
    for text in ("", EXAMPLE, PORTS + '[port.c]\nport = "pcap:a b.pcapng?x=1"\ntake = false\noptions = { netns = "\u00e9\\"\\\\" }'):
        found = read(text)
        assert read(config.render(found)) == found


def test_what_is_written_explains_every_key():
    for text in (config.render(Config()), config.render(read(EXAMPLE))):
        assert all(key.text in text for table, keys in config_keys.TABLES.items() for key in keys if (table, key.name) != ("port", "port"))


# ---- reload ----


def changed(old, new):
    return config.difference(read(old), read(new))


def test_nothing_changed():
    assert not changed(EXAMPLE, EXAMPLE) and not changed("", "# comment\n[engine]\nburst = 64")


def test_ports_come_go_and_change():
    change = changed(PORTS, '[port.b]\ninterface = "eth2"\nrings = 2\n[port.c]\ninterface = "eth1"')
    assert change and (change.ports_added, change.ports_removed, change.ports_changed) == (("c",), ("a",), ("b",))
    assert not change.forwards and not change.metrics


def test_rules_change():
    assert changed(PORTS, rule('from = "a"\nto = "b"')).forwards
    assert changed(PORTS, rule('from = "a"\nto = "b"', "mirror")).mirrors
    one, two = '[[forward]]\nfrom = "a"\nto = "b"\nfilter = "arp"\n', '[[forward]]\nfrom = "a"\nto = "b"\nfilter = "ip"\n'
    assert changed(PORTS + one + two, PORTS + two + one).forwards  # their order counts


def test_protocols_come_go_and_change():
    change = changed(protocol("") + protocol("", "arp"), protocol("qlimit = 5") + protocol("", "igmp"))
    assert (change.protocols_added, change.protocols_removed, change.protocols_changed) == (("igmp",), ("arp",), ("ip",))


def test_knobs_change_and_go_back_to_the_default():
    knobs = ("net.link.epair.netisr_maxqlen", "net.pktqueue.ip.maxlen", "net.pktqueue.arp.maxlen", "net.pktqueue.epair.maxlen")
    old = "".join(f"{name} = 5\n" for name in (*knobs, "dev.pktring.workers"))
    new = protocol("qlimit = 77") + "[sysctl]\nnet.pktqueue.epair.maxlen = 6\n"
    assert changed(protocol("qlimit = 77") + "[sysctl]\n" + old, new).sysctl == (
        ("net.link.epair.netisr_maxqlen", 2100),
        ("net.pktqueue.ip.maxlen", 77),
        ("net.pktqueue.arp.maxlen", 256),
        ("net.pktqueue.epair.maxlen", 6),
        ("dev.pktring.workers", len(os.sched_getaffinity(0))),
    )
    back = changed("[sysctl]\nnet.pktqueue.epair.maxlen = 6", "[sysctl]\nnet.link.epair.netisr_maxqlen = 50")
    assert ("net.pktqueue.epair.maxlen", 50) in back.sysctl


def test_what_of_the_engine_changes_live():
    change = changed("", '[engine]\ndispatch = "hybrid"\norphan_timeout_s = 5')
    assert change.engine == ("dispatch", "orphan_timeout_s") and change.sysctl == (("net.isr.dispatch", "hybrid"),)
    assert changed("", '[metrics]\nlisten = "h:1"').metrics


@pytest.mark.parametrize(
    "line, key",
    [
        ("[engine]\nname = 'b'", "[engine] name"),
        ("[engine]\nworkers = 1", "[engine] workers"),
        ("[engine]\nslots = 512", "[engine] slots"),
        ("[engine]\nbuffer_size = 4096", "[engine] buffer_size"),
        ("[engine]\ngroup = ''", "[engine] group"),
        ("[sysctl]\nnet.isr.maxqlimit = 5000", "[sysctl] net.isr.maxqlimit"),
    ],
)
def test_what_only_a_restart_changes(line, key):
    for old, new in (("", line), (line, "")):
        with pytest.raises(ConfigError) as e:
            changed(old, new)
        assert e.value.problems == (f"edge.toml: {key}: cannot change while the engine runs: restart it",)


# ---- fuzz ----

WORDS = st.sampled_from(
    [*config_keys.EVERY, *{key.name for keys in config_keys.TABLES.values() for key in keys}, "left", "net.isr.dispatch", "net"]
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS, st.binary(max_size=4), st.dates())
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4), max_leaves=12
)
SHAPES = st.dictionaries(st.sampled_from(config_keys.EVERY) | st.text(max_size=5), VALUES, max_size=5)


def survives(act, *args):
    """A configuration, which can be written and read back; or an Error of one line. Nothing else is raised."""
    try:
        found = act(*args, cpus=CPUS)
    except ConfigError as e:
        assert all("\n" not in line and len(line) <= 500 for line in e.problems)
    else:
        assert config.from_text(config.render(found), cpus=CPUS) == found
        assert not config.difference(found, found)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(SHAPES)
def test_F25_any_dict_is_read_or_refused(shape):
    survives(config.from_dict, shape)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_F25_any_text_is_read_or_refused(text):
    survives(config.from_text, text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_F25_any_file_is_read_or_refused(data):
    path = Path(f"/dev/shm/pktring-config-{os.getpid()}")
    try:
        path.write_bytes(data)
        survives(config.load, path)
    finally:
        path.unlink()


def test_F25_a_valid_file_damaged_anywhere_is_read_or_refused():
    source = EXAMPLE + "[[protocol]]\nname = 'arp'\nhandler = 'drop'\npolicy = 'source'\n"
    pieces = [
        *re.findall(r"\S+|\n", source),
        '"""',
        "'''",
        "[",
        "]",
        "{",
        "}",
        "=",
        ".",
        "\\u0000",
        "1e999",
        "-0",
        "\ufeff",
        "0x",
        "''",
        "\r",
    ]
    dice = random.Random(1)
    until = time.monotonic() + FUZZ_S
    while time.monotonic() < until:
        text = source
        for _ in range(dice.randint(1, 4)):
            at, end = sorted((dice.randrange(len(text) + 1), min(len(text), dice.randrange(len(text) + 1))))
            text = (
                text[:at] + dice.choice([dice.choice(pieces), "", chr(dice.randrange(0x300))]) + text[min(end, at + dice.randint(0, 9)) :]
            )
        survives(config.from_text, text)
