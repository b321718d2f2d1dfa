"""Configurations: the contract's example, what each key and table may be, and that every refusal has its line."""

import dataclasses
import os
import re

import pytest
from configurations import CPUS, EXAMPLE, PORTS, problem, problems, protocol, read, rule

from pktring.engine import config, config_keys
from pktring.engine.config import Config, ConfigError, ForwardConfig, MirrorConfig, PortConfig, ProtocolConfig
from pktring.shm.errors import Error

# ---- what is read ----


def test_the_example_of_the_contract():
    assert read(EXAMPLE) == Config(
        name="edge",
        workers=(0, 1),
        dispatch="deferred",
        ports={"left": PortConfig("left", "eth1", True, 2), "right": PortConfig("right", "eth2", True)},
        forwards=(ForwardConfig("left", "right", True, "not port 22"),),
        mirrors=(MirrorConfig("left", "pcap:left.pcapng"),),
        protocols=(ProtocolConfig("ip", "mypackage.mymodule:handler", "flow", 1),),
        sysctl={"net.isr.defaultqlimit": 512},
        metrics=config.MetricsConfig("127.0.0.1:9469"),
    )


def test_a_file_and_a_dict_of_its_shape_are_the_same(tmp_path):
    import tomllib

    (tmp_path / "edge.toml").write_text(EXAMPLE)
    loaded = config.load(tmp_path / "edge.toml", cpus=CPUS)
    assert loaded == config.from_dict(tomllib.loads(EXAMPLE), cpus=CPUS) == read(EXAMPLE)
    assert loaded.path == str(tmp_path / "edge.toml") and not loaded.warnings


def test_nothing_said_is_the_defaults():
    assert read("") == config.from_dict({}) == Config()
    table = {key.field or key.name: key.default for key in config_keys.TABLES["engine"]}
    assert {name: getattr(Config(), name) for name in table} == table
    for cls, name in ((ForwardConfig, "forward"), (MirrorConfig, "mirror"), (ProtocolConfig, "protocol")):
        fields = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        table = {key.field or key.name: key.default for key in config_keys.TABLES[name]}
        assert fields.items() <= table.items()


def test_a_byte_order_mark_and_carriage_returns_are_fine():
    assert read("\ufeff" + EXAMPLE.replace("\n", "\r\n")) == read(EXAMPLE)


# ---- ports ----


def port(body):
    return read(f"[port.x]\n{body}\n").ports["x"]


@pytest.mark.parametrize(
    "body, full, text",
    [
        ('interface = "eth1"', "eth1", "eth1"),
        ('interface = "eth1"\nrings = 2', "eth1?queues=2", "eth1"),
        ('interface = "br-lan"\ntake = true', "br-lan?take=1", "br-lan"),
        ('port = "tap:tap0"', "tap:tap0", "tap:tap0"),
        ('port = "eth1?take=0&queues=3&netns=blue"', "eth1?queues=3&take=0&netns=blue", "eth1?netns=blue"),
        ('port = "eth1"\noptions = { slots = 512, promisc = false, netns = "a b&c" }', *["eth1?slots=512&promisc=0&netns=a%20b%26c"] * 2),
        ('port = "netmap:eth0-2/r@1"', *["netmap:eth0-2/r@1"] * 2),
    ],
)
def test_a_port_has_a_full_name(body, full, text):
    assert (port(body).port, port(body).text) == (full, text)


def test_a_full_name_means_the_same_port():
    for body in ('port = "eth1?take=0&queues=3&netns=a%20b%26c"', 'interface = "eth1"\nrings = 5\ntake = true'):
        one = port(body)
        other = port(f'port = "{one.port}"')
        assert dataclasses.replace(other, interface=one.interface) == one


