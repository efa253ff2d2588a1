"""`switchback doctor`: each thing that is in the way is named, at the uplink where it is, with what to do."""

import json

from .daemon import config


def findings(lab, within=None):
    done = lab.switchback("doctor", "--json", check=False)
    document = json.loads(done.stdout)
    assert done.returncode == (1 if document["health"] == "bad" else 0)
    by_place = {}
    for finding in document["findings"]:
        assert finding["advice"] or finding["health"] == "good", finding
        by_place[(finding["uplink"] or "").split(" ")[0], finding["what"]] = finding
    return by_place


def test_a_healthy_gateway_without_a_daemon(lab):
    lab.configure(config())
    found = findings(lab)
    assert found["", "daemon"]["health"] == "bad"
    for uplink in ("eth0", "wlan0", "wwan0"):
        for what in ("link", "name lookup", "connection", "TLS"):
            assert found[uplink, what]["health"] == "good", found[uplink, what]


def test_what_is_in_the_way_is_named_at_its_uplink(online):
    online.carrier_down("eth")
    online.wait_online("wifi", within=15)
    online.dns_dead("wifi", refused=True)
    online.reset("cell")
    found = findings(online)
    assert found["", "daemon"]["health"] == "good"
    assert found["eth0", "link"]["health"] == "bad"
    assert ("eth0", "connection") not in found
    assert found["wlan0", "session"]["health"] == "good"
    assert found["wlan0", "name lookup"]["health"] == "bad"
    assert "198.51.100.1" in found["wlan0", "name lookup"]["advice"]
    assert found["wwan0", "connection"]["health"] == "bad"


def test_the_wrong_authority(lab):
    lab.configure(config(ca_file="/run/lab/pki/other-ca.pem"))
    found = findings(lab)
    assert found["eth0", "TLS"]["health"] == "bad"
    assert "other-ca.pem" in found["eth0", "TLS"]["advice"]
