"""The knobs by name: netisr's table cell by cell, pktqueue's and epair's rules, what has no meaning here. No engine is needed."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktring.engine import sysctl
from pktring.engine.sysctl import KNOBS, Sysctl, SysctlError, boot, boot_value


class Values:
    """A backend that keeps values, and what was written."""

    def __init__(self, **more):
        self.values = {name: knob.default for name, knob in KNOBS.items()} | {"net.isr.numthreads": 4, "dev.pktring.workers": 4}
        self.values |= {f"net.pktqueue.{queue}.{leaf}": 0 for queue in self.queues() for leaf in ("len", "drops")}
        self.values |= {f"net.pktqueue.{queue}.maxlen": 256 for queue in self.queues()}
        self.values |= {"net.isr.proto": [{"name": "ip"}], "net.isr.workstream": [], "net.isr.work": []} | more
        self.written = []

    def queues(self):
        return ["ip", "ip-direct", "a.b"]

    def get(self, name):
        return self.values[name]

    def set(self, name, value):
        self.written.append((name, value))
        self.values[name] = value


@pytest.fixture
def values():
    return Values()


@pytest.fixture
def knobs(values):
    return Sysctl(values)


def refused(act, *args, number):
    """Assert the BSD's errno, and that the line says what to do. -> the line."""
    with pytest.raises(SysctlError) as e:
        act(*args)
    assert (e.value.errno, e.value.code) == (number, "E_SYSCTL") and ": " in e.value.text and sysctl.ERRNO[number] in e.value.text
    return e.value.text


def refused_write(knobs, values, name, value, number):
    """Assert that a write is refused and changes nothing. -> the line."""
    before = dict(values.values)
    line = refused(knobs.set, name, value, number=number)
    assert values.values == before and not values.written and line.startswith(name)
    return line


# ---- 1.9: net.isr.dispatch ----


def test_N_S_dispatch_is_written_at_run_time(knobs, values):
    for word in ("deferred", "hybrid", "direct"):
        old = values.values["net.isr.dispatch"]
        assert knobs.set("net.isr.dispatch", word) == (old, word) and knobs.get("net.isr.dispatch") == word


def test_N_S_dispatch_is_set_at_boot():
    assert boot_value("net.isr.dispatch", "hybrid") == "hybrid"
    assert boot({"net.isr.dispatch": "hybrid"}, 2)[0]["net.isr.dispatch"] == "hybrid"


def test_N_S_dispatch_is_direct_unless_said():
    assert boot({}, 2)[0]["net.isr.dispatch"] == "direct"


@pytest.mark.parametrize(
    "text", ["default", "", "foo", "Deferred", "DIRECT", " direct", "direct ", "deferred\0", "1", "0" * 19, "x" * 20, "x" * 5000]
)
def test_N_S_dispatch_refuses_all_other_words_with_einval(knobs, values, text):
    refused_write(knobs, values, "net.isr.dispatch", text, errno.EINVAL)


def test_N_S_dispatch_is_no_number(knobs, values):
    refused_write(knobs, values, "net.isr.dispatch", 1, errno.EINVAL)


# ---- 1.9: the settings of boot ----

BOOT = ["net.isr.maxthreads", "net.isr.bindthreads", "net.isr.maxqlimit", "net.isr.defaultqlimit"]


@pytest.mark.parametrize("name", BOOT)
def test_N_S_a_setting_of_boot_refuses_a_write_with_eperm(knobs, values, name):
    assert "[sysctl]" in refused_write(knobs, values, name, "1", errno.EPERM)


@pytest.mark.parametrize("name, default", [*zip(BOOT, [1, 0, 10240, 256], strict=True), ("net.link.epair.netisr_maxqlen", 2100)])
def test_N_S_the_defaults_of_boot(name, default):
    settled, messages = boot({}, 8)
    assert settled[name] == default and not messages


@pytest.mark.parametrize(
    "said, ncpu, threads", [(0, 4, 1), (-2, 4, 1), (-100, 4, 1), (-1, 4, 4), (-1, 1, 1), (1, 4, 1), (3, 4, 3), (4, 4, 4)]
)
def test_N_S_maxthreads(said, ncpu, threads):
    settled, messages = boot({"net.isr.maxthreads": said}, ncpu)
    assert settled["net.isr.maxthreads"] == threads and not messages


def test_N_S_maxthreads_beyond_the_cpus_is_clamped_with_a_message():
    settled, messages = boot({"net.isr.maxthreads": 9}, 2)
    assert settled["net.isr.maxthreads"] == 2 and messages == ["net.isr.maxthreads: forced from 9 to 2"]


