"""What operators may say of the way back, and what they read of a switch."""

import json
import time


def answer(lab, *words):
    out = lab.switchback("--json", *words, check=False)
    return out.returncode, json.loads(out.stdout)


def test_never_keeps_traffic_where_it_is_and_now_brings_it_back(online, load):
    load.start().wait_flow(time.time())
    code, said = answer(online, "failback", "never", "--for", "1h")
    assert code == 0 and said["mode"] == "never" and said["until"] is not None
    pulled = time.time()
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    load.wait_flow(pulled)
    online.carrier_up("eth")
    online.wait_status(lambda s: s["failback"]["target"] == "eth0", 10, "eth0 ready")
    time.sleep(8)
    now = online.status()
    assert now["uplink"] == "wlan0" and now["failback"]["held_because"] == "never", now["failback"]
    assert "switchback failback auto" in online.switchback("explain").stdout
    code, said = answer(online, "failback", "now")
    assert (code, said) == (0, {"result": "moved", "uplink": "eth0"})
    assert answer(online, "failback", "now") == (0, {"result": "nothing-better", "uplink": "eth0"})
    load.wait_flow(time.time())
    count = load.stop()
    assert count.lost == 0 and count.refused == 0 and count.repeated == 0, count


def test_now_says_why_not(online):
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    code, said = answer(online, "failback", "now")
    assert code == 1 and said["reason"] == "no-link", said
    assert said["message"].startswith("traffic stays on wlan0: the better uplink: "), said


def test_inhibit_holds_off_and_its_end_lets_go(online):
    code, said = answer(online, "inhibit", "61min")
    assert code == 2 and "longer than an hour" in said["message"], said
    code, said = answer(online, "inhibit", "10min")
    assert code == 0 and said["inhibited_until"] is not None
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    online.carrier_up("eth")
    online.wait_status(lambda s: s["failback"]["held_because"] == "inhibited", 10, "inhibited")
    assert "moves are held off until" in online.switchback("explain").stdout
    assert "inhibited" in online.switchback("status").stdout
    answer(online, "inhibit", "0s")
    online.wait_online("eth", within=30)


def test_a_switch_leaves_one_record(online, load):
    load.start().wait_flow(time.time())
    pulled = time.time()
    online.carrier_down("eth")
    online.wait_online("wifi", within=5)
    load.wait_flow(pulled)
    load.stop()
    status = online.wait_status(lambda s: s["last_switch"] is not None, 5, "a record")
    last = status["last_switch"]
    assert (last["from"], last["to"], last["why"]) == ("eth0", "wlan0", "no-link"), last
    # A quick move may fall between two messages and hold up none.
    assert last["detection_ms"] == 0 and last["refused"] == 0 and (last["pause_ms"] or 0) < 1000, last
    assert {"from": "eth0", "to": "wlan0", "why": "no-link", "count": 1} in status["switches"]
    assert "Moved from eth0 to wlan0 at " in online.switchback("explain").stdout
    notes = [line["line"] for line in online.events() if line["kind"] == "note"]
    assert any(line.startswith("moved from eth0 to wlan0: no-link seen at once, moved in ") for line in notes), notes
    carrier = next(one for one in status["uplinks"] if one["name"] == "wlan0")
    assert carrier["rtt_ms"] is not None and carrier["loss"] is not None, carrier
