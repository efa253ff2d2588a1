"""local.broker: the gateway's own mosquitto serves the applications, the daemon is its bridge. Nothing is lost when either
of the two is killed or restarted, and commands arrive at local subscribers.

$SWITCHBACK_KILLS sets how often the daemon is killed (10).
"""

import os
import random
import signal
import time

import pytest

from . import plan
from .daemon import config
from .namespaces import wait_for

KILLS = int(os.environ.get("SWITCHBACK_KILLS", "10"))
SERVICE = "local-broker"
HOME = f"{plan.RUN}/{SERVICE}"

CONF = f"""user root
listener {plan.PLAIN} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {HOME}/
max_queued_messages 0
max_inflight_messages 100
set_tcp_nodelay true
"""

RULES = f"""[local]
broker = "mqtt://127.0.0.1:{plan.PLAIN}"
[[subscribe]]
topic = "gw/lab-gateway/cmd/#"
to = "cmd/{{rest}}"
"""


def start(lab):
    lab.start(SERVICE, plan.GATEWAY, ["mosquitto", "-c", f"{HOME}/mosquitto.conf"])
    wait_for(lambda: lab.run(plan.GATEWAY, ["mosquitto_pub", "-t", "$hello", "-n"], check=False).returncode == 0, 10,
             "the local broker")


@pytest.fixture
def bridged(lab):
    lab.run(plan.GATEWAY, f"rm -rf {HOME}; mkdir -p {HOME}")
    lab.path(f"{HOME}/mosquitto.conf").write_text(CONF)
    start(lab)
    lab.daemon_fresh(config(hold_down="3s", more=RULES))
    lab.wait_online("eth", within=15)
    yield lab
    lab.stop(SERVICE, signal.SIGKILL)


def test_kill_9_of_the_daemon_under_load_loses_nothing(bridged, load):
    load.start().wait_flow(time.time())
    for _ in range(KILLS):
        time.sleep(random.uniform(0.2, 1.5))
        bridged.daemon_kill()
        bridged.daemon_start()
    bridged.wait_online(within=20)
    load.wait_flow(time.time())
    count = load.stop()
    assert count.lost == 0, count


def test_restarts_of_both_while_offline_lose_nothing(bridged, load):
    for uplink in ("eth", "wifi", "cell"):
        bridged.silent(uplink)
    load.start()
    time.sleep(4)
    bridged.daemon_kill()
    time.sleep(2)
    bridged.stop(SERVICE, signal.SIGTERM)
    start(bridged)
    time.sleep(2)
    bridged.daemon_start()
    time.sleep(2)
    for uplink in ("eth", "wifi", "cell"):
        bridged.heal(uplink)
    bridged.wait_online(within=60)
    count = load.stop(settle=60)
    assert count.offered > 100 and count.lost == 0, count


def test_a_command_of_the_cloud_reaches_a_local_subscriber_and_stays_there(bridged):
    bridged.start("subscriber", plan.GATEWAY, ["mosquitto_sub", "-q", "1", "-v", "-t", "cmd/#"])
    try:
        # It may not have subscribed yet; a command that nobody here wants is over.
        def arrived():
            bridged.run(plan.CLOUD, ["mosquitto_pub", "-q", "1", "-t", "gw/lab-gateway/cmd/lamp", "-m", "on"])
            time.sleep(0.3)
            return "cmd/lamp on" in bridged.log("subscriber")
        wait_for(arrived, 10, "the command")
    finally:
        bridged.stop("subscriber", signal.SIGKILL)
    bridged.switchback("flush", "--timeout", "10s")
    assert '"topic": "cmd/lamp"' not in bridged.path(bridged.recording_file).read_text()
