"""The outbox under load: what was acknowledged arrives, whatever its class and QoS, after kill -9 and with a bad disk.

$SWITCHBACK_KILLS sets how often the daemon is killed (10).
"""

import os
import random
import time

import pytest

from . import flood, plan
from .daemon import config
from .disk import Disk
from .namespaces import wait_for

KILLS = int(os.environ.get("SWITCHBACK_KILLS", "10"))
# What a topic `once` says, the cloud gets exactly once.
ONCE = """
[[publish]]
topic = "once/#"
qos = 2
[[publish]]
topic = "#"
"""


@pytest.fixture
def recording(lab):
    made = flood.Recording(lab)
    yield made
    made.stop()


@pytest.fixture
def publisher(lab):
    """Starts publishers that end with the test at the latest."""
    started = []

    def start(**options):
        started.append(flood.Publisher(lab, **options))
        return started[-1]
    yield start
    for one in started:
        one.stop()


def offline(lab):
    for uplink in plan.UPLINKS:
        lab.carrier_down(uplink)


def back(lab):
    for uplink in plan.UPLINKS:
        lab.carrier_up(uplink)


def wait_arrived(recording, promised, topic="load", within=60):
    wait_for(lambda: promised <= recording.numbers(topic), within, "everything that was acknowledged to arrive", every=0.2)


def late(arrivals):
    """Of one topic: numbers whose first arrival comes behind a later number's."""
    highest, seen, found = 0, set(), []
    for arrival in arrivals:
        if arrival.number not in seen and arrival.number < highest:
            found.append(arrival.number)
        seen.add(arrival.number)
        highest = max(highest, arrival.number)
    return found


def test_kill_9_under_load_loses_nothing_of_any_class_and_qos(lab, recording, publisher):
    lab.daemon_fresh(config(hold_down="3s", more=ONCE))
    lab.wait_online("eth", within=15)
    seconds = 60 + 3 * KILLS
    load = publisher(topic="load", **{"class": "normal,critical,bulk"}, qos="1,2", rate=300, count=300 * seconds,
                     seconds=seconds, open=200, keep=True)
    once = publisher(topic="once", **{"class": "normal,critical"}, qos=2, rate=60, count=60 * seconds, seconds=seconds,
                     open=100, keep=True)
    for number in range(KILLS):
        if number % 3 == 1:
            offline(lab)
        time.sleep(random.uniform(0.1, 1))
        lab.daemon_kill()
        lab.daemon_start()
        if number % 3 == 2:
            back(lab)
    back(lab)
    lab.wait_online(within=30)
    load.stop(), once.stop()
    wait_arrived(recording, load.acked())
    wait_arrived(recording, once.acked(), "once")
    for name in ("normal", "critical", "bulk"):
        assert late(recording.under(f"load/{name}")) == []
    exact = [arrival.identity for arrival in recording.under("once")]
    assert len(exact) == len(set(exact)), f"{len(exact) - len(set(exact))} messages of QoS 2 arrived twice"
    assert "-" not in {arrival.identity for arrival in recording.under("load")}


def test_bulk_waits_for_an_unmetered_uplink_while_critical_goes_over_cell(lab, recording):
    lab.daemon_fresh(config(hold_down="3s", more='[class.bulk]\nuplinks = "unmetered"'))
    lab.wait_online("eth", within=15)
    lab.carrier_down("eth")
    lab.carrier_down("wifi")
    lab.wait_online("cell", within=15)
    told = flood.publish(lab, topic="load", **{"class": "bulk,critical"}, count=100)
    assert told["acked"] == 100, told
    wait_arrived(recording, set(range(2, 101, 2)), "load/critical", within=10)
    time.sleep(3)
    assert recording.numbers("load/bulk") == set()
    assert lab.status()["outbox"]["messages"] == 50
    lab.carrier_up("wifi")
    lab.wait_online("wifi", within=30)
    wait_arrived(recording, set(range(1, 100, 2)), "load/bulk", within=15)
    assert late(recording.under("load/bulk")) == []


def test_a_full_disk_promises_nothing_and_heals(lab, recording, publisher):
    with Disk(lab, size="24M") as disk:
        ballast = f"{os.path.dirname(lab.state_dir)}/ballast"
        lab.run(plan.GATEWAY, f"head -c 12M /dev/zero >{ballast}")
        offline(lab)
        lab.daemon_fresh(config())
        load = publisher(topic="load", count=200_000, open=100, seconds=15)
        load.wait(30)
        promised = load.acked()
        assert 1000 < len(promised) < 200_000
        lab.daemon_kill()
        lab.daemon_start()
        lab.wait_status(lambda now: now["outbox"]["messages"] >= len(promised), 10, "everything to be found again")
        lab.run(plan.GATEWAY, f"rm {ballast}")
        time.sleep(2)
        assert flood.publish(lab, topic="later", count=100, seconds=10)["acked"] == 100
        back(lab)
        wait_arrived(recording, promised)
        wait_arrived(recording, set(range(1, 101)), "later")
        assert disk and lab.daemon_running()


def test_a_disk_that_turns_read_only_under_load_promises_nothing(lab, recording, publisher):
    """The file system aborts, as ext4 does after an error of the device: the cloud alone keeps what is said now."""
    with Disk(lab) as disk:
        offline(lab)
        lab.daemon_fresh(config())
        load = publisher(topic="load", rate=500, count=30_000, open=200, seconds=60)
        wait_for(lambda: len(load.lines("a")) > 500, 10, "messages to be kept", every=0.1)
        lab.run(plan.GATEWAY, f"mount -o remount,abort {os.path.dirname(lab.state_dir)}")
        time.sleep(3)
        before = len(load.lines("a"))
        back(lab)
        lab.wait_online(within=30)
        wait_for(lambda: len(load.lines("a")) > before + 500, 20, "the cloud to keep what the disk does not", every=0.1)
        load.stop()
        lab.daemon_kill()
        disk.again()
        lab.daemon_start()
        wait_arrived(recording, load.acked())


def test_flush_is_true_only_when_nothing_waits(lab, recording):
    lab.daemon_fresh(config())
    lab.wait_online("eth", within=15)
    lab.switchback("flush", "--timeout", "5s")
    offline(lab)
    flood.publish(lab, topic="load", **{"class": "normal,critical,bulk"}, count=30)
    assert lab.switchback("flush", "--timeout", "1s", check=False).returncode == 1
    assert lab.status()["outbox"]["messages"] == 30
    back(lab)
    lab.switchback("flush", "--timeout", "20s")
    assert lab.status()["outbox"]["messages"] == 0
    assert len(recording.numbers()) == 30


def test_what_a_class_drops_is_counted(lab, recording):
    """Ten thousand messages of class low stay in memory; the oldest go."""
    offline(lab)
    lab.daemon_fresh(config())
    told = flood.publish(lab, topic="load", **{"class": "low"}, count=12_000, size=20)
    assert told["acked"] == 12_000, told
    dropped = lab.status()["outbox"]["dropped"]
    assert dropped >= 2000
    back(lab)
    wait_arrived(recording, set(range(12_000 - 5, 12_001)))
    lab.switchback("flush", "--timeout", "20s")
    arrived = recording.numbers()
    assert len(arrived) + dropped == 12_000 and late(recording.under("load")) == []
