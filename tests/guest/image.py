"""The disk of the virtual machine: a small Debian with a real systemd, NetworkManager and wpa_supplicant, made once by
mmdebstrap and kept in cargo's target directory (about 2 GB for each architecture). Says what is missing; nothing on this
machine changes but for that directory.
"""

import glob
import hashlib
import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.realpath(__file__))
RELEASE = "bookworm"
KERNEL = {"amd64": "linux-image-amd64", "arm64": "linux-image-arm64"}
PACKAGES = """systemd systemd-sysv udev dbus polkitd network-manager wpasupplicant hostapd iw wireless-regdb dnsmasq-base
    mosquitto mosquitto-clients openssl ca-certificates iproute2 iputils-ping kmod procps util-linux man-db bash-completion""".split()
DISK = "4G"

# What lies on the disk beside Debian: the world, the agent, and how NetworkManager is to use cable and radio.
FILES = {
    "etc/hostname": "gateway\n",
    "etc/hosts": "127.0.0.1 localhost gateway\n",
    "etc/fstab": "",
    "etc/systemd/system/agent.service": """[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service
[Service]
ExecStart=/usr/local/sbin/agent
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
OOMScoreAdjust=-1000
[Install]
WantedBy=sysinit.target
""",
    "etc/systemd/system/world.service": """[Unit]
DefaultDependencies=no
After=systemd-udev-trigger.service local-fs.target systemd-tmpfiles-setup.service
Before=network-pre.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/world up
[Install]
WantedBy=sysinit.target
""",
    "etc/NetworkManager/conf.d/machine.conf": "[keyfile]\nunmanaged-devices=interface-name:wlan1;interface-name:eth1;interface-name:world*\n",
    "etc/NetworkManager/system-connections/cable.nmconnection":
        "[connection]\nid=cable\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=disabled\n",
    "etc/NetworkManager/system-connections/depot.nmconnection":
        "[connection]\nid=depot\ntype=wifi\ninterface-name=wlan0\n[wifi]\nssid=depot\n[wifi-security]\nkey-mgmt=wpa-psk\n"
        "psk=not-a-secret\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=disabled\n",
    "etc/world/hostapd.conf": "interface=world1\ndriver=nl80211\nssid=depot\nhw_mode=g\nchannel=1\nwpa=2\n"
        "wpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\nwpa_passphrase=not-a-secret\n",
    "etc/world/dnsmasq.conf": "interface=world0\ninterface=world1\nno-resolv\nno-hosts\nbind-dynamic\n"
        "dhcp-range=192.0.2.10,192.0.2.20,1h\ndhcp-range=198.51.100.10,198.51.100.20,1h\ndhcp-authoritative\n"
        "host-record=broker.example.net,203.0.113.200\npid-file=/run/world/dnsmasq.pid\nleasefile-ro\n",
    "etc/world/mosquitto.conf": "per_listener_settings false\nallow_anonymous true\npersistence false\nuser root\n"
        "set_tcp_nodelay true\npid_file /run/world/mosquitto.pid\nlog_dest file /run/world/mosquitto.log\n"
        "connection_messages true\nlog_timestamp_format %Y-%m-%dT%H:%M:%S\nlistener 1883 203.0.113.200\n"
        "listener 8883 203.0.113.200\ncertfile /etc/world/server.pem\nkeyfile /etc/world/server.key\n",
}

# The initial RAM disk has what this machine's disk needs, no more.
BEFORE = """mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list >"$1/etc/initramfs-tools/conf.d/machine"
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >"$1/etc/initramfs-tools/modules\""""
AFTER = """chroot "$1" systemctl mask -q mosquitto.service ModemManager.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer man-db.timer e2scrub_all.timer e2scrub_reap.service getty@tty1.service systemd-pstore.service
chroot "$1" passwd -d root >/dev/null; rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap"""


def run(*command, **more):
    subprocess.run(command, check=True, **more)


def missing(architecture):
    qemu = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[architecture]
    wanted = {"mmdebstrap": "mmdebstrap", qemu: "qemu-system-x86 qemu-system-arm", "qemu-img": "qemu-utils",
              "mke2fs": "e2fsprogs", "openssl": "openssl", "dpkg-deb": "dpkg"}
    absent = [package for program, package in wanted.items() if not shutil.which(program)]
    if architecture == "arm64" and not os.path.exists("/proc/sys/fs/binfmt_misc/qemu-aarch64"):
        absent.append("qemu-user-static binfmt-support (and /proc/sys/fs/binfmt_misc mounted; update-binfmts --enable)")
    return absent


def pki(root):
    """A root that the gateway trusts and the broker's certificate, both good from today."""
    world = os.path.join(root, "etc/world")
    quiet = {"cwd": world, "stderr": subprocess.DEVNULL}
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650")
    run(*new, "-subj", "/CN=world", "-keyout", "ca.key", "-out", "ca.pem", **quiet)
    run(*new, "-subj", "/CN=broker.example.net", "-addext", "subjectAltName=DNS:broker.example.net",
        "-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-keyout", "server.key", "-out", "server.pem", **quiet)


def debian(architecture, cache):
    """The packages, as a tar file."""
    tar = os.path.join(cache, "root.tar")
    if not os.path.exists(tar):
        print(f"machine: making a Debian for {architecture}; minutes, once", flush=True)
        with open(os.path.join(cache, "mmdebstrap.log"), "w") as log:
            run("mmdebstrap", f"--architectures={architecture}", "--variant=minbase", "--mode=root",
                "--aptopt=Acquire::Languages \"none\"", "--dpkgopt=force-unsafe-io",
                "--include=" + ",".join(PACKAGES + [KERNEL[architecture]]), f"--essential-hook={BEFORE}",
                RELEASE, tar + ".new", "--format=tar", stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        os.rename(tar + ".new", tar)
    return tar


def make(architecture, target):
    """The paths of disk, kernel and initial RAM disk, made if they are not there or of another making."""
    cache = os.path.join(target, "machine", architecture)
    os.makedirs(cache, exist_ok=True)
    tar = debian(architecture, cache)
    told = hashlib.sha256(repr((FILES, AFTER, DISK)).encode())
    for name in ("world", "agent"):
        with open(os.path.join(HERE, name), "rb") as file:
            told.update(file.read())
    disk = os.path.join(cache, f"disk-{told.hexdigest()[:12]}")
    if not os.path.exists(disk):
        for old in glob.glob(os.path.join(cache, "disk-*")):
            os.unlink(old)
        root = os.path.join(cache, "root")
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        run("tar", "-xf", tar, "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*")
        for name, text in FILES.items():
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o600 if name.endswith(".nmconnection") else 0o644)
        for name in ("world", "agent"):
            shutil.copy(os.path.join(HERE, name), os.path.join(root, "usr/local/sbin"))
        pki(root)
        run("sh", "-ec", AFTER, "sh", root)
        run("systemctl", f"--root={root}", "enable", "-q", "agent.service", "world.service")
        for kind in ("vmlinuz", "initrd.img"):
            shutil.copy(glob.glob(os.path.join(root, "boot", kind + "-*"))[0], os.path.join(cache, kind))
        run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root, disk + ".new", DISK)
        shutil.rmtree(root)
        os.rename(disk + ".new", disk)
    return disk, os.path.join(cache, "vmlinuz"), os.path.join(cache, "initrd.img")
