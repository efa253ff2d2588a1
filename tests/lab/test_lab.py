"""The lab itself: what it raises is real, each fault does what it says, and nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import plan, services
from .laboratory import Lab
from .namespaces import find, wait_for

PROBE = os.path.join(services.HERE, "probe.py")


def answers(lab, uplink, seconds=1):
    """Does the broker's TLS door answer through this uplink's device?"""
    return lab.run("gateway", [PROBE, plan.UPLINKS[uplink].device, str(seconds)], check=False).returncode == 0


def test_network_manager_sees_two_links_and_a_modem(lab):
    devices = lab.devices()
    assert devices["eth0"] == ("ethernet", "connected")
    assert devices["wlan0"] == ("ethernet", "connected")
    assert devices["cdc-wdm0"] == ("gsm", "connected")
    shown = lab.run("gateway", "nmcli -t -f GENERAL.NM-TYPE,GENERAL.IP-IFACE,IP4.ADDRESS device show cdc-wdm0").stdout
    assert "NMDeviceModem" in shown and ":wwan0" in shown and "203.0.113.100/25" in shown


@pytest.mark.parametrize("uplink", plan.UPLINKS)
def test_the_cloud_answers_through_every_uplink(lab, uplink):
    assert answers(lab, uplink)


def test_the_route_follows_the_metrics(lab):
    assert "dev eth0" in lab.run("gateway", f"ip route get {plan.CLOUD_ADDRESS}").stdout


@pytest.mark.parametrize("uplink", plan.UPLINKS)
def test_names_come_from_every_provider(lab, uplink):
    query = f"import socket; print(socket.gethostbyname('{plan.BROKER}'))"
    lab.path("/etc/resolv.conf").write_text(f"nameserver {plan.UPLINKS[uplink].router}\n")
    try:
        assert lab.run("gateway", ["/usr/bin/python3", "-c", query]).stdout.strip() == plan.CLOUD_ADDRESS
    finally:
        servers = "".join(f"nameserver {up.router}\n" for up in plan.UPLINKS.values())
        lab.path("/etc/resolv.conf").write_text(servers)


@pytest.mark.parametrize("uplink", plan.UPLINKS)
@pytest.mark.parametrize("ways", [{}, {"down": False}, {"up": False}], ids=["both", "up", "down"])
def test_silent_loss(lab, uplink, ways):
    lab.silent(uplink, **ways)
    assert not answers(lab, uplink, 0.5)
    assert lab.activated(uplink)
    assert all(answers(lab, other) for other in plan.UPLINKS if other != uplink)
    lab.heal(uplink)
    assert answers(lab, uplink)


def test_carrier_loss(lab):
    lab.carrier_down("eth")
    assert "NO-CARRIER" in lab.run("gateway", "ip link show eth0").stdout
    wait_for(lambda: not lab.activated("eth"), 10, "NetworkManager to notice the pulled cable")
    assert "dev wlan0" in lab.run("gateway", f"ip route get {plan.CLOUD_ADDRESS}").stdout
    lab.carrier_up("eth")
    lab.wait_uplinks("eth", within=10)
    assert answers(lab, "eth")


def test_name_server_dead(lab):
    lab.dns_dead("eth")
    ask = "exec 3<>/dev/udp/192.0.2.1/53; printf '\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\1' >&3; " \
          "timeout 1 head -c 2 <&3 | wc -c"
    assert lab.run("gateway", ["bash", "-c", ask]).stdout.strip() == "0"
    assert answers(lab, "eth")
    lab.heal("eth")
    assert lab.run("gateway", ["bash", "-c", ask]).stdout.strip() == "2"


def test_loss_of_half_the_packets(lab):
    lab.lossy("eth", 50)
    out = lab.run("gateway", f"ping -q -i 0.01 -c 200 -W 1 -I eth0 {plan.CLOUD_ADDRESS}", check=False).stdout
    lost = float(out.split("% packet loss")[0].split()[-1])
    assert 60 < lost < 90, out


def test_resets_and_no_route(lab):
    for fault, word in ((lab.reset, "ConnectionRefused"), (lab.no_route, "unreachable")):
        fault("eth")
        assert word in lab.run("gateway", [PROBE, "eth0"], check=False).stderr
        lab.heal("eth")


def test_broker_killed_frozen_restarted(lab):
    lab.broker_freeze()
    assert not answers(lab, "eth", 0.5)
    lab.broker_thaw()
    assert answers(lab, "eth")
    lab.broker_kill()
    assert "Refused" in lab.run("gateway", [PROBE, "eth0"], check=False).stderr
    lab.broker_start()
    assert answers(lab, "eth")


def test_network_manager_restart_keeps_addresses(lab):
    lab.network_manager_kill()
    assert answers(lab, "eth") and answers(lab, "wifi")
    lab.network_manager_start()
    lab.wait_uplinks()


def test_bearer_drop_and_modem_unplugged(lab):
    drops = lab.log("network-manager").count("modem-no-carrier")
    lab.bearer_drop()
    wait_for(lambda: lab.log("network-manager").count("modem-no-carrier") > drops, 5, "the drop to be seen")
    lab.wait_uplinks("cell")
    lab.modem_unplug()
    wait_for(lambda: "cdc-wdm0" not in lab.devices(), 5, "the modem to be gone")
    lab.modem_plug()
    lab.wait_uplinks("cell")
    assert answers(lab, "cell")


def test_the_count_is_right(lab):
    """The lab's own publisher straight into the cloud's broker, which freezes for a second."""
    load = lab.load(rate=50, ns=plan.CLOUD).start()
    load.wait_flow(time.time())
    frozen = time.time()
    lab.broker_freeze()
    time.sleep(1)
    lab.broker_thaw()
    load.wait_flow(time.time())
    count = load.stop()
    assert count.offered > 50 and count.arrived == count.acked == count.offered
    assert (count.lost, count.refused, count.repeated) == (0, 0, 0)
    assert 1.0 <= load.pause(frozen) < 1.3 and 0.9 <= count.worst_ack_s < 1.3
    assert lab.load(ns=plan.CLOUD).count().offered == 0


def test_two_labs_side_by_side_and_a_long_line(lab):
    with Lab(delays={"wifi": 25}) as other:
        took = int(other.run("gateway", [PROBE, "wlan0"]).stdout)
        assert 100 <= took < 200, "TCP and TLS 1.3 take two round trips of 50 ms"
        other.silent("eth")
        assert not answers(other, "eth", 0.5)
        assert answers(lab, "eth")
    assert answers(lab, "eth")


def test_nothing_outlives_a_killed_parent():
    script = "import sys, time; sys.path.insert(0, sys.argv[1]); from lab import Lab\n" \
             "with Lab('to-be-killed'): print('up', flush=True); time.sleep(100)"
    before = namespaces_of_processes()
    parent = subprocess.Popen([sys.executable, "-c", script, Lab.package_parent], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    assert find("to-be-killed") and namespaces_of_processes() != before
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: find("to-be-killed") is None, 5, "the lab to go away")
    wait_for(lambda: namespaces_of_processes() <= before, 5, "every process of the lab to go away")


def namespaces_of_processes():
    """The pid namespaces in which any process of this machine lives."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.add(os.readlink(entry / "ns/pid"))
            except OSError:
                continue
    return found


def test_the_machine_is_left_alone(lab):
    here = Path("/proc/self/ns/net").stat().st_ino
    assert lab.path("/proc/1/ns/net").stat().st_ino != here
    assert not Path("/run/lab").exists()
    assert "wwan0" not in subprocess.run(["ip", "link"], text=True, capture_output=True, check=True).stdout