def test_N_S1_the_boot_cpu_always_has_a_worker():
    assert boot({"net.isr.maxthreads": 0}, 1, workers=3)[0]["net.isr.maxthreads"] == 1


def test_the_engines_workers_are_the_default_of_maxthreads_and_bound():
    settled, messages = boot({}, 2, workers=3)
    assert (settled["net.isr.maxthreads"], settled["net.isr.bindthreads"], messages) == (3, 1, [])
    assert boot({"net.isr.maxthreads": 1}, 2, workers=2)[0]["net.isr.maxthreads"] == 1


@pytest.mark.parametrize("said", [0, 1, 5, -1])
def test_N_S_bindthreads_is_bound_if_nonzero(said):
    assert bool(boot({"net.isr.bindthreads": boot_value("net.isr.bindthreads", said)}, 2, workers=2)[0]["net.isr.bindthreads"]) == bool(
        said
    )


def test_N_S_maxqlimit_is_set_at_boot():
    settled, messages = boot({"net.isr.maxqlimit": 20000, "net.isr.defaultqlimit": 15000}, 1)
    assert (settled["net.isr.maxqlimit"], settled["net.isr.defaultqlimit"], messages) == (20000, 15000, [])


def test_N_S_defaultqlimit_above_maxqlimit_is_lowered_with_a_message():
    settled, messages = boot({"net.isr.defaultqlimit": 20000}, 1)
    assert settled["net.isr.defaultqlimit"] == 10240 and messages == ["net.isr.defaultqlimit: forced from 20000 to 10240"]


@pytest.mark.parametrize(
    "name, value", [("net.isr.maxqlimit", 0), ("net.isr.maxqlimit", 65537), ("net.isr.defaultqlimit", 0), (BOOT[0], 2**31)]
)
def test_a_setting_of_boot_has_a_range(name, value):
    refused(boot_value, name, value, number=errno.EINVAL)


def test_a_lane_holds_what_the_range_of_maxqlimit_allows():
    from pktring.shm import _shm

    assert sysctl.QLIMIT_MAX == getattr(_shm, "PR_LANE_MAX", 65536) and sysctl.PKTQ_MAXLEN_MAX == _shm.PR_PKTQ_MAX


# ---- 1.9: what is only read ----


def test_N_S_maxprot_is_16_and_read_only(knobs, values):
    assert knobs.get("net.isr.maxprot") == 16
    refused_write(knobs, values, "net.isr.maxprot", 32, errno.EPERM)


def test_N_S_numthreads_is_what_runs_and_read_only(knobs, values):
    assert knobs.get("net.isr.numthreads") == 4
    refused_write(knobs, values, "net.isr.numthreads", 2, errno.EPERM)


@pytest.mark.parametrize("name", ["net.isr.proto", "net.isr.workstream", "net.isr.work"])
def test_N_S_a_table_refuses_any_write_with_einval(knobs, values, name):
    for value in ("", "1", 1):
        refused_write(knobs, values, name, value, errno.EINVAL)
    assert isinstance(knobs.get(name), list)


@pytest.mark.parametrize(
    "name, number",
    [
        ("net.isr.maxprot", errno.EPERM),
        ("net.isr.proto", errno.EINVAL),
        ("net.pktqueue.ip.drops", errno.EPERM),
        ("dev.netmap.verbose", errno.EOPNOTSUPP),
    ],
)
def test_what_is_only_read_cannot_be_set_at_boot(name, number):
    refused(boot_value, name, 1, ["ip"], number=number)


# ---- epair ----


def test_E_OV1_the_default_is_42_times_ifqmaxlen():
    assert KNOBS["net.link.epair.netisr_maxqlen"].default == 42 * 50 == 2100


@pytest.mark.parametrize("value", [0, -1, "0", "-5"])
def test_E_OV1_less_than_one_is_refused(knobs, values, value):
    refused_write(knobs, values, "net.link.epair.netisr_maxqlen", value, errno.EINVAL)


def test_E_OV1_up_to_maxqlimit_is_taken_and_more_refused(knobs, values):
    assert knobs.set("net.link.epair.netisr_maxqlen", 10240) == (2100, 10240)
    values.written.clear()
    assert "net.isr.maxqlimit" in refused_write(knobs, values, "net.link.epair.netisr_maxqlen", 10241, errno.EINVAL)
    values.values["net.isr.maxqlimit"] = 50
    refused_write(knobs, values, "net.link.epair.netisr_maxqlen", 51, errno.EINVAL)
    assert knobs.set("net.link.epair.netisr_maxqlen", 1) == (10240, 1)


