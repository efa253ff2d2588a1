"""Everything that can be done to the networks, the name servers, the broker and the modem of a lab.

Each fault is undone by its opposite; all of them act inside the lab's namespaces only. Where a fault
lives in a provider's router, the link, the DHCP server and the gateway's address stay as they are.
`uplink` is always one of eth, wifi, cell.
"""

import signal
import time

from . import plan
from .namespaces import LabError, wait_for


class Faults:
    """Mixed into Lab; needs run, start, send_signal, stop and inside_pid."""

    # Links

    def carrier_down(self, uplink):
        """The cable is pulled (the provider's end goes down, so carrier is lost)."""
        self.run(plan.GATEWAY, f"ip -n {uplink} link set lan down")

    def carrier_up(self, uplink):
        self.run(plan.GATEWAY, f"ip -n {uplink} link set lan up")

    # Provider's router

    def silent(self, uplink, up=True, down=True, dns=False):
        """Packets vanish, both ways or one way, and with `dns` the name server is gone as well."""
        for chain, wanted in (("up", up), ("down", down), ("dns", dns)):
            if wanted:
                self._fault(uplink, chain, "drop")

    def lossy(self, uplink, percent):
        """So many of a hundred packets vanish, each way."""
        for chain in ("up", "down"):
            self._fault(uplink, chain, f"numgen random mod 100 '<' {int(percent)} drop")

    def reset(self, uplink):
        """Whatever the gateway sends over TCP is answered with RST."""
        self._fault(uplink, "up", "meta l4proto tcp reject with tcp reset")

    def no_route(self, uplink):
        """The provider answers with ICMP network unreachable."""
        self._fault(uplink, "up", "reject with icmp type net-unreachable")

    def dns_dead(self, uplink, refused=False):
        """The provider's name server stops answering, or refuses with ICMP."""
        self._fault(uplink, "dns", "reject" if refused else "drop")

    def dhcp_dead(self, uplink):
        self._fault(uplink, "dhcp", "drop")

    def nat_forgets(self, uplink):
        """The provider forgets every connection, as a carrier's NAT does, and drops what it no longer knows."""
        self.run(uplink, "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0; conntrack -F 2>/dev/null")

    def heal(self, uplink):
        """The provider's router is well again."""
        self.run(uplink, "".join(f"nft flush chain ip fault {chain}; " for chain in ("up", "down", "dns", "dhcp")))

    def _fault(self, uplink, chain, rule):
        self.run(uplink, f"nft add rule ip fault {chain} {rule}")

    # Broker

    def broker_kill(self):
        self.stop("broker", signal.SIGKILL)

    def broker_start(self):
        """Start the broker; the doors towards the providers open once the recorder is back.

        Else the gateway could deliver before the cloud's own subscriber exists, and the count would
        blame the gateway for it. Until then the doors refuse, exactly as with no broker. Gives the wall time at
        which they opened.
        """
        recorders = self.recorders_subscribed()
        self.run(plan.CLOUD, 'nft add rule inet fault doors iifname != "lo" meta l4proto tcp reject with tcp reset')
        self.start_service("broker")
        try:
            self.wait_broker()
            wait_for(lambda: self.recorders_subscribed() > recorders or not self.recording, 10,
                     "the recorder to subscribe again")
        finally:
            opened = self.run(plan.CLOUD, "nft flush chain inet fault doors; date +%s.%N").stdout
        return float(opened)

    def broker_restart(self):
        self.broker_kill()
        self.broker_start()

    def broker_freeze(self):
        self.send_signal("broker", signal.SIGSTOP)

    def broker_thaw(self):
        self.send_signal("broker", signal.SIGCONT)

    # NetworkManager, bus, modem

    def network_manager_kill(self):
        self.stop("network-manager", signal.SIGKILL)

    def network_manager_start(self):
        self.start_service("network-manager")

    def network_manager_restart(self):
        self.stop("network-manager", signal.SIGTERM)
        self.network_manager_start()

    def bearer_drop(self):
        """The mobile network ends the data call."""
        self._modem("Drop")

    def modem_refuses(self, yes=True):
        self._modem("Refuse", "b", str(yes).lower())

    def modem_registered(self, yes=True):
        self._modem("Register", "b", str(yes).lower())

    def modem_signal(self, percent):
        self._modem("Signal", "u", str(percent))

    def modem_unplug(self):
        """The modem leaves the USB port: ModemManager's object and the network device go."""
        self._modem("Remove")
        self.run(plan.GATEWAY, f"ip link delete {plan.UPLINKS['cell'].device}")

    def modem_plug(self):
        self.run(plan.GATEWAY, ["/usr/bin/python3", "-c",
                                "import sys; sys.path.insert(0, sys.argv[1]); from lab import inside, plan; "
                                "inside.plug(plan.UPLINKS['cell'])", self.package_parent])
        self._modem("Insert")

    def _modem(self, method, *arguments):
        self.run(plan.GATEWAY, ["busctl", "call", "org.freedesktop.ModemManager1", "/lab/Modem",
                                "example.lab.Modem", method, *arguments])


NAMES = sorted(name for name in vars(Faults) if not name.startswith("_"))


def apply(lab, words):
    """Do the fault that the words of a command line name: `silent eth`, `broker-kill`."""
    name = words[0].replace("-", "_")
    if name == "one_way_up":
        return lab.silent(words[1], down=False)
    if name == "one_way_down":
        return lab.silent(words[1], up=False)
    if name not in NAMES:
        raise LabError(f"no fault called {words[0]}; there are: one-way-up, one-way-down, "
                       + ", ".join(known.replace("_", "-") for known in NAMES))
    began = time.monotonic()
    getattr(Faults, name)(lab, *words[1:])
    return time.monotonic() - began
