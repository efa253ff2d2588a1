"""Moving between uplinks under load: away from a dead one at once, back to a better one in its time."""

import time

import pytest

from .daemon import config


def whole(count):
    """Nothing lost, and nothing refused (acknowledged later than five seconds)."""
    return count.lost == 0 and count.refused == 0


def test_a_pulled_cable(online, load):
    load.start().wait_flow(time.time())
    pulled = time.time()
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    load.wait_flow(pulled)
    count = load.stop()
    assert whole(count), count
    assert load.pause(pulled) < 1


def test_a_silent_death_with_traffic(online, load):
    load.start().wait_flow(time.time())
    died = time.time()
    online.silent("eth")
    online.wait_online("wifi", within=10)
    load.wait_flow(died)
    count = load.stop()
    assert whole(count), count
    assert load.pause(died) < 2


@pytest.mark.parametrize("ways", [{"down": False}, {"up": False}], ids=["up", "down"])
def test_one_way_loss(online, load, ways):
    load.start().wait_flow(time.time())
    died = time.time()
    online.silent("eth", **ways)
    online.wait_online("wifi", within=10)
    load.wait_flow(died)
    count = load.stop()
    assert whole(count), count
    assert load.pause(died) < 2


def test_the_way_back_waits_for_the_hold_down_and_is_not_felt(online, load):
    load.start().wait_flow(time.time())
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    back = time.time()
    online.carrier_up("eth")
    online.wait_online("eth", within=30)
    moved = time.time()
    load.wait_flow(moved)
    count = load.stop()
    assert whole(count), count
    assert moved - back >= 3
    assert load.pause(moved - 1) < 0.5


def test_cell_is_left_for_wifi(online, load):
    load.start().wait_flow(time.time())
    online.silent("wifi")
    online.carrier_down("eth")
    online.wait_online("cell", within=15)
    online.heal("wifi")
    online.wait_online("wifi", within=60)
    load.wait_flow(time.time())
    assert whole(load.stop())


def test_the_first_uplink_is_dead_before_the_start(lab):
    lab.silent("eth", dns=True)
    lab.daemon_fresh(config())
    lab.wait_online("wifi", within=30)


def test_a_dead_name_server_on_the_first_uplink(lab):
    lab.dns_dead("eth")
    lab.daemon_fresh(config())
    lab.wait_online("wifi", within=30)


def test_every_uplink_gone_and_back(online, load):
    load.start().wait_flow(time.time())
    for uplink in ("eth", "wifi", "cell"):
        online.silent(uplink)
    online.wait_status(lambda now: not now["connected"], 30, "the daemon to say that it is offline")
    now = online.status()
    assert now["next_attempt_ms"] is not None
    for uplink in ("eth", "wifi", "cell"):
        online.heal(uplink)
    healed = time.time()
    online.wait_online(within=60)
    load.wait_flow(healed)
    assert whole(load.stop())


def test_connect_via_changes_nothing_stored(online):
    before = online.status()["failover"]["stored"]
    online.switchback("connect", "--via", "wlan0", "--timeout", "10s")
    assert online.status()["failover"]["stored"] == before
