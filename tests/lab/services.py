"""The programs a lab runs, each as (namespace, command), and the files they read.

Nothing here acts on its own: laboratory.py writes the files into the lab's private /run and /etc and
starts the commands. Commands run in the foreground, as root, with their output in /run/lab/log.
"""

import os

from . import plan

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = "/usr/bin/python3"


def commands():
    table = {
        "bus": (plan.GATEWAY, ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={plan.RUN}/bus.conf"]),
        "network-manager": (plan.GATEWAY, ["NetworkManager", "--debug", "--log-level=INFO"]),
        "modem-manager": (plan.GATEWAY, [PYTHON, os.path.join(HERE, "modem.py")]),
        "broker": (plan.CLOUD, ["mosquitto", "-c", f"{plan.RUN}/broker.conf"]),
        "check": (plan.CLOUD, [PYTHON, os.path.join(HERE, "doors.py")]),
    }
    for up in plan.UPLINKS.values():
        last = up.pool.rsplit(".", 1)[0] + "." + str(int(up.pool.rsplit(".", 1)[1]) + 19)
        table["provider-" + up.name] = (up.name, [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=",
            "--interface=lan", "--except-interface=lo", "--bind-dynamic", "--no-resolv", "--no-hosts",
            "--no-ping", "--dhcp-authoritative", f"--dhcp-leasefile={plan.RUN}/{up.name}.leases",
            f"--dhcp-range={up.pool},{last},255.255.255.128,1h", f"--dhcp-option=3,{up.router}",
            f"--dhcp-option=6,{up.router}", f"--host-record={plan.BROKER},{plan.CLOUD_ADDRESS},30",
            "--log-facility=-"])
    return table


def files(connectivity_interval=0, carrier_wait_ms=None):
    """Path -> text. NetworkManager's connectivity check is off unless given an interval in seconds."""
    written = {
        f"{plan.RUN}/bus.conf": BUS,
        f"{plan.RUN}/broker.conf": broker_conf(),
        "/etc/NetworkManager/NetworkManager.conf": network_manager_conf(connectivity_interval, carrier_wait_ms),
    }
    for up in plan.UPLINKS.values():
        written[f"/etc/NetworkManager/system-connections/{up.name}.nmconnection"] = profile(up)
    return written


BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""


def network_manager_conf(connectivity_interval, carrier_wait_ms):
    check = f"""uri=http://{plan.BROKER}/check
response=
interval={connectivity_interval}""" if connectivity_interval else "enabled=false"
    device = f"""
[device-lab]
match-device=*
carrier-wait-timeout={carrier_wait_ms}
""" if carrier_wait_ms is not None else ""
    return f"""[main]
plugins=keyfile
no-auto-default=*
dhcp=internal
dns=default
rc-manager=file
auth-polkit=false

[keyfile]
unmanaged-devices=interface-name:wwan0

[connectivity]
{check}
{device}"""


def profile(up):
    kind = {"cell": "gsm"}.get(up.name, "ethernet")
    settings = "[gsm]\napn=internet\n" if kind == "gsm" else ""
    return f"""[connection]
id={up.name}
type={kind}
interface-name={up.profile}
autoconnect=true

{settings}
[ipv4]
method=auto
route-metric={up.metric}

[ipv6]
method=disabled
"""


def broker_conf():
    """One broker, many doors: plain, TLS, TLS with a client certificate, TLS with a password."""
    tls = f"cafile {plan.PKI}/ca.pem\ncertfile {plan.PKI}/broker.pem\nkeyfile {plan.PKI}/broker.key\n"
    return f"""per_listener_settings true
user root
persistence false
max_queued_messages 0
max_inflight_messages 0
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
log_timestamp_format %H:%M:%S

listener {plan.PLAIN}
allow_anonymous true

listener {plan.TLS}
allow_anonymous true
{tls}
listener {plan.TLS_CLIENT_CERT}
allow_anonymous true
require_certificate true
{tls}
listener {plan.TLS_PASSWORD}
allow_anonymous false
password_file {plan.PKI}/password
{tls}"""