def test_E_OV1_the_value_of_boot_overrides_and_registration_caps_it():
    assert boot({"net.link.epair.netisr_maxqlen": 100}, 1)[0]["net.link.epair.netisr_maxqlen"] == 100
    settled, messages = boot({"net.link.epair.netisr_maxqlen": 99999}, 1)
    assert settled["net.link.epair.netisr_maxqlen"] == 10240 and len(messages) == 1
    refused(boot_value, "net.link.epair.netisr_maxqlen", 0, number=errno.EINVAL)


# ---- pktqueue ----


@pytest.mark.parametrize("queue", ["ip", "ip-direct", "a.b"])
def test_P_S1_a_queue_has_len_maxlen_and_drops(knobs, values, queue):
    values.values[f"net.pktqueue.{queue}.len"] = 2**40
    assert knobs.get(f"net.pktqueue.{queue}.len") == 2**40
    assert knobs.set(f"net.pktqueue.{queue}.maxlen", 512) == (256, 512)
    assert values.written.pop() == (f"net.pktqueue.{queue}.maxlen", 512)
    for leaf in ("len", "drops"):
        refused_write(knobs, values, f"net.pktqueue.{queue}.{leaf}", 0, errno.EPERM)


@pytest.mark.parametrize("value", [0, -1, 65536, "99999"])
def test_P_L1_a_maxlen_out_of_range_is_refused(knobs, values, value):
    refused_write(knobs, values, "net.pktqueue.ip.maxlen", value, errno.EINVAL)


def test_P_L1_the_same_maxlen_does_nothing(knobs, values):
    assert knobs.set("net.pktqueue.ip.maxlen", 256) == (256, 256) and not values.written


def test_P_S2_reading_gives_the_name_of_the_hash(knobs):
    assert knobs.get("net.pktqueue.rps_hash") == "curcpu"


def test_P_S2_the_current_name_is_a_no_op_and_another_is_switched_to(knobs, values):
    assert knobs.set("net.pktqueue.rps_hash", "curcpu") == ("curcpu", "curcpu") and not values.written
    assert knobs.set("net.pktqueue.rps_hash", "toeplitz") == ("curcpu", "toeplitz") and values.written


@pytest.mark.parametrize("name", ["Toeplitz", "rss", "", "toeplitz "])
def test_P_S2_an_unknown_hash_is_enoent(knobs, values, name):
    refused_write(knobs, values, "net.pktqueue.rps_hash", name, errno.ENOENT)


def test_P_S2_a_name_that_is_too_long_is_einval(knobs, values):
    refused_write(knobs, values, "net.pktqueue.rps_hash", "x" * 19, errno.ENOENT)
    refused_write(knobs, values, "net.pktqueue.rps_hash", "x" * 20, errno.EINVAL)


def test_P_S3_len_says_that_markers_do_not_count():
    assert "markers not" in KNOBS["net.pktqueue.<name>.len"].does


@pytest.mark.parametrize(
    "name", ["net.pktqueue.ipp.len", "net.pktqueue.ip.foo", "net.pktqueue.<name>.len", "net.pktqueue..len", "net.pktqueue.ip"]
)
def test_an_unknown_queue_is_enoent(knobs, name):
    refused(knobs.get, name, number=errno.ENOENT)


# ---- names ----


@pytest.mark.parametrize("name, near", [("net.isr.dispach", "net.isr.dispatch"), ("dev.netmap.admod", "dev.netmap.admode")])
def test_an_unknown_name_is_enoent_with_the_nearest(knobs, values, name, near):
    assert near in refused(knobs.get, name, number=errno.ENOENT)
    assert near in refused_write(knobs, values, name, 1, errno.ENOENT)


@pytest.mark.parametrize("name", ["", "net", "net.isr", "NET.ISR.DISPATCH", "net.isr.dispatch ", "x" * 10**5, "net.isr.dispatch\n"])
def test_a_name_is_exact(knobs, name):
    assert len(refused(knobs.get, name, number=errno.ENOENT)) < 300


