"""What a lab needs of the machine, and a plain sentence for whatever is missing.

Looks only; installs nothing (tests/lab/install does).
"""

import os
import shutil

PROGRAMS = {
    "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "nft": "nftables", "sysctl": "procps",
    "conntrack": "conntrack", "dbus-daemon": "dbus", "NetworkManager": "network-manager", "nmcli": "network-manager",
    "busctl": "systemd", "dnsmasq": "dnsmasq-base", "mosquitto": "mosquitto", "mosquitto_pub": "mosquitto-clients",
    "openssl": "openssl", "ping": "iputils-ping", "timeout": "coreutils", "mkfs.ext4": "e2fsprogs",
}
MODULES = {"dbus": "python3-dbus", "gi": "python3-gi"}


def missing():
    """A list of sentences; empty when a lab can be raised."""
    said = []
    if os.geteuid() != 0:
        return ["The lab needs root: it makes network namespaces."]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)})
    for module, package in MODULES.items():
        if not os.path.isdir(f"/usr/lib/python3/dist-packages/{module}"):
            packages.append(package)
    if packages:
        said.append(f"Packages are missing: {' '.join(packages)}. Run tests/lab/install as root.")
    for kind in ("net", "pid", "mnt", "uts", "ipc"):
        if not os.path.exists(f"/proc/self/ns/{kind}"):
            said.append(f"This kernel has no {kind} namespaces; the lab is made of them.")
    return said
