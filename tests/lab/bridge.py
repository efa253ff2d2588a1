"""The plain alternative: a local mosquitto that bridges to the cloud, with NetworkManager's metrics as the failover.

Each variant is a set of settings that an experienced user would try, from none to all. Runs in the lab only, on the
same port of the gateway as the daemon under test would.
"""

from dataclasses import dataclass

from . import plan
from .namespaces import wait_for

SERVICE = "bridge"
CONF = f"{plan.RUN}/bridge.conf"
CLIENT = "bridge"


@dataclass(frozen=True)
class Variant:
    name: str
    tuned: bool = False
    connectivity_interval: int = 0       # NetworkManager's own check, seconds
    carrier_wait_ms: int | None = None
    sysctls: str = ""

    def lab_settings(self):
        return dict(connectivity_interval=self.connectivity_interval, carrier_wait_ms=self.carrier_wait_ms)


VARIANTS = {variant.name: variant for variant in (
    Variant("default"),
    Variant("tuned", tuned=True),
    Variant("best", tuned=True, connectivity_interval=10, carrier_wait_ms=500,
            sysctls="net.ipv4.conf.all.ignore_routes_with_linkdown=1 net.ipv4.tcp_retries2=5"),
)}

SAID = {
    "default": "mosquitto bridge, defaults",
    "tuned": "mosquitto bridge, tuned (keepalive 5 s, restart 1 s, no queue limits)",
    "best": "the same, NetworkManager's check every 10 s, carrier wait 0.5 s, tcp_retries2=5",
}


def start(lab, variant):
    """Start the bridge and wait until the cloud has it."""
    before = connections(lab)
    launch(lab, variant)
    wait_for(lambda: connections(lab) > before, 30, "the bridge to reach the cloud", every=0.1)


def connections(lab):
    """How often the cloud has welcomed the bridge."""
    return lab.log("broker").count(f"as {CLIENT}")


def launch(lab, variant):
    """Start the bridge, and wait for nothing."""
    if variant.sysctls:
        lab.run(plan.GATEWAY, f"sysctl -qw {variant.sysctls}")
    tuned = "keepalive_interval 5\nrestart_timeout 1\n" if variant.tuned else ""
    limits = "max_queued_messages 0\nmax_inflight_messages 0\n" if variant.tuned else ""
    lab.path(CONF).write_text(f"""user root
log_dest stderr
{limits}
listener {plan.PLAIN} 127.0.0.1
allow_anonymous true

connection cloud
address {plan.BROKER}:{plan.TLS}
bridge_cafile {plan.PKI}/ca.pem
remote_clientid {CLIENT}
cleansession false
topic load/# out 1
{tuned}""")
    lab.start(SERVICE, plan.GATEWAY, ["mosquitto", "-c", CONF])