@pytest.mark.parametrize(
    "body, line, words",
    [
        ("", 1, ["interface", "port"]),
        ('interface = "eth1"\nport = "eth2"', 1, ["one of interface and port"]),
        ('port = "?take=1"', 1, ["one of interface and port"]),
        ('interface = "eth1?take=1"', 2, ["name of an interface"]),
        ('interface = "an-interface-too-long"', 2, ["name of an interface"]),
        ('interface = "eth1"\nrings = 0', 3, ["[port.x] rings", "1 to 64"]),
        ('interface = "eth1"\nrings = true', 3, ["true is not a whole number"]),
        ('interface = "eth1"\nrings = "2"', 3, ["'2' is not a whole number"]),
        ('interface = "eth1"\ntake = 1', 3, ["neither true nor false"]),
        ('interface = "eth1"\nring = 2', 3, ["no such key", "did you mean rings?"]),
        ('interface = "eth1"\nslots = 2', 3, ["no such key", "options = {"]),
        ('port = "eth1?queues=2"\nrings = 2', 2, ["queues is said twice"]),
        ('port = "eth1?queues=99"', 2, ["queues=99", "1 to 64"]),
        ('port = "eth1?take=yes"', 2, ["take=yes"]),
        ('port = "eth1?a%20b=1"', 2, ["'a b' is not a key"]),
        ('port = "eth1"\noptions = { take = true }', 3, ["a key of its own: take"]),
        ('port = "eth1"\noptions = { slots = [1] }', 3, ["slots is neither text"]),
        ('port = "eth1"\noptions = 5', 3, ["5 is not a table"]),
        ('port = "eth\\u0007"', 2, ["text of one line"]),
    ],
)
def test_a_port_that_cannot_be(body, line, words):
    problem(f"[port.x]\n{body}\n", line, *words)


def test_a_port_asked_for_in_the_wrong_shape():
    problem('[port]\ninterface = "eth1"', 2, "[port.NAME]")
    problem('[[port]]\ninterface = "eth1"', 1, "write [port.NAME]")
    problem('[port."a b"]\ninterface = "eth1"', 1, "'a b' is not a name")


def test_one_device_is_one_port():
    problem(PORTS + '[port.c]\nport = "eth1?promisc=0"', 5, "eth1 is [port.a] already")
    assert len(read(PORTS + '[port.c]\nport = "eth1?netns=blue"\n[port.d]\nport = "null:"\n[port.e]\nport = "null:"').ports) == 5


def test_ports_are_asked_about_by_their_full_names():
    asked = []

    def check(name):
        asked.append(name)
        if "eth2" in name:
            raise Error("E_OPTION", "unknown key 'slot' for af_packet: did you mean 'slots'?")

    with pytest.raises(ConfigError, match=r"\[port.b\] port: unknown key 'slot'"):
        config.from_dict({"port": {"a": {"interface": "eth1"}, "b": {"port": "eth2?slot=1"}}}, check_port=check)
    assert asked == ["eth1", "eth2?slot=1"]


# ---- rules ----


@pytest.mark.parametrize(
    "body, line, words",
    [
        ('from = "a"', 5, ["[[forward]] 1 to", "missing"]),
        ('from = "a"\nto = "B"', 7, ["no [port.B]", "a, b"]),
        ('from = "aa"\nto = "b"', 6, ["no [port.aa]", "did you mean a?"]),
        ('from = "a"\nto = "a"', 7, ["get back what it received"]),
        ('from = "a"\nto = "a"\nboth = true', 7, ["get back what it received"]),
        ('from = "a"\nto = "b"\nfilter = "not prot 22"', 8, ["bad filter 'not prot 22'", "pcap-filter(7)"]),
        ('from = "a"\nto = "b"\nfilter = 22', 8, ["22 is not text"]),
        ('from = "a"\nto = "b"\nboth = "yes"', 8, ["neither true nor false"]),
        ('from = "a"\nto = "b"\nForm = "a"', 8, ["no such key", "did you mean from?"]),
        ('from = ["a"]\nto = "b"', 6, ["a list is not a name"]),
    ],
)
def test_a_forward_that_cannot_be(body, line, words):
    said = problems(rule(body))
    assert said[0].startswith(f"edge.toml line {line}:") and all(word in said[0] for word in words), said


def test_an_array_written_as_a_table():
    problem(f'{PORTS}[forward]\nfrom = "a"\nto = "b"', 5, "write [[forward]]")


def test_both_ways_and_the_way_back_is_said_twice():
    text = rule('from = "a"\nto = "b"\nboth = true') + '[[forward]]\nfrom = "b"\nto = "a"\n'
    problem(text, 9, "[[forward]] 2", "from b to a was said before")
    assert len(read(text.replace('to = "a"', 'to = "a"\nfilter = "arp"')).forwards) == 2


