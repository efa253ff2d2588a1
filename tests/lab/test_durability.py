"""kill -9 under load, and the cloud away: what was acknowledged arrives.

$SWITCHBACK_KILLS sets how often the daemon is killed (10).
"""

import os
import random
import time

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


def test_publish_waits_for_the_stage_asked_for(online):
    online.switchback("publish", "load/one", "hello", "--wait", "acked", "--timeout", "10s")
    online.switchback("flush", "--timeout", "10s")
    assert online.status()["outbox"]["messages"] == 0
    for uplink in ("eth", "wifi", "cell"):
        online.silent(uplink)
    online.switchback("publish", "load/one", "hello", "--wait", "stored", "--timeout", "10s")
    assert online.switchback("publish", "load/one", "hi", "--wait", "acked", "--timeout", "1s", check=False).returncode == 1