def test_names_below_a_name(knobs):
    assert knobs.names("net.isr.dispatch") == ["net.isr.dispatch"]
    assert set(BOOT) < set(knobs.names("net.isr")) == set(knobs.names("net.isr.")) and len(knobs.names("net.isr")) == 10
    assert "net.pktqueue.ip.len" in knobs.names("net.pktqueue") and "net.pktqueue.<name>.len" not in knobs.names()
    assert knobs.read("net.isr.maxprot") == {"net.isr.maxprot": 16} and len(knobs.read()) == len(knobs.names())
    refused(knobs.names, "net.is", number=errno.ENOENT)


# ---- dev.netmap, dev.pktring ----


@pytest.mark.parametrize("name", [name for name, knob in KNOBS.items() if knob.access == "foreign"])
def test_a_knob_without_a_meaning_is_readable_and_a_write_says_why(knobs, values, name):
    assert knobs.get(name) == KNOBS[name].default
    assert KNOBS[name].does in refused_write(knobs, values, name, 1, errno.EOPNOTSUPP)


@pytest.mark.parametrize(
    "name, default",
    [("admode", 0), ("generic_mit", 100000), ("generic_ringsize", 1024), ("generic_rings", 1), ("fwd", 0), ("buf_size", 2048)],
)
def test_netmaps_defaults(name, default):
    assert KNOBS[f"dev.netmap.{name}"].default == default


def test_workers_are_one_to_what_runs(knobs, values):
    assert knobs.set("dev.pktring.workers", 1) == (4, 1)
    values.written.clear()
    for value in (0, 5):
        refused_write(knobs, values, "dev.pktring.workers", value, errno.EINVAL)
    assert boot({}, 4, workers=3)[0]["dev.pktring.workers"] == 3
    assert boot({"dev.pktring.workers": 2}, 4, workers=3)[0]["dev.pktring.workers"] == 2
    assert boot({"dev.pktring.workers": 9}, 4, workers=3)[1] == ["dev.pktring.workers: forced from 9 to 3"]


# ---- numbers ----


@pytest.mark.parametrize(
    "text, value", [("16", 16), ("0x10", 16), ("020", 16), ("+7", 7), (" 7 ", 7), ("2k", 2000), ("0", 0), ("1M", 10**6)]
)
def test_a_number_is_read_as_strtol_does(knobs, text, value):
    assert knobs.set("dev.netmap.generic_mit", text)[1] == value


@pytest.mark.parametrize("text", ["", " ", "x", "08", "1.5", "1e3", "0x", "--1", "1 2", "9" * 30, "2G", "\u0663", "1kk", "9" * 10**5])
def test_what_is_no_number_or_too_much_is_einval(knobs, values, text):
    assert len(refused_write(knobs, values, "dev.netmap.generic_mit", text, errno.EINVAL)) < 300


def test_a_backend_that_fails_leaves_the_old_value(knobs, values):
    def fail(name, value):
        raise sysctl.Error("E_OWNER", "not now")

    values.set = fail
    with pytest.raises(sysctl.Error, match="E_OWNER"):
        knobs.set("net.isr.dispatch", "hybrid")
    assert knobs.get("net.isr.dispatch") == "direct"


ANYTHING = st.one_of(st.text(max_size=50), st.integers(), st.booleans(), st.from_regex(r"[+-]?[0-9a-fx]{1,12}[kMG]?"))


@given(st.sampled_from(sorted(KNOBS)) | st.text(max_size=60), ANYTHING)
def test_any_write_is_done_or_refused_with_an_errno(name, value):
    values = Values()
    knobs = Sysctl(values)
    try:
        old, new = knobs.set(name, value)
    except SysctlError as e:
        assert e.errno in (errno.EINVAL, errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP) and not values.written
    else:
        assert knobs.get(name) == new and values.written == ([(name, new)] if new != old else [])


@given(
    st.dictionaries(st.sampled_from([n for n, k in KNOBS.items() if k.access in ("rw", "boot") and "<" not in n]), ANYTHING),
    st.integers(1, 64),
)
def test_whatever_is_settled_obeys_the_rules(said, ncpu):
    settings = {}
    for name, value in said.items():
        try:
            settings[name] = boot_value(name, value)
        except SysctlError:
            pass
    settled, _ = boot(settings, ncpu)
    assert 1 <= settled["net.isr.maxthreads"] <= ncpu and 1 <= settled["dev.pktring.workers"] <= settled["net.isr.maxthreads"]
    assert 1 <= settled["net.isr.defaultqlimit"] <= settled["net.isr.maxqlimit"] <= 65536
    assert 1 <= settled["net.link.epair.netisr_maxqlen"] <= settled["net.isr.maxqlimit"]
