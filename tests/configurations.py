"""What the tests of configurations share: the contract's example, pieces of TOML, and what is said against a text."""

import re

import pytest

from pktring.engine import config
from pktring.engine.config import ConfigError

CPUS = {0, 1}
EXAMPLE = """\
[engine]
name = "edge"
workers = [0, 1]
dispatch = "deferred"
[port.left]
interface = "eth1"
rings = 2
[port.right]
interface = "eth2"
[[forward]]
from = "left"
to = "right"
both = true
filter = "not port 22"
[[mirror]]
from = "left"
to = "pcap:left.pcapng"
[[protocol]]
name = "ip"
handler = "mypackage.mymodule:handler"
policy = "flow"
[sysctl]
"net.isr.defaultqlimit" = 512
[metrics]
listen = "127.0.0.1:9469"
"""
PORTS = '[port.a]\ninterface = "eth1"\n[port.b]\ninterface = "eth2"\n'


def read(text, **how):
    return config.from_text(text, "edge.toml", cpus=CPUS, **how)


def problems(text, source="edge.toml"):
    """Everything that is said against a text, a line each; each says where, what is wrong, and what to do."""
    with pytest.raises(ConfigError) as e:
        config.from_text(text, source, cpus=CPUS)
    assert e.value.code == "E_CONFIG" and str(e.value).startswith(f"E_CONFIG {e.value.problems[0]}")
    for line in e.value.problems:
        assert re.match(rf"{source} line \d+(, column \d+)?: .*: ", line) and "\n" not in line and len(line) < 600, line
    return e.value.problems


def problem(text, line, *words):
    """Assert that there is one problem, on this line, and that it says these words."""
    (said,) = problems(text)
    assert said.startswith(f"edge.toml line {line}") and all(word in said for word in words), said


def rule(body, array="forward"):
    return f"{PORTS}[[{array}]]\n{body}\n"


def protocol(body, name="ip", handler="m:f", policy="flow"):
    return f'[[protocol]]\nname = "{name}"\nhandler = "{handler}"\npolicy = "{policy}"\n{body}\n'
