"""The plan of the lab: names, devices and addresses, and nothing that acts.

Documentation ranges only (RFC 5737), so no packet of the lab could mean anything to a real network.
Every provider has a LAN side towards the gateway and a WAN side towards the cloud; the broker's
address belongs to none of them and is reached only through a provider's router.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Uplink:
    """One way from the gateway to the cloud. `name` is also the provider's network namespace."""

    name: str        # eth, wifi, cell
    kind: str        # the daemon's class: ethernet, wifi, cell
    device: str      # the gateway's end of the link
    router: str      # the provider's LAN address: gateway and name server
    network: str     # the provider's LAN
    pool: str        # first address handed out (last digit; twenty follow)
    static: str      # the gateway's address where there is no DHCP (the modem's bearer)
    wan: str         # the provider's address towards the cloud
    wan_cloud: str   # the cloud's end of that link
    metric: int      # route metric in NetworkManager's profile
    profile: str     # NetworkManager's device for it: the control port for the modem


UPLINKS = {
    "eth": Uplink("eth", "ethernet", "eth0", "192.0.2.1", "192.0.2.0/25", "192.0.2.10",
                  "192.0.2.100", "192.0.2.130", "192.0.2.129", 100, "eth0"),
    "wifi": Uplink("wifi", "wifi", "wlan0", "198.51.100.1", "198.51.100.0/25", "198.51.100.10",
                   "198.51.100.100", "198.51.100.130", "198.51.100.129", 600, "wlan0"),
    "cell": Uplink("cell", "cell", "wwan0", "203.0.113.1", "203.0.113.0/25", "203.0.113.10",
                   "203.0.113.100", "203.0.113.130", "203.0.113.129", 700, "cdc-wdm0"),
}

PREFIX = 25
GATEWAY, CLOUD = "gateway", "cloud"
CLOUD_ADDRESS = "203.0.113.200"
BROKER = "broker.lab.example"

# The cloud's doors.
PLAIN, TLS, TLS_CLIENT_CERT, TLS_PASSWORD, TLS_OLD, CHECK = 1883, 8883, 8884, 8885, 8886, 80
USER, PASSWORD = "gw", "lab-password"

# Places inside the lab (its /run is private to it).
RUN = "/run/lab"
LOGS = RUN + "/log"
PKI = RUN + "/pki"
STATE_DIR = RUN + "/state"
RUNTIME_DIR = "/run/switchback"
CONFIG = "/etc/switchback/switchback.toml"
