#!/usr/bin/python3
"""The first process of a lab: it builds the networks, says "ready", and buries the dead.

Started by laboratory.py through unshare(1) as process 1 of its own pid namespace, in fresh mount,
network, uts and ipc namespaces; its own network namespace is the gateway. Always true: whatever it
makes is private to these namespaces, so its death, however sudden, undoes all of it. It never touches
a file, link or process of the machine outside, and starts no service (laboratory.py does).

    inside.py --name=NAME [eth=MS] [wifi=MS] [cell=MS]     one-way delays towards the cloud
"""

import os
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from lab import plan  # noqa: E402


def sh(line, text=""):
    """A line for the shell; what goes wrong ends the lab with one sentence."""
    done = subprocess.run(["sh", "-ec", line], input=text, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"lab: this machine would not do `{line.strip()}`: {done.stdout.strip()}")


def private_places():
    """Own /run, /etc and NetworkManager state; /sys of this network namespace, read-only.

    Read-only, because NetworkManager waits for ever for udev where /sys can be written.
    """
    sh("mount -t tmpfs -o mode=755,size=256m lab-run /run")
    for place in (plan.RUN, plan.LOGS, plan.PKI, plan.STATE_DIR, plan.RUN + "/pid", plan.RUN + "/etc",
                  plan.RUN + "/nm", plan.RUNTIME_DIR, "/run/dbus", "/run/netns"):
        os.makedirs(place, exist_ok=True)
    sh(f"cp -a /etc/. {plan.RUN}/etc/ && mount --bind {plan.RUN}/etc /etc")
    sh(f"mkdir -p /var/lib/NetworkManager && mount --bind {plan.RUN}/nm /var/lib/NetworkManager")
    sh("mount -t sysfs -o ro,nosuid,nodev,noexec lab-sys /sys")
    sh("rm -rf /etc/NetworkManager /etc/resolv.conf /etc/switchback")
    sh("mkdir -p /etc/NetworkManager/system-connections /etc/switchback && touch /etc/resolv.conf")
    sh("echo gateway >/etc/hostname; hostname gateway; echo '127.0.0.1 localhost gateway' >/etc/hosts")


def networks(delays):
    """Three providers and a cloud around the gateway; NAT and honest filtering at each provider."""
    sh("ip link set lo up")
    # What distributions set: loose reverse-path filtering. Strict would break every standby uplink.
    sh("sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2 net.ipv4.ip_forward=0")
    sh(f"ip netns add {plan.CLOUD} && ip -n {plan.CLOUD} link set lo up")
    sh(f"ip -n {plan.CLOUD} address add {plan.CLOUD_ADDRESS}/32 dev lo")
    for up in plan.UPLINKS.values():
        sh(f"ip netns add {up.name} && ip -n {up.name} link set lo up")
        in_ns = f"nsenter --net=/run/netns/{up.name}"
        sh(f"{in_ns} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0"
           " net.ipv4.conf.default.rp_filter=0")
        long_distance(up, delays.get(up.name))
        sh(f"ip -n {up.name} address add {up.wan}/30 dev wan && ip -n {up.name} link set wan up")
        sh(f"ip -n {plan.CLOUD} address add {up.wan_cloud}/30 dev {up.name}")
        sh(f"ip -n {plan.CLOUD} link set {up.name} up")
        acquainted(up)
        sh(f"ip -n {up.name} route add default via {up.wan_cloud}")
        plug(up)
        sh(f"{in_ns} nft -f -", provider_rules(up))
    sh(f"nsenter --net=/run/netns/{plan.CLOUD} nft -f -",
       "table inet fault {\n chain doors { type filter hook input priority 0; }\n}\n")


def long_distance(up, milliseconds):
    """The line between a provider and the cloud, with a delay one way if one is asked for."""
    if not milliseconds:
        sh(f"ip -n {up.name} link add wan type veth peer name {up.name} netns {plan.CLOUD}")
        return
    command = [sys.executable, os.path.join(HERE, "wire.py"), up.name, "wan", plan.CLOUD, up.name, str(milliseconds)]
    wire = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if wire.stdout.readline() != b"ready\n":
        sys.exit("lab: delays need /dev/net/tun (CONFIG_TUN)")


def acquainted(up):
    """Both ends of the long line know each other, as routers in use do: else the first packet waits for ARP."""
    sh(f"""hardware() {{ ip -n $1 -o link show $2 | sed 's/.*link.ether //; s/ .*//'; }}
ip -n {up.name} neigh replace {up.wan_cloud} lladdr $(hardware {plan.CLOUD} {up.name}) dev wan nud permanent
ip -n {plan.CLOUD} neigh replace {up.wan} lladdr $(hardware {up.name} wan) dev {up.name} nud permanent""")


def plug(up):
    """The cable between the gateway and a provider."""
    sh(f"ip link add {up.device} type veth peer name lan netns {up.name}")
    sh(f"ip -n {up.name} address add {up.router}/{plan.PREFIX} dev lan")
    sh(f"ip -n {up.name} link set lan up && ip link set {up.device} up")


def provider_rules(up):
    """NAT towards the cloud; foreign sources and invalid packets dropped; empty chains for faults."""
    return f"""
table ip provider {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ct state invalid drop
    iifname "lan" ip saddr != {up.network} drop
  }}
  chain nat {{
    type nat hook postrouting priority 100;
    oifname "wan" masquerade
  }}
}}
table ip fault {{
  chain up {{ }}
  chain down {{ }}
  chain dns {{ }}
  chain dhcp {{ }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "lan" jump up
    iifname "wan" jump down
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "lan" udp dport 53 jump dns
    iifname "lan" tcp dport 53 jump dns
    iifname "lan" udp dport 67 jump dhcp
  }}
}}
"""


def certificates():
    """A CA of this lab's own, the broker's certificate, a client's, and a CA nobody should trust."""
    sh(f"""
cd {plan.PKI}
key() {{ openssl ecparam -name prime256v1 -genkey -noout -out $1.key; }}
ca() {{ key $1; openssl req -x509 -new -key $1.key -days 30 -subj "/CN=$2" -out $1.pem \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign; }}
leaf() {{ key $1; openssl req -new -key $1.key -subj "/CN=$2" -out $1.csr
  printf '%s\\n' "$3" basicConstraints=CA:FALSE >$1.ext
  openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile $1.ext -out $1.pem; }}
ca ca "switchback lab CA"; ca other-ca "some other CA"
leaf broker {plan.BROKER} subjectAltName=DNS:{plan.BROKER},IP:{plan.CLOUD_ADDRESS}
leaf client gw extendedKeyUsage=clientAuth
mosquitto_passwd -b -c password {plan.USER} {plan.PASSWORD}
chmod 644 *
""")


def main():
    os.umask(0o022)
    private_places()
    networks({name: float(value) for name, value in (word.split("=") for word in sys.argv[2:])})
    certificates()
    print("ready", flush=True)
    os.close(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})


if __name__ == "__main__":
    main()