def test_a_rule_that_no_frame_comes_to_is_a_warning():
    found = read(rule('from = "a"\nto = "b"') + '[[forward]]\nfrom = "a"\nto = "b"\nfilter = "arp"\n')
    assert not read(rule('from = "a"\nto = "b"\nfilter = "arp"') + '[[forward]]\nfrom = "a"\nto = "b"\n').warnings
    assert found.warnings == ("W_RULE [[forward]] 2: no frame from a comes so far: all of them go to b before",)


@pytest.mark.parametrize(
    "body, line, words",
    [
        ('from = "a"\nto = "a"', 7, ["copies of its own frames"]),
        ('from = "a"\nto = "bb"', 7, ["no [port] 'bb'", "did you mean b?", "pcap:FILE"]),
        ('from = "a"\nto = "eth2?slots=4"', 7, ["is [port.b]: write to = 'b'"]),
        ('from = "a"\nto = ""', 7, ["no [port] ''"]),
        ('from = "a"\nto = "b"\ndirection = "both"', 8, ["none of in, out, inout"]),
        ('from = "c"\nto = "pcap:x"', 6, ["no [port.c]"]),
    ],
)
def test_a_mirror_that_cannot_be(body, line, words):
    problem(rule(body, "mirror"), line, *words)


def test_a_mirror_to_the_device_of_a_port_is_told_its_name():
    problem(
        '[port.t]\nport = "tap:t0"\n[port.a]\ninterface = "a"\n[[mirror]]\nfrom = "a"\nto = "tap:t0?mtu=9000"', 7, "[port.t]", "to = 't'"
    )


def test_a_mirror_said_twice():
    problem(rule('from = "a"\nto = "b"', "mirror") + '[[mirror]]\nfrom = "a"\nto = "b"', 8, "[[mirror]] 2", "copied twice")


def test_more_rules_than_a_worker_holds():
    many = "".join(f'[[forward]]\nfrom = "a"\nto = "b"\nfilter = "port {n}"\n' for n in range(1, 18))
    problem(PORTS + many, 1, "17 forwards", "16")
    assert len(read(PORTS + many.replace('[[forward]]\nfrom = "a"\nto = "b"\nfilter = "port 17"\n', "")).forwards) == 16


def test_more_ports_than_a_worker_holds():
    ports = [f'[port.p{n}]\ninterface = "eth{n}"\n' for n in range(65)]
    problem("".join(ports), 1, "65 of them, 64")
    assert len(read("".join(ports[:64])).ports) == 64


# ---- protocols ----


@pytest.mark.parametrize(
    "name, proto", [("ip", 1), ("igmp", 2), ("route", 3), ("arp", 4), ("ether", 5), ("ipv6", 6), ("ip6", 6), ("epair", 8)]
)
def test_N_K1_protocols_have_their_numbers(name, proto):
    assert read(protocol("", name)).protocols[0].proto == proto
    assert read(protocol("proto = 15", name)).protocols[0].proto == 15


@pytest.mark.parametrize(
    "text, line, words",
    [
        (protocol("", "mine"), 2, ["mine has no number of its own", "0 to 15"]),
        (protocol("proto = 16"), 5, ["0 to 15"]),
        (protocol("", "my ip"), 2, ["without a space"]),
        (protocol("", "x" * 32), 2, ["1 to 31 characters"]),
        (protocol("", handler="f"), 3, ["module:function", "forward:PORT"]),
        (protocol("", handler="m:<lambda>"), 3, ["module:function"]),
        (protocol("", handler="m:f.<locals>.g"), 3, ["module:function"]),
        (protocol("", handler="a-b:f"), 3, ["module:function"]),
        (protocol("", handler=":f"), 3, ["module:function"]),
        (protocol("", policy="rss"), 4, ["none of source, flow, cpu"]),
        (protocol("", policy="cpu"), 4, ["needs m2cpuid"]),
        (protocol('m2cpuid = "m:c"'), 5, ["m2cpuid is for policy cpu"]),
        (protocol('m2flow = "m:c"', policy="source"), 5, ["m2flow is for policy flow"]),
        (protocol('m2flow = "m"'), 5, ["module:function"]),
        (protocol('dispatch = "fast"'), 5, ["none of default, deferred, hybrid, direct"]),
        (protocol("qlimit = -1"), 5, ["0 to 65536"]),
        ('[[protocol]]\nname = "ip"\nhandler = "drop"\n', 1, ["policy: missing"]),
    ],
)
def test_a_protocol_that_cannot_be(text, line, words):
    problem(text, line, *words)


