"""What carries the messages from the gateway to the cloud: switchback, or the plain alternative, each in some variants.

A carrier knows how it is started afresh in a lab and under which name the cloud knows it. It measures nothing.
"""

import signal

from lab import bridge, daemon

# Short, so that repetitions are quick; it delays the return to a better uplink and nothing else.
HOLD_DOWN = "3s"


class Switchback:
    ours = True
    client = "lab-gateway"
    lab_settings = {}

    def __init__(self, name, said, more=""):
        self.name, self.said, self.more = name, said, more

    def launch(self, lab, hold_down=HOLD_DOWN):
        """A daemon that remembers nothing; waits for nothing."""
        text = daemon.config(hold_down=hold_down, failover='order = ["ethernet", "wifi", "cell"]', more=self.more)
        lab.daemon_fresh(text)

    def stop(self, lab):
        if lab.daemon_running():
            lab.daemon_kill()


class Bridge:
    ours = False
    client = bridge.CLIENT

    def __init__(self, variant):
        self.name, self.variant, self.said = variant.name, variant, bridge.SAID[variant.name]
        self.lab_settings = variant.lab_settings()

    def launch(self, lab, hold_down=None):
        bridge.launch(lab, self.variant)

    def stop(self, lab):
        lab.stop(bridge.SERVICE, signal.SIGKILL)


CARRIERS = {carrier.name: carrier for carrier in (
    Switchback("switchback", "switchback"),
    # [uplink.wifi] is the last section of the lab's configuration.
    Switchback("warm", 'switchback, `standby = "warm"` on Wi-Fi', 'standby = "warm"'),
    *map(Bridge, bridge.VARIANTS.values()),
)}
