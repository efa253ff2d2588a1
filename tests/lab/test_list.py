"""The failover list: set, shown, cleared, kept over kill -9, and never a reason to touch the session."""

import json
import random
import time

from .daemon import config, programs
from .disk import Disk


def shown(lab):
    return json.loads(lab.switchback("failover", "show", "--json").stdout)


def test_set_is_stored_and_leaves_the_session_alone(online):
    session = online.status()["session"]["id"]
    online.switchback("failover", "set", "cell", "eth", "cell", "nonsense0")
    time.sleep(1)
    now = online.status()
    assert now["session"]["id"] == session and now["uplink"] == "eth0"
    assert now["failover"]["stored"] == ["cell", "ethernet", "nonsense0"]
    assert now["failover"]["walk"] == ["wwan0", "eth0", "wlan0"]
    assert shown(online)["stored"] == ["cell", "ethernet", "nonsense0"]


def test_the_list_decides_the_next_attempt(online):
    online.switchback("failover", "set", "wifi")
    online.switchback("reconnect")
    online.wait_online("wifi", within=15)


def test_it_survives_kill_9(online):
    online.switchback("failover", "set", "wifi", "cell")
    online.daemon_kill()
    online.daemon_start()
    online.wait_online("wifi", within=15)
    assert online.status()["failover"]["stored"] == ["wifi", "cell"]
    online.switchback("failover", "clear")
    online.daemon_kill()
    online.daemon_start()
    online.wait_online("eth", within=15)
    assert online.status()["failover"]["stored"] == []


def set_in_the_background(lab, names):
    """`failover set` on its way, for a moment of somebody else's choosing."""
    lab.start("setter", "gateway", [str(programs() / "switchback"), "failover", "set", *names])
    time.sleep(random.uniform(0, 0.02))


def test_kill_9_in_the_middle_leaves_the_old_or_the_new(online):
    lists = (["wifi", "cell"], ["cell"])
    online.switchback("failover", "set", *lists[0])
    for number in range(1, 6):
        set_in_the_background(online, lists[number % 2])
        online.daemon_kill()
        online.daemon_start()
        now = online.wait_status(lambda status: True, 10, "the daemon to answer")
        assert now["failover"]["stored"] in lists


def test_a_power_cut_in_the_middle_leaves_the_old_or_the_new(lab):
    lists = (["wifi", "cell"], ["cell"])
    with Disk(lab) as disk:
        lab.daemon_fresh(config())
        lab.wait_online()
        lab.switchback("failover", "set", *lists[0])
        for number in range(1, 9):
            set_in_the_background(lab, lists[number % 2])
            disk.cut()
            disk.again()
            lab.daemon_start()
            now = lab.wait_status(lambda status: True, 10, "the daemon to answer")
            assert now["failover"]["stored"] in lists


def test_a_damaged_list_means_the_default(online):
    online.switchback("failover", "set", "cell")
    online.daemon_kill()
    for file in online.path(online.state_dir).iterdir():
        if "failover" in file.name:
            file.write_bytes(file.read_bytes()[:-3])
    online.daemon_start()
    assert online.wait_online(within=15)["failover"]["stored"] == []


def test_the_order_of_the_configuration_is_used_until_a_list_is_stored(lab):
    lab.daemon_fresh(config(failover='order = ["cell", "wifi", "ethernet"]'))
    lab.wait_online("cell", within=15)
