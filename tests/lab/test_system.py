"""NetworkManager, the modem, the operator, the newcomer; status, D-Bus and the state file."""

import json
import time

import pytest

from . import plan
from .daemon import config, programs
from .namespaces import wait_for

KEYS = {
    "": "state connected uplink class since last_inbound_ms next_attempt_ms session failover uplinks outbox "
        "last_outage last_switch switches failback inhibited_until configuration start_reason set_aside",
    "session": "id server protocol tls present rtt_ms",
    "failover": "stored walk index",
    "outbox": "messages bytes oldest_s in_flight dropped classes",
    "failback": "mode until target eligible_in_ms held_because",
}
UPLINK_KEYS = "name class step usable reason metered rtt_ms loss signal bytes_up bytes_down liveness_bytes " \
              "spare_handshakes warm address send_buffer"
OUTAGE_KEYS = "first_cause last_reason began ended attempts uplinks_tried detected_ms gap_ms"
STATES = """off idle joining addressing sim registering bearer resolving connecting handshake online online-on-backup stalled
no-internet captive-portal no-cloud auth-error clock-wrong planned-offline updating safe-mode""".split()


def uplink(status, name):
    return next((one for one in status["uplinks"] if one["name"] == name), None)


def test_status_has_every_key(online):
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    status = online.status()
    for part, names in KEYS.items():
        # A whole object may be absent: then it is null.
        there = status[part] if part else status
        assert there is None and part == "failback" or set(names.split()) <= set(there), part
    assert set(OUTAGE_KEYS.split()) <= set(status["last_outage"])
    for one in status["uplinks"]:
        assert set(UPLINK_KEYS.split()) <= set(one)
        assert one["step"] in STATES
    assert status["state"] in STATES
    assert {one["name"]: one["class"] for one in status["uplinks"]} == {
        "eth0": "ethernet", "wlan0": "wifi", "wwan0": "cell"}
    assert status["session"]["tls"].startswith("1.") and status["session"]["protocol"] == "5.0"


def test_the_state_file_says_the_same_word(online):
    assert online.path(f"{plan.RUNTIME_DIR}/state").read_text().strip() == online.status()["state"]


def test_dbus_by_busctl_alone(online):
    where = ["org.switchback.Switchback1", "/org/switchback/Switchback1", "org.switchback.Switchback1"]
    get = online.run("gateway", ["busctl", "get-property", *where, "State", "Uplink", "Connected"]).stdout
    assert get.splitlines()[1:] == ['s "eth0"', "b true"]
    seen = online.run("gateway", ["busctl", "introspect", *where[:2]]).stdout
    for word in ("StateChanged", "UplinkChanged", "Lost", "Outage", "Restored", "LastInboundMs", "Session", "Uplinks",
                 "Outbox", "Publish", "Reconnect"):
        assert f".{word} " in seen, word
    called = online.run("gateway", ["busctl", "call", *where, "Publish", "a{sv}", "2", "topic", "s", "load/dbus",
                                    "payload", "s", "hello"]).stdout
    assert "accepted" in called


def test_events_tell_the_story(online):
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    events = online.events()
    assert events and all({"time", "uptime_ms", "line", "kind"} <= set(event) for event in events)


def test_network_manager_restarted(online, load):
    load.start().wait_flow(time.time())
    session = online.status()["session"]["id"]
    restarted = time.time()
    online.network_manager_restart()
    online.wait_uplinks()
    time.sleep(3)
    load.wait_flow(time.time())
    assert online.status()["session"]["id"] == session
    online.carrier_down("eth")
    online.wait_online("wifi", within=10)
    load.wait_flow(time.time())
    count = load.stop()
    assert count.lost == 0 and count.refused == 0, count
    assert load.pause(restarted) < 1


def test_the_modem_vanishes_and_appears(online):
    online.modem_unplug()
    online.wait_status(lambda now: not (uplink(now, "wwan0") or {}).get("usable"), 5, "the modem to be gone")
    online.modem_plug()
    online.wait_status(lambda now: (uplink(now, "wwan0") or {}).get("usable"), 15, "the modem to be back")
    online.carrier_down("eth")
    online.carrier_down("wifi")
    online.wait_online("cell", within=15)