@pytest.mark.parametrize(
    "handler", ["m:f", "a.b:C.f", "so:/lib/x.so:f", "so:./a b:c:f", "forward:a", "mirror", "mirror:b", "drop", "count"]
)
def test_a_handler_that_can_be(handler):
    assert read(PORTS + protocol("", handler=handler)).protocols[0].handler == handler


@pytest.mark.parametrize("handler", ["forward", "forward:", "mirror:", "drop:a", "count:a", "so:x", "so::f", "so:/x:1f", "so:/x:", ""])
def test_a_handler_that_cannot_be(handler):
    problem(PORTS + protocol("", handler=handler), 7, "[[protocol]] 1 handler", '"forward:PORT"')


@pytest.mark.parametrize("handler", ["forward:aa", "mirror:aa"])
def test_a_handler_to_a_port_that_is_not_there(handler):
    problem(PORTS + protocol("", handler=handler), 7, "no [port.aa]: did you mean a?")


def test_the_built_in_handlers_are_the_engines():
    from pktring.engine import handlers

    assert config_keys.BUILT_IN == handlers.BUILTINS


def test_N_R8_drainedcpu_goes_with_any_policy():
    for policy, more in (("source", ""), ("flow", 'm2flow = "m:f"'), ("cpu", 'm2cpuid = "m:c"')):
        assert read(protocol(f'drainedcpu = "m:d"\n{more}', policy=policy)).protocols[0].drainedcpu == "m:d"


def test_one_name_one_number_one_handler():
    problem(protocol("proto = 9") + protocol("proto = 10"), 6, "[[protocol]] 2", "ip is number 9")
    problem(protocol("") + protocol("proto = 1", "mine"), 6, "mine (number 1)", "ip is number 1")


def test_handlers_are_asked_about_and_may_fail_in_any_way():
    def check(name):
        raise {"m:f": ImportError("no\nm"), "m:c": Error("E_HANDLER", "m:c: not callable: name a function")}[name]

    with pytest.raises(ConfigError) as e:
        config.from_dict({"protocol": [{"name": "ip", "handler": "m:f", "policy": "cpu", "m2cpuid": "m:c"}]}, check_handler=check)
    assert len(e.value.problems) == 2 and "ImportError: no m" in e.value.problems[0] and "not callable" in e.value.problems[1]
    assert (
        config.from_dict({"protocol": [{"name": "ip", "handler": "drop", "policy": "flow"}]}, check_handler=check).protocols[0].handler
        == "drop"
    )


# ---- [engine] ----


@pytest.mark.parametrize(
    "line, words",
    [
        ('name = "a/b"', ["[engine] name", "31 letters"]),
        ('name = ""', ["31 letters"]),
        ("workers = 0", ["0 is neither a list of CPUs"]),
        ("workers = true", ["true is neither"]),
        ('workers = "all"', ["'all' is neither", '"auto"']),
        ("workers = []", ["0 CPUs: name 1 to 64"]),
        ("workers = [0, 0]", ["CPU 0 is named twice"]),
        ("workers = [0, -1]", ["-1 is not a whole number"]),
        ("workers = [0, true]", ["true is not a whole number"]),
        ('dispatch = "default"', ["none of deferred, hybrid, direct"]),
        ("strict_affinity = 1", ["neither true nor false"]),
        ("orphan_timeout_s = 0", ["0 is not a time"]),
        ("orphan_timeout_s = nan", ["nan is not a time"]),
        ("orphan_timeout_s = true", ["true is not a time"]),
        ("burst = 65", ["1 to 64"]),
        ("burst = 1e3", ["1000.0 is not a whole number"]),
        ("slots = 1", ["2 to 65536"]),
        ("buffer_size = 2080", ["2080 is not a multiple of 64"]),
        ("buffer_size = 70000", ["512 to 65536"]),
        ('group = "a b"', ["name of a group"]),
        ("orphan_timeout = 5", ["no such key", "orphan_timeout_s"]),
    ],
)
def test_a_key_of_the_engine_that_cannot_be(line, words):
    problem(f"\n[engine]\n\n{line} # x\n", 4, *words)


