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
    """`persistence` are its lines about the disk; `unbounded` takes away the limits that lose messages.

    It is given the cloud's address: without a network a name would keep it from starting for half a minute.
    """

    ours = False

    def __init__(self, name, said, persistence, unbounded):
        self.name, self.said, self.persistence, self.unbounded = name, said, persistence, unbounded

    def launch(self, lab, place, more=""):
        store = f"{place.path}/mosquitto"
        lab.run(plan.GATEWAY, f"rm -rf {store}; mkdir -p {store}; rm -f {plan.LOGS}/{SERVICE}")
        limits = "max_queued_messages 0\nmax_inflight_messages 0\n" if self.unbounded else ""
        eager = "keepalive_interval 5\nrestart_timeout 1\n" if self.unbounded else ""
        lab.path(CONF).write_text(f"""user root
log_dest stderr
{self.persistence.replace("@", store)}
{limits}
listener {plan.PLAIN} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true

connection cloud
address {plan.CLOUD_ADDRESS}:{plan.TLS}
bridge_cafile {plan.PKI}/ca.pem
remote_clientid bridge
cleansession false
topic load/# out 1
{eager}""")
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
              "persistence true\npersistence_location @/", unbounded=False),
    Mosquitto("every", "mosquitto, saved on every change, no queue limits",
              "persistence true\npersistence_location @/\nautosave_on_changes true\nautosave_interval 1", unbounded=True),
    Mosquitto("plain", "mosquitto, nothing kept, no queue limits", "persistence false", unbounded=True),
)}
