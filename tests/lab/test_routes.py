"""manage_routes: the host's own traffic goes where the session goes, nothing drops, and nothing of it stays."""

import time

import pytest

from . import plan
from .daemon import config
from .namespaces import wait_for

PROFILES = "/etc/NetworkManager/system-connections"
OTHERS = "203.0.113.240/32"
BEFORE = {up.device: up.metric for up in plan.UPLINKS.values()}


def metrics(lab):
    """{device: metric} of the default routes, as the kernel has them; all of them where a device has several."""
    found = {}
    for line in lab.run(plan.GATEWAY, "ip -4 route show default").stdout.splitlines():
        words = line.split()
        found.setdefault(words[words.index("dev") + 1], []).append(int(words[words.index("metric") + 1]))
    return {device: all[0] if len(all) == 1 else all for device, all in found.items()}


def wait_metrics(lab, wanted, within=5):
    wait_for(lambda: metrics(lab) == wanted, within, f"the metrics {wanted}; there were {metrics(lab)}")


def wait_first(lab, uplink, within=5):
    """Until the host's own traffic goes through this uplink: by route, and by name server."""
    up = plan.UPLINKS[uplink]

    def first():
        got = lab.run(plan.GATEWAY, ["ip", "-4", "route", "get", plan.CLOUD_ADDRESS], check=False).stdout
        servers = lab.path("/etc/resolv.conf").read_text().split("nameserver ")[1:]
        return f"dev {up.device} " in got and servers and servers[0].strip() == up.router
    wait_for(first, within, f"{uplink} to be first; there were {metrics(lab)}")


def profiles(lab):
    return {file.name: file.read_bytes() for file in lab.path(PROFILES).iterdir()}


def addresses(lab):
    return lab.run(plan.GATEWAY, "ip -4 -brief address show scope global").stdout


def move(lab, uplink):
    """An operator's switch: at once, and without a fault."""
    lab.switchback("failover", "set", uplink)
    lab.switchback("reconnect")
    lab.wait_online(uplink, within=15)


@pytest.fixture
def routed(lab):
    """A daemon that manages routes, online over eth; afterwards every profile is activated afresh."""
    lab.daemon_fresh(config(hold_down="3s", failover="manage_routes = true"))
    lab.wait_online("eth", within=15)
    wait_first(lab, "eth")
    yield lab
    # It would give them their rank again.
    if lab.daemon_running():
        lab.daemon_kill()
    for uplink in ("eth", "wifi"):
        lab.heal(uplink)
        lab.run(plan.GATEWAY, f"nmcli --wait 10 connection up {uplink}")


def test_the_host_moves_with_the_session_and_nothing_is_felt(routed, load):
    routed.run(plan.GATEWAY, f"ip route add {OTHERS} via {plan.UPLINKS['eth'].router} dev eth0")
    had, stored = addresses(routed), profiles(routed)
    load.start().wait_flow(time.time())
    routed.silent("eth")
    routed.wait_online("wifi", within=10)
    wait_first(routed, "wifi")
    wait_metrics(routed, {**BEFORE, "wlan0": 60})
    moved = time.time()
    session = routed.status()["session"]["id"]
    # Long enough for whatever giving eth0 its metric back may do behind a router that swallows everything.
    time.sleep(2)
    load.wait_flow(time.time())
    assert routed.status()["session"]["id"] == session
    routed.heal("eth")
    routed.wait_online("eth", within=60)
    wait_first(routed, "eth")
    wait_metrics(routed, {**BEFORE, "eth0": 60})
    load.wait_flow(time.time())
    count = load.stop()
    assert (count.lost, count.refused) == (0, 0), count
    assert load.pause(moved) < 0.5
    assert addresses(routed) == had and profiles(routed) == stored
    assert routed.run(plan.GATEWAY, f"ip route show {OTHERS}").stdout, "a route that somebody else has set is gone"


