"""kill -9 under load, and the cloud away: what was acknowledged arrives.

$SWITCHBACK_KILLS sets how often the daemon is killed (10).
"""

import os
import random
import signal
import time

from .daemon import config
from .disk import Disk
from .namespaces import wait_for

KILLS = int(os.environ.get("SWITCHBACK_KILLS", "10"))


def test_kill_9_under_load_loses_nothing(online, load):
    load.start().wait_flow(time.time())
    for _ in range(KILLS):
        time.sleep(random.uniform(0.2, 1.5))
        online.daemon_kill()
        online.daemon_start()
    online.wait_online(within=20)
    load.wait_flow(time.time())
    count = load.stop()
    assert count.lost == 0 and count.refused == 0, count


def test_offline_messages_survive_kill_9(online, load):
    for uplink in ("eth", "wifi", "cell"):
        online.silent(uplink)
    load.start()
    time.sleep(8)
    online.daemon_kill()
    before = load.count()
    assert before.acked > 100, before
    online.daemon_start()
    for uplink in ("eth", "wifi", "cell"):
        online.heal(uplink)
    online.wait_online(within=60)
    count = load.stop(settle=60)
    assert count.lost == 0 and count.refused == 0, count


def test_a_power_cut_offline_keeps_what_was_acknowledged(lab, load):
    """The publisher dies with the gateway, so only what it was told counts."""
    with Disk(lab) as disk:
        lab.daemon_fresh(config())
        lab.wait_online("eth", within=15)
        for uplink in ("eth", "wifi", "cell"):
            lab.silent(uplink)
        load.start()
        time.sleep(6)
        disk.cut()
        lab.stop(load.name, signal.SIGKILL)
        promised = load.acked()
        assert len(promised) > 60
        disk.again()
        for uplink in ("eth", "wifi", "cell"):
            lab.heal(uplink)
        lab.daemon_start()
        lab.wait_online(within=60)
        wait_for(lambda: promised <= {number for _, number in load.arrivals()}, 20, "what was promised", every=0.2)


def test_publish_waits_for_the_stage_asked_for(online):
    online.switchback("publish", "load/one", "hello", "--wait", "acked", "--timeout", "10s")
    online.switchback("flush", "--timeout", "10s")
    assert online.status()["outbox"]["messages"] == 0
    for uplink in ("eth", "wifi", "cell"):
        online.silent(uplink)
    online.switchback("publish", "load/one", "hello", "--wait", "stored", "--timeout", "10s")
    assert online.switchback("publish", "load/one", "hi", "--wait", "acked", "--timeout", "1s", check=False).returncode == 1