def test_a_region_takes_the_sizes_that_are_let_through():
    from pktring.shm import _shm

    for size, slots in ((512, 2), (65536, 64), (2048, 1 << 16)):
        found = read(f"[engine]\nbuffer_size = {size}\nslots = {slots}")
        assert _shm.carve(4, 1, found.slots, found.slots + 2, found.stride)["buf_stride"] == size


@pytest.mark.parametrize(
    "text, near", [("[engin]\nname = 'a'", "engine"), ("[ports.x]\n", "port"), ("[[forwards]]", "forward"), ("zzz = 1", "engine, ")]
)
def test_an_unknown_table(text, near):
    problem(text, 1, "no such table", near)


def test_a_table_that_is_none():
    problem("engine = 5\n", 1, "5 is not a table: write [engine]")
    problem("forward = [1]\n", 1, "write [[forward]]")
    problem("sysctl = []\n", 1, "write [sysctl]")


def test_all_problems_are_told_at_once_in_order_of_lines():
    text = EXAMPLE
    for right, wrong in (
        ("workers =", "wrokers ="),
        ("rings = 2", "rings = 0"),
        ('to = "right"', 'to = "rihgt"'),
        ("[metrics]", "[metric]"),
    ):
        text = text.replace(right, wrong)
    said = problems(text)
    assert [int(re.search(r"line (\d+)", line)[1]) for line in said] == [3, 7, 12, 24]
    with pytest.raises(ConfigError, match=r"^E_CONFIG edge.toml line 3: .* \(and 3 more\)$"):
        read(text)


def test_problems_beyond_twenty_are_counted():
    with pytest.raises(ConfigError) as e:
        read("[engine]\n" + "".join(f"k{n} = 1\n" for n in range(30)))
    assert len(e.value.problems) == 21 and e.value.problems[-1] == "edge.toml: 10 more"


def test_a_dict_has_no_lines_but_says_where():
    with pytest.raises(ConfigError, match=r"^E_CONFIG config: \[\[forward\]\] 1 to: no \[port.b\]: did you|there") as e:
        config.from_dict({"port": {"a": {"interface": "x"}}, "forward": [{"from": "a", "to": "b"}]})
    assert len(e.value.problems) == 1
    for nonsense in (
        [],
        None,
        "x",
        {1: 2},
        {"engine": {1: 2}},
        {"port": {3: {}}},
        {"sysctl": {4: 5}},
        {"port": {"a": {"interface": b"x"}}},
    ):
        with pytest.raises(ConfigError, match="^E_CONFIG config: "):
            config.from_dict(nonsense)


# ---- [sysctl] ----


def test_knobs_may_be_written_with_quotes_or_without():
    a = read('[sysctl]\n"net.isr.maxqlimit" = 5000\n"net.link.epair.netisr_maxqlen" = "1k"')
    b = read("[sysctl]\nnet.isr.maxqlimit = 5000\nnet.link.epair.netisr_maxqlen = 1000")
    assert a == b and a.sysctl == {"net.isr.maxqlimit": 5000, "net.link.epair.netisr_maxqlen": 1000}