def test_a_modem_comes_first_though_its_metric_stays(routed, load):
    had = addresses(routed)
    load.start().wait_flow(time.time())
    for uplink in ("eth", "wifi"):
        routed.silent(uplink)
    routed.wait_online("cell", within=20)
    wait_first(routed, "cell")
    assert metrics(routed)["wwan0"] == BEFORE["wwan0"]
    load.wait_flow(time.time())
    for uplink in ("eth", "wifi"):
        routed.heal(uplink)
    routed.wait_online("eth", within=60)
    wait_metrics(routed, {**BEFORE, "eth0": 60})
    count = load.stop()
    assert (count.lost, count.refused) == (0, 0), count
    assert addresses(routed) == had


def test_a_silent_dhcp_server_takes_no_address_away(routed):
    had = addresses(routed)
    routed.dhcp_dead("eth")
    move(routed, "wifi")
    wait_metrics(routed, {**BEFORE, "wlan0": 60})
    # NetworkManager gives DHCP up after 45 s, unless it is told otherwise.
    time.sleep(50)
    assert addresses(routed) == had and routed.activated("eth")


def test_a_stop_leaves_it_as_it_was(routed):
    assert metrics(routed) == {**BEFORE, "eth0": 60}
    routed.daemon_stop()
    assert metrics(routed) == BEFORE


def test_a_stop_without_network_manager_is_not_held_up(routed):
    routed.network_manager_kill()
    assert routed.daemon_stop() < 5
    routed.network_manager_start()
    routed.wait_uplinks()


def test_what_kill_9_leaves_is_healed_by_the_next_start(routed):
    move(routed, "wifi")
    wait_first(routed, "wifi")
    routed.switchback("failover", "clear")
    routed.daemon_kill()
    assert metrics(routed) == {**BEFORE, "wlan0": 60}
    routed.daemon_start()
    routed.wait_online("eth", within=15)
    wait_metrics(routed, {**BEFORE, "eth0": 60})
    routed.daemon_stop()
    assert metrics(routed) == BEFORE


def test_it_holds_over_a_restart_of_network_manager_and_a_new_activation(routed):
    routed.network_manager_restart()
    routed.wait_uplinks()
    wait_first(routed, "eth")
    move(routed, "wifi")
    wait_metrics(routed, {**BEFORE, "wlan0": 60})
    routed.run(plan.GATEWAY, "nmcli --wait 10 connection up wifi")
    routed.wait_online("wifi", within=30)
    wait_metrics(routed, {**BEFORE, "wlan0": 60})


@pytest.fixture
def six(lab):
    """eth also gives IPv6 addresses, by router advertisements; eth0 takes one."""
    lab.run("eth", "ip -6 address add 2001:db8:1::1/64 dev lan nodad && sysctl -qw net.ipv6.conf.all.forwarding=1")
    lab.start("advertiser", "eth", [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--port=0",
        "--interface=lan", "--enable-ra", "--dhcp-range=2001:db8:1::,ra-only", "--leasefile-ro", "--log-facility=-"])
    lab.run(plan.GATEWAY, "nmcli --wait 10 device modify eth0 ipv6.method auto")
    wait_for(lambda: has_six(lab), 20, "an IPv6 address")
    yield
    lab.stop("advertiser")
    lab.run("eth", "ip -6 address del 2001:db8:1::1/64 dev lan")


def has_six(lab):
    return "2001:db8:1:" in lab.run(plan.GATEWAY, "ip -6 address show dev eth0 scope global -tentative").stdout


def test_an_uplink_that_would_lose_its_ipv6_address_is_not_moved(six, routed):
    wait_metrics(routed, {**BEFORE, "wlan0": 10000})
    move(routed, "wifi")
    wait_metrics(routed, {**BEFORE, "wlan0": 60})
    assert has_six(routed)
    move(routed, "eth")
    wait_metrics(routed, {**BEFORE, "wlan0": 10000})
    assert has_six(routed) and "IPv6" in routed.daemon_log()
    routed.daemon_stop()
    assert metrics(routed) == BEFORE and has_six(routed)


def test_without_it_routes_are_left_alone(online):
    assert metrics(online) == BEFORE
    audited = online.log("network-manager").count("device-reapply")
    move(online, "wifi")
    time.sleep(1)
    assert metrics(online) == BEFORE
    assert online.log("network-manager").count("device-reapply") == audited
