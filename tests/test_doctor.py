"""`pktring doctor`: every check says what it found, and how to mend it; nothing is changed by looking."""

import re
import socket
from dataclasses import replace

import pytest
from command import answer, left, pktring
from lab import Lab, can_unshare, unshared

from pktring.drivers import ethtool
from pktring.drivers.link import LinkFacts
from pktring.tools import doctor, probes

CONTRACT = {
    *("privileges", "user_namespaces", "af_packet", "tpacket_v3", "taking", "tap", "af_xdp", "af_xdp_receive", "af_xdp_native"),
    *("af_xdp_zero_copy", "shm_space", "hugepages", "memlock", "cpu_isolation", "kernel"),
}
UNPRIVILEGED = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
LINK = LinkFacts(
    ifindex=7,
    name="eth7",
    kind="",
    driver="ixgbe",
    mtu=1500,
    mac=bytes(6),
    up=True,
    carrier=True,
    arp_type=1,
    n_rx_queues=1,
    n_tx_queues=1,
    peer=None,
    peer_netnsid=None,
    gso_max_size=65536,
    offloads=dict.fromkeys(ethtool.OFFLOADS, False),
    default_route=False,
)


def checks(got):
    return {check["name"]: check for check in answer(got)["checks"]}


def test_everything_in_the_contract_is_looked_at():
    found = answer(pktring("doctor", "--json"))["checks"]
    assert CONTRACT <= {check["name"] for check in found}
    assert all({"name", "ok", "detail", "fix"} <= set(check) for check in found)
    assert all(check["detail"] and (check["ok"] or check["fix"]) for check in found)
    for _, name in socket.if_nameindex():
        assert {f"offloads {name}", f"take {name}"} <= {check["name"] for check in found}


def test_a_person_reads_a_line_a_check():
    got = pktring("doctor")
    assert got.returncode == 0 and not got.stderr
    assert all(re.match(r"(ok|note|MISSING) +\S|  +fix: \S", line) for line in got.stdout.splitlines())


def test_looking_changes_nothing():
    before = left(), socket.if_nameindex()
    pktring("doctor")
    assert (left(), socket.if_nameindex()) == before


@pytest.mark.needs("root")
def test_root_finds_what_it_needs():
    found = checks(pktring("doctor", "--json"))
    for name in ("af_packet", "tpacket_v3", "taking", "shm_space", "af_xdp"):
        assert found[name]["ok"], found[name]


@pytest.mark.needs("host_root")
def test_root_of_the_machine_may_load_xdp_programs():
    found = checks(pktring("doctor", "--json"))
    assert found["af_xdp_receive"]["ok"] and found["af_xdp_native"]["ok"] and found["tap"]["ok"]
    assert found["user_namespaces"]["ok"] == can_unshare()


@pytest.mark.needs("root", "setpriv")
def test_without_privileges_it_says_what_is_missing_and_how_to_get_it():
    found = checks(pktring("doctor", "--json", prefix=UNPRIVILEGED))
    assert not found["privileges"]["ok"] and "lacks CAP_NET_RAW" in found["privileges"]["detail"]
    for name in ("af_packet", "tpacket_v3", "tap", "taking"):
        assert not found[name]["ok"] and found[name]["fix"], found[name]


@pytest.mark.skipif(not can_unshare(), reason="root: no user namespaces")
def test_root_of_a_user_namespace_is_told_apart_from_root():
    found = checks(pktring("doctor", "--json", prefix=unshared([])))
    assert found["af_packet"]["ok"] and found["tpacket_v3"]["ok"] and found["taking"]["ok"]
    assert not found["af_xdp_receive"]["ok"] and "not of a user namespace" in found["af_xdp_receive"]["fix"]


@pytest.mark.needs("root")
def test_a_full_dev_shm_is_seen():
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M t /dev/shm && "$@"', "sh"]
    check = checks(pktring("doctor", "--json", prefix=prefix))["shm_space"]
    assert not check["ok"] and "E_SHM_SPACE" in check["detail"] and "remount" in check["fix"]


def test_lro_is_the_one_offload_that_cannot_be_undone():
    check = doctor.offloads(replace(LINK, offloads=LINK.offloads | {"lro": True, "gro": True}))
    assert not check.ok and "differ from the wire" in check.detail and check.fix == "`ethtool -K eth7 lro off`"


@pytest.mark.parametrize(
    "on, says",
    [
        ([], "none on"),
        (["gro"], "frames to 65536 B: forwarded whole, cut to wire size in captures"),
        (["tx-checksum"], "completed"),
        (["rx-vlan"], "put back"),
    ],
)
def test_the_consequence_of_other_offloads_is_spelled_out(on, says):
    check = doctor.offloads(replace(LINK, offloads=LINK.offloads | dict.fromkeys(on, True)))
    assert check.ok and says in check.detail


@pytest.mark.needs("root")
def test_try_opens_a_port_and_leaves_it_as_it_was():
    with Lab() as lab:
        a, _ = lab.pair()
        found = answer(pktring("doctor", "--try", "va", "--json", lab=lab, netns=a.netns))["checks"]
        assert [check["name"] for check in found] == ["try va"] and found[0]["ok"]
        assert "driver=af_packet" in found[0]["detail"] and "mode=watching" in found[0]["detail"]


@pytest.mark.parametrize("port, code", [("nosuch", "E_NO_INTERFACE"), ("lo?colour=red", "E_OPTION")])
def test_try_says_why_a_port_does_not_open(port, code):
    got = pktring("doctor", "--try", port)
    assert got.returncode == 1 and code in got.stdout and "fix: " in got.stdout and not got.stderr


def test_a_probe_that_dies_is_only_a_failed_probe():
    assert probes.apart(lambda: 1 / 0)[0] is False
    assert probes.apart(lambda: __import__("os")._exit(9)) == (False, "the probe died")
