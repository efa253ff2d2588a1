"""One case in one lab: a carrier with its state in a place, a recorder at the cloud that keeps up, and the figures.

Everything arrives under `load`; a probe is a message of its own under `load/probe`.
"""

import time

from lab import flood, plan
from lab.namespaces import LabError, wait_for

from .rows import ROWS

# What flood puts in front of a class: load, load/critical.
TOPIC = "load"
PROBE = "load/probe"


class Stage:
    def __init__(self, lab, carrier, place, r, quick):
        self.lab, self.carrier, self.place, self.r, self.quick = lab, carrier, place, r, quick
        self.ours = carrier.ours
        self.figures = []
        self.background = []
        self.recording = flood.Recording(lab, f"{TOPIC}/#", alone=True)

    def close(self):
        for publisher in self.background:
            publisher.stop()
        if self.carrier.pid(self.lab):
            self.carrier.kill(self.lab)

    def of(self, usual, quick):
        return quick if self.quick else usual

    # The set of a case

    def launch(self, more=""):
        self.carrier.launch(self.lab, self.place, more)

    def online(self, more=""):
        self.launch(more)
        self.must(self.probe(30) is not None, "a first message to arrive")

    def offline(self, more=""):
        """A carrier that has never seen the cloud."""
        self.links_down()
        self.launch(more)

    def must(self, true, what):
        if not true:
            raise LabError(f"waited in vain for {what}: {self.carrier.told(self.lab)}")

    def links_down(self):
        for uplink in plan.UPLINKS:
            self.lab.carrier_down(uplink)

    def links_up(self, *uplinks):
        """Gives the wall time just before the first of them came up."""
        began = time.time()
        for uplink in uplinks or plan.UPLINKS:
            self.lab.carrier_up(uplink)
        return began

    def narrow(self, uplink, bits):
        """The line from this provider to the cloud, and back to the gateway, carries so many bits a second.

        A router's queue of 400 ms in front of it; what does not fit is dropped.
        """
        for device in ("wan", "lan"):
            self.lab.run(uplink, f"tc qdisc replace dev {device} root tbf rate {bits}bit burst 3kb latency 400ms")

    # Messages

    def publish(self, **options):
        """To the end. Gives the publisher's summary."""
        self.carrier_listens()
        return flood.publish(self.lab, **{"topic": TOPIC, "size": 200, **options})

    def start(self, **options):
        publisher = flood.Publisher(self.lab, **{"topic": TOPIC, "size": 200, **options})
        self.background.append(publisher)
        return publisher

    def carrier_listens(self):
        wait_for(lambda: self.lab.run(plan.GATEWAY, f"ss -Hltn sport = :{plan.PLAIN}").stdout, 10,
                 f"the carrier to listen ({self.carrier.told(self.lab)})", every=0.05)

    def probe(self, patience):
        """One message now: milliseconds until the cloud has it, or None."""
        before = len(self.recording.under(PROBE))
        began = time.time()
        self.publish(topic=PROBE, count=1, id="probe")
        try:
            wait_for(lambda: len(self.recording.under(PROBE)) > before, patience, "the probe", every=0.01)
        except LabError:
            return None
        return (self.recording.under(PROBE)[-1].at - began) * 1000

    def wait_arrived(self, count, patience, topic=TOPIC):
        """Until so many numbers have arrived, or nothing has come for as long as patience. Gives how many did."""
        came, since = -1, time.monotonic()
        while time.monotonic() - since < patience:
            now = len(self.load(topic))
            if now >= count:
                break
            if now > came:
                came, since = now, time.monotonic()
            time.sleep(0.1)
        return len(self.load(topic))

    def load(self, topic=TOPIC):
        """The distinct numbers that arrived, probes left out."""
        return {arrival.number for arrival in self.arrivals(topic)}

    def arrivals(self, topic=TOPIC):
        return [arrival for arrival in self.recording.under(topic) if not arrival.topic.startswith(PROBE)]

    def received(self, uplink):
        """Bytes that came to the cloud through an uplink so far, as the recorder's namespace counts them."""
        rows = self.lab.path(f"/proc/{self.lab.inside_pid(self.recording.name)}/net/dev").read_text().splitlines()
        return next(int(row.split(":")[1].split()[0]) for row in rows if row.strip().startswith(f"{uplink}:"))

    def memory(self):
        """The carrier's share of the machine's memory, MB."""
        told = self.lab.path(f"/proc/{self.carrier.pid(self.lab)}/smaps_rollup").read_text()
        return int(told.split("\nPss:")[1].split()[0]) / 1024

    # Notes

    def note(self, key, value, **facts):
        self.figures.append({"row": ROWS[key].key, "value": value, **facts})
