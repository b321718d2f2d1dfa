"""Apps attached to a running engine are killed while they hold all they can (F4), and stop reading (F29): the others notice nothing."""

import time

import pytest
from command import eventually
from engine_lab import running
from live import middle
from soak import books, kills
from soak.apps import Apps
from soak.rig import FORWARD, Rig

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(180)]

KILLS = 20
RATE = 3000


@pytest.fixture(scope="module")
def rig():
    with middle() as net, running(net, FORWARD) as engine:
        rig = Rig(engine)
        rig.net = net
        yield rig


def test_F4_R6_apps_killed_with_all_they_can_hold_give_everything_back_and_others_lose_nothing(rig):
    before = books.at_rest(rig.status)
    with Apps(rig.net, rig.engine) as apps:
        other = apps.start("listen")
        with kills.campaign(rig.net, rig, rate=RATE) as made:
            back = kills.kill_apps(rig, apps, KILLS)
        heard = apps.asked(other)
        eventually(lambda: not rig.status()["apps"])
    assert set(kills.balanced(made)) <= {"drop_kernel"}, "an app's death cost the forwarding a frame"
    assert (heard["again"], heard["missing"]) == (0, heard["counters"].get("drop_kernel", 0)), heard
    assert books.leaked(before, books.at_rest(rig.status)) == {}
    kills.told("F4", back_ms=kills.spread(back), heard=heard)


def test_F29_an_app_that_does_not_read_loses_its_own_copies_and_nobody_elses(rig):
    with Apps(rig.net, rig.engine) as apps:
        stopped, reading = apps.start("stop"), apps.start("listen")
        with kills.campaign(rig.net, rig, rate=RATE) as made:
            time.sleep(0.4)
        seen = {app["pid"]: app["counters"] for app in made.after["apps"]}
        heard = apps.asked(reading)
    assert seen[stopped]["drop_app_full"] > 500 and seen[stopped]["copied"] <= 2 * 255
    assert seen[stopped]["offered"] == seen[stopped]["copied"] + seen[stopped]["drop_app_full"]
    assert heard["frames"] == seen[reading]["copied"] == seen[reading]["offered"] - seen[reading]["drop_app_full"]
    assert set(kills.balanced(made)) <= {"drop_kernel"}, "the app that does not read held up the others"
    kills.told("F29", heard=heard["frames"], lost_by_the_slow_one=seen[stopped]["drop_app_full"])