def test_a_dropped_bearer_is_left_and_its_return_used(lab):
    lab.daemon_fresh(config(failover='order = ["cell", "wifi"]', hold_down="3s"))
    lab.wait_online("cell", within=15)
    lab.modem_refuses()
    lab.bearer_drop()
    lab.wait_online("wifi", within=10)
    lab.modem_refuses(False)
    lab.run("gateway", "nmcli --wait 10 connection up cell")
    lab.wait_online("cell", within=30)


def test_without_modem_manager_network_manager_is_heard_all_the_same(lab):
    lab.stop("modem-manager")
    try:
        lab.daemon_fresh(config(hold_down="3s"))
        lab.wait_online("eth", within=15)
        # The kernel alone would not tell whose wish this is.
        lab.run("gateway", "nmcli device disconnect eth0")
        lab.wait_online("wifi", within=15)
        lab.wait_status(lambda now: (uplink(now, "eth0") or {}).get("reason") == "user", 5, "the operator's wish to be seen")
    finally:
        lab.start_service("modem-manager")


def test_the_operator_is_not_fought(online):
    online.run("gateway", "nmcli device disconnect eth0")
    online.wait_online("wifi", within=10)
    time.sleep(6)
    assert online.devices()["eth0"][1] == "disconnected"
    online.run("gateway", "nmcli device connect eth0")
    online.wait_online("eth", within=30)


def test_disconnect_holds_until_connect(online):
    online.switchback("disconnect")
    assert not online.status()["connected"]
    time.sleep(3)
    assert not online.status()["connected"]
    online.switchback("connect", "--timeout", "10s")
    online.wait_online("eth", within=5)


# First mistakes: one clear sentence each.

def said(lab, text, within=15, words=()):
    """The daemon's log once all the words are in it."""
    lab.daemon_fresh(text)
    wait_for(lambda: all(word in lab.daemon_log(200) for word in words), within,
             f"{words} in what the daemon says:\n{lab.daemon_log(200)}")


def test_a_mistyped_key(lab):
    text = config(failover='hold_dwon = "5s"').replace('hold_down = "5s"\n', "")
    line = text.splitlines().index('hold_dwon = "5s"') + 1
    said(lab, text, words=(f"{plan.CONFIG}:{line}:", "hold_dwon", "hold_down", "safe mode"))
    lab.wait_online("eth", within=15)
    checked = lab.switchback("config", "check", plan.CONFIG, check=False)
    assert checked.returncode == 2 and "hold_down" in checked.stdout + checked.stderr


def test_the_wrong_ca(lab):
    said(lab, config(ca_file=f"{plan.PKI}/other-ca.pem"), words=("certificate", "ca_file"))
    assert lab.status()["connected"] is False


def test_a_ca_file_that_is_not_there(lab):
    said(lab, config(ca_file="/nowhere/ca.pem"), words=("/nowhere/ca.pem", "safe mode"))
    assert lab.status()["connected"] is False


def test_nobody_listens(lab):
    said(lab, config(servers=[f"mqtts://{plan.BROKER}:9999"]), words=(f"{plan.BROKER}:9999", "refused"))


def test_a_broker_name_that_does_not_exist(lab):
    said(lab, config(servers=["mqtts://brocker.lab.example:8883"]), words=("brocker.lab.example",))


def test_network_manager_not_running(lab):
    lab.network_manager_kill()
    said(lab, config(), words=("NetworkManager",))
    lab.network_manager_start()
    lab.wait_online(within=30)


def test_not_root_and_no_place_to_write(lab):
    lab.configure(config())
    lab.path(plan.CONFIG).chmod(0o644)
    lab.path("/etc/switchback").chmod(0o755)
    command = [str(programs() / "switchbackd"), "--config", plan.CONFIG, "--state-dir", "/proc/state", "--runtime-dir",
               plan.RUNTIME_DIR]
    done = lab.run("gateway", ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command], check=False,
                   timeout=10)
    assert done.returncode not in (0, 124, 137) and "/proc/state" in done.stderr


def test_the_command_line_without_a_daemon(lab):
    done = lab.switchback("status", check=False)
    assert done.returncode == 3 and "not running" in done.stderr


@pytest.mark.parametrize("words", [["frobnicate"], ["failover", "sett", "wifi"]])
def test_an_unknown_verb(online, words):
    assert online.switchback(*words, check=False).returncode == 2


def test_json_on_every_verb_that_prints(online):
    for words in (["status"], ["failover", "show"], ["config", "show"]):
        json.loads(online.switchback(*words, "--json").stdout)