@pytest.mark.parametrize(
    "line, words",
    [
        ('"net.isr.maxqlimt" = 1', ["did you mean net.isr.maxqlimit?", "ENOENT"]),
        ('"net.isr.maxprot" = 1', ["read only", "EPERM"]),
        ('"net.isr.work" = 1', ["a table", "EINVAL"]),
        ('"net.isr.dispatch" = "default"', ["EINVAL"]),
        ('"net.isr.maxqlimit" = 1.5', ["neither a number nor text"]),
        ('"net.isr.maxqlimit" = [1]', ["neither a number nor text"]),
        ('"dev.netmap.verbose" = 1', ["EOPNOTSUPP"]),
        ('"net.pktqueue.foo.maxlen" = 1', ["ENOENT"]),
        ('"net.pktqueue.rps_hash" = "rss"', ["ENOENT"]),
        ("net.isr.maxqlimit = 1\n'net.isr.maxqlimit' = 1", ["said twice"]),
    ],
)
def test_a_knob_that_cannot_be_set(line, words):
    problem(f"[sysctl]\n{line}", 2 + line.count("\n"), "[sysctl]", *words)


def test_more_knobs_than_there_can_be():
    with pytest.raises(ConfigError, match=r"edge.toml line 1: \[sysctl\] 300 knobs, 256 are the most: "):
        read("[sysctl]\n" + "".join(f"net.pktqueue.q{n}.maxlen = 1\n" for n in range(300)))


def test_queues_are_those_of_the_protocols():
    text = protocol("proto = 0", "mine") + '[sysctl]\n"net.pktqueue.mine.maxlen" = 9\n"net.pktqueue.epair.maxlen" = 9\n'
    assert read(text).sysctl == {"net.pktqueue.mine.maxlen": 9, "net.pktqueue.epair.maxlen": 9}


def test_dispatch_may_be_said_in_either_place_but_once():
    assert read('[sysctl]\nnet.isr.dispatch = "hybrid"') == read('[engine]\ndispatch = "hybrid"')
    problem('[engine]\ndispatch = "direct"\n[sysctl]\nnet.isr.dispatch = "hybrid"', 4, "'direct' in [engine]")
    assert read('[engine]\ndispatch = "hybrid"').boot(CPUS)["net.isr.dispatch"] == "hybrid"


def test_what_is_forced_at_boot_is_a_warning():
    assert read('[sysctl]\n"net.isr.maxthreads" = 9').warnings == ("net.isr.maxthreads: forced from 9 to 2",)


# ---- CPUs ----


@pytest.mark.parametrize(
    "text, cpus",
    [
        ("", (2, 5, 7)),
        ('workers = "auto"', (2, 5, 7)),
        ("workers = 2", (2, 5)),
        ("workers = 4", (2, 5, 7, 2)),
        ("workers = [7, 2]", (7, 2)),
        ("workers = [7, 99]", (7, 99)),
    ],
)
def test_where_workers_run(text, cpus):
    assert config.from_text(f"[engine]\n{text}", cpus={7, 2, 5}).worker_cpus({7, 2, 5}) == cpus


@pytest.mark.parametrize("said, cpus", [(-1, (2, 5, 7)), (0, (2,)), (2, (2, 5)), (9, (2, 5, 7))])
def test_N_S1_workers_are_made_for_cpus_in_order_until_maxthreads(said, cpus):
    assert config.from_dict({"sysctl": {"net.isr.maxthreads": said}}).worker_cpus({2, 5, 7}) == cpus


@pytest.mark.parametrize("workers", ["[0, 7]", "3"])
def test_F23_a_cpu_that_is_not_there_is_a_warning_unless_strict(workers):
    text = f"[engine]\nworkers = {workers}\n"
    (line,) = read(text).warnings
    assert line.startswith("W_AFFINITY ") and "this process may use 0, 1" in line
    problem(text + "strict_affinity = true", 2, "strict_affinity")


def test_the_machines_own_cpus_are_those_of_this_process():
    assert config.from_dict({}).worker_cpus() == tuple(sorted(os.sched_getaffinity(0)))
    assert Config().maxthreads == len(os.sched_getaffinity(0)) and Config().bindthreads


# ---- [metrics] ----


@pytest.mark.parametrize("listen", ["127.0.0.1:9469", "[::1]:80", "localhost:0", ""])
def test_an_address_for_prometheus(listen):
    assert read(f'[metrics]\nlisten = "{listen}"').metrics.listen == listen


@pytest.mark.parametrize("listen", ["9469", ":9469", "::1:80", "host:", "host:99999", "host:x", "a b:1"])
def test_what_is_no_address(listen):
    problem(f'[metrics]\nlisten = "{listen}"', 2, "is not an address")
