"""Numbered messages in at the gateway, counted at the cloud: offered, acknowledged, arrived, lost, repeated.

Times are wall time of one kernel, so both ends compare. A *pause* is the longest time without an
arrival in a window, one message interval included; it counts every arrival, first or repeated. Lost is
offered minus arrived; a message that was not acknowledged within five seconds is counted as refused.
"""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass

from . import plan
from .namespaces import wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
REFUSED_AFTER = 5.0


@dataclass(frozen=True)
class Count:
    offered: int
    acked: int
    refused: int            # not acknowledged within five seconds of the offer
    worst_ack_s: float
    arrived: int            # distinct
    lost: int
    repeated: int

    def as_dict(self):
        return asdict(self)


class Load:
    """A stream of numbered QoS 1 messages from a local client to the cloud's recorder."""

    made = 0

    def __init__(self, lab, rate=20, size=64, port=plan.PLAIN, ns=plan.GATEWAY, name=None):
        Load.made += 1
        self.lab, self.rate, self.size, self.port = lab, rate, size, port
        self.ns = ns
        self.name = name or f"publisher-{Load.made}"
        self.topic = f"load/{self.name}"
        self.out = f"{plan.RUN}/{self.name}.jsonl"
        self.ended = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.lab.inside_pid(self.name):
            self.stop(settle=0)

    def start(self):
        self.lab.start(self.name, self.ns, [
            "/usr/bin/python3", os.path.join(HERE, "client.py"), "publish", "--topic", self.topic, "--id", self.name,
            "--rate", str(self.rate), "--size", str(self.size), "--port", str(self.port), "--out", self.out])
        wait_for(self.lab.path(self.out).exists, 5, "the publisher to start")
        return self

    def stop(self, settle=30):
        """No more offers; wait until all of it is acknowledged and has arrived, at most `settle` seconds."""
        self.lab.send_signal(self.name, signal.SIGTERM)
        self.ended = time.time()
        end = time.monotonic() + settle
        while time.monotonic() < end:
            count = self.count()
            if count.acked == count.offered and not count.lost:
                break
            time.sleep(0.1)
        if self.lab.inside_pid(self.name):
            self.lab.stop(self.name, signal.SIGKILL)
        return self.count()

    def count(self):
        offered, acked = {}, {}
        for line in read(self.lab, self.out):
            if "offered" in line:
                offered[line["n"]] = line["offered"]
            elif "acked" in line:
                acked[line["n"]] = line["acked"]
        arrivals = self.arrivals()
        numbers = {number for _, number in arrivals}
        now = time.time()
        delays = {n: acked.get(n, now) - offered[n] for n in offered}
        return Count(len(offered), len(acked), sum(delay > REFUSED_AFTER for delay in delays.values()),
                     round(max(delays.values(), default=0), 3), len(numbers),
                     len(set(offered) - numbers), len(arrivals) - len(numbers))

    def acked(self):
        """The numbers that were acknowledged."""
        return {line["n"] for line in read(self.lab, self.out) if "acked" in line}

    def arrivals(self):
        """[(time, number)] as the cloud saw them."""
        return [(line["at"], int(line["payload"].split()[0])) for line in arrivals(self.lab)
                if line["topic"].endswith(self.topic) and not line["retain"]]

    def pause(self, since, until=None):
        """Longest time without an arrival between two moments.

        Counted from the last arrival before `since`, or from `since` when nothing flowed then. The window ends with the offers at the latest: that nothing comes after them is no pause.
        """
        until = min(until or time.time(), self.ended or time.time())
        times = [at for at, _ in self.arrivals() if at <= until]
        before = [at for at in times if since - 1 < at < since]
        marks = [before[-1] if before else since] + [at for at in times if at >= since] + [until]
        return max(later - earlier for earlier, later in zip(marks, marks[1:]))

    def wait_flow(self, since, within=30, messages=3):
        """Until some messages that were offered after `since` have arrived."""
        def flowing():
            sent = {line["n"] for line in read(self.lab, self.out) if line.get("offered", 0) > since}
            return len(sent & {number for at, number in self.arrivals() if at > since}) >= messages
        wait_for(flowing, within, "fresh messages to arrive", every=0.1)


def arrivals(lab):
    return [line for line in read(lab, lab.recording_file) if "topic" in line]


def read(lab, path):
    """The whole lines of a JSON-lines file inside the lab."""
    try:
        content = lab.path(path).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("\n")]
