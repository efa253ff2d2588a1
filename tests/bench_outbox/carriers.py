"""What keeps the messages and carries them to the cloud: switchback, or mosquitto with its persistence and a bridge.

A carrier is launched afresh in a lab with its state in a place; `again` starts it once more with what it kept.
"""

import signal

from lab import daemon, plan

SERVICE = "mosquitto"
CONF = f"{plan.RUN}/mosquitto.conf"


class Switchback:
    name, said, ours = "switchback", "switchback", True

    def launch(self, lab, place, more=""):
        lab.state_dir = f"{place.path}/state"
        lab.daemon_fresh(daemon.config(failover='order = ["ethernet", "wifi", "cell"]', more=more))

    def again(self, lab):
        lab.daemon_start()

    def kill(self, lab):
        lab.stop(daemon.SERVICE, signal.SIGKILL)

    def pid(self, lab):
        return lab.inside_pid(daemon.SERVICE)

    def told(self, lab):
        return lab.daemon_log(5)


class Mosquitto:
    """`settings` are its lines about the disk and about limits; `eager` is how soon it looks for the cloud again.

    It is given the cloud's address: without a network a name would keep it from starting for half a minute.
    """

    ours = False

    def __init__(self, name, said, settings, eager=True):
        self.name, self.said, self.settings = name, said, settings
        self.eager = "keepalive_interval 5\nrestart_timeout 1\n" if eager else ""

    def launch(self, lab, place, more=""):
        store = f"{place.path}/mosquitto"
        lab.run(plan.GATEWAY, f"rm -rf {store}; mkdir -p {store}; rm -f {plan.LOGS}/{SERVICE}")
        lab.path(CONF).write_text(f"""user root
log_dest stderr
{self.settings.replace("@", store)}
listener {plan.PLAIN} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true

connection cloud
address {plan.CLOUD_ADDRESS}:{plan.TLS}
bridge_cafile {plan.PKI}/ca.pem
remote_clientid bridge
cleansession false
topic load/# out 1
{self.eager}""")
        self.again(lab)

    def again(self, lab):
        lab.start(SERVICE, plan.GATEWAY, ["mosquitto", "-c", CONF])

    def kill(self, lab):
        lab.stop(SERVICE, signal.SIGKILL)

    def pid(self, lab):
        return lab.inside_pid(SERVICE)

    def told(self, lab):
        return lab.log(SERVICE)[-500:]


CARRIERS = {carrier.name: carrier for carrier in (
    Switchback(),
    Mosquitto("default", "mosquitto, persistence as Debian ships it",
              "persistence true\npersistence_location @/", eager=False),
    # Only what waits in its queue counts as a change; without a limit in flight nothing would wait there.
    Mosquitto("every", "mosquitto, saved on every change, queue without limit",
              "persistence true\npersistence_location @/\nautosave_on_changes true\nautosave_interval 1\n"
              "max_queued_messages 0"),
    Mosquitto("plain", "mosquitto, nothing kept, no limits",
              "persistence false\nmax_queued_messages 0\nmax_inflight_messages 0"),
)}
