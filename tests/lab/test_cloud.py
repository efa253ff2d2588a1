"""The broker: killed, frozen, away for long, old, picky; and what comes down from it."""

import json
import time

import pytest

from . import plan, services
from .daemon import config
from .namespaces import wait_for


def test_broker_killed_and_restarted(online, load):
    load.start().wait_flow(time.time())
    killed = time.time()
    online.broker_restart()
    load.wait_flow(killed)
    count = load.stop()
    assert count.lost == 0 and count.refused == 0, count
    assert online.status()["uplink"] == "eth0"
    assert load.pause(killed) < 5


def test_broker_frozen(online, load):
    load.start().wait_flow(time.time())
    online.broker_freeze()
    time.sleep(8)
    online.broker_thaw()
    thawed = time.time()
    load.wait_flow(thawed, within=60)
    count = load.stop(settle=60)
    assert count.lost == 0 and count.refused == 0, count
    online.wait_online("eth", within=60)


def test_broker_away_for_a_minute(online, load):
    """It stays on the best uplink, does not storm, keeps what it is given, and comes back."""
    load.start().wait_flow(time.time())
    online.run(plan.CLOUD, "nft insert rule inet fault doors tcp dport 8883 tcp flags '&' '(syn|ack)' == syn counter")
    online.broker_kill()
    uplinks = set()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        now = online.status()
        uplinks.add(now["uplink"])
        assert now["connected"] or now["next_attempt_ms"] is not None or now["state"] != "no-cloud", now
        time.sleep(0.5)
    assert online.status()["state"] == "no-cloud"
    counters = online.run(plan.CLOUD, "nft -j list chain inet fault doors").stdout
    attempts = [part["counter"]["packets"] for entry in json.loads(counters)["nftables"]
                for part in entry.get("rule", {}).get("expr", []) if "counter" in part]
    assert 2 <= attempts[0] <= 60, attempts
    assert uplinks <= {"eth0", None}, uplinks
    online.broker_start()
    online.switchback("connect", "--timeout", "20s", check=False)
    online.wait_online("eth", within=20)
    count = load.stop(settle=60)
    assert count.lost == 0 and count.refused == 0, count


@pytest.mark.parametrize("port, more", [
    (plan.TLS_CLIENT_CERT, f'cert_file = "{plan.PKI}/client.pem"\nkey_file = "{plan.PKI}/client.key"'),
    (plan.TLS_PASSWORD, f'username = "{plan.USER}"\npassword_file = "{plan.RUN}/secret"')],
    ids=["certificate", "password"])
def test_a_broker_that_wants_to_know_who(lab, port, more):
    lab.path(f"{plan.RUN}/secret").write_text(plan.PASSWORD + "\n")
    lab.path(f"{plan.RUN}/secret").chmod(0o600)
    lab.daemon_fresh(config(servers=[f"mqtts://{plan.BROKER}:{port}"], cloud=more))
    lab.wait_online("eth", within=15)


def test_a_broker_that_speaks_only_311(lab, load):
    lab.daemon_fresh(config(servers=[f"mqtts://{plan.BROKER}:{plan.TLS_OLD}"]))
    now = lab.wait_online("eth", within=20)
    assert now["session"]["protocol"] == "3.1.1"
    load.start().wait_flow(time.time())
    count = load.stop()
    assert count.lost == 0 and count.refused == 0, count


def test_what_the_cloud_sends_reaches_a_local_subscriber(lab):
    rule = '[[subscribe]]\ntopic = "gw/lab-gateway/cmd/#"\nto = "cmd/{rest}"\nqos = 1\n'
    lab.daemon_fresh(config(more=rule))
    lab.wait_online("eth", within=15)
    out = f"{plan.RUN}/downlink.jsonl"
    lab.start("downlink", plan.GATEWAY, [services.PYTHON, f"{services.HERE}/client.py", "subscribe", "--topic", "cmd/#",
                                         "--id", "downlink", "--out", out])
    try:
        wait_for(lambda: lab.path(out).exists() and "subscribed" in lab.path(out).read_text(), 5, "SUBACK")

        def sent_and_arrived(word):
            lab.run(plan.CLOUD, ["mosquitto_pub", "-q", "1", "-t", "gw/lab-gateway/cmd/lamp", "-m", word])
            wait_for(lambda: f'"cmd/lamp", "payload": "{word}"' in lab.path(out).read_text(), 5, f"{word} to come down")
        sent_and_arrived("on")
        lab.carrier_down("eth")
        lab.wait_online("wifi", within=10)
        sent_and_arrived("off")
        lab.broker_restart()
        lab.wait_online(within=30)
        sent_and_arrived("on-again")
    finally:
        lab.stop("downlink")


def test_what_the_cloud_sees_of_the_gateway(online):
    base = "switchback/lab-gateway"

    def told(topic):
        return [json.loads(line["payload"]) for line in recorded(online) if line["topic"] == f"{base}/{topic}"]
    assert {"state", "session", "since", "reason"} <= set(wait_for(lambda: told("status"), 5, "a status")[-1])
    assert wait_for(lambda: told("hello"), 5, "a hello")
    online.daemon_stop()
    assert told("status")[-1]["state"] != "online"


def test_an_outage_is_told_to_the_cloud_once_it_is_over(online):
    online.broker_kill()
    online.wait_status(lambda now: not now["connected"], 5, "the daemon to notice")
    online.broker_start()
    online.wait_online("eth", within=10)

    def reports():
        return [json.loads(line["payload"]) for line in recorded(online) if line["topic"].endswith("/outage")]
    report = wait_for(reports, 10, "a report of the outage")[-1]
    assert report["first_cause"] in ("server-shut-down", "reset") and report["ended"] and report["gap_ms"] > 0
    assert {"began", "last_reason", "attempts", "uplinks_tried", "queued", "dropped"} <= set(report)


def test_a_twin_with_our_identity_is_not_fought(online):
    # The twin comes back at once whenever it is thrown out, as mosquitto_sub does.
    online.run("cloud", "timeout 12 mosquitto_sub -V 5 -h 127.0.0.1 -i lab-gateway -t none", check=False)
    assert "another client uses our cloud.client_id" in online.daemon_log(200)
    last = online.status()["last_outage"]
    assert last["last_reason"] == "session-taken-over" and last["attempts"] < 20


def recorded(lab):
    lines = lab.path(lab.recording_file).read_text().splitlines()
    return [line for line in map(json.loads, lines) if "topic" in line]
