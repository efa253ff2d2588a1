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
    """Numbered QoS 1 messages from a local client to the cloud's recorder: a stream, or at rate 0 by `offer`."""

    made = 0

    def __init__(self, lab, rate=20, size=64, port=plan.PLAIN, ns=plan.GATEWAY, name=None):
        Load.made += 1
        self.lab, self.rate, self.size, self.port = lab, rate, size, port
        self.ns = ns
        self.name = name or f"publisher-{Load.made}"
        self.topic = f"load/{self.name}"
        self.out = f"{plan.RUN}/{self.name}.jsonl"
        self.ended = None
        self.written = Tail(lab, self.out)
        self.recorded = Tail(lab, lab.recording_file)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.lab.inside_pid(self.name):
            self.stop(settle=0)

    def start(self):
        self.recorded.skip()
        self.lab.start(self.name, self.ns, [
            "/usr/bin/python3", os.path.join(HERE, "client.py"), "publish", "--topic", self.topic, "--id", self.name,
            "--rate", str(self.rate), "--size", str(self.size), "--port", str(self.port), "--out", self.out])
        wait_for(self.lab.path(self.out).exists, 5, "the publisher to start")
        return self

    def offer(self):
        """One message now, whatever the rate. Gives its number and the wall time at which it was offered."""
        before = len(self.offers())
        self.lab.send_signal(self.name, signal.SIGUSR1)
        wait_for(lambda: len(self.offers()) > before, 5, "the publisher to offer a message", every=0.005)
        return self.offers()[before]

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
        for line in self.lines():
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
        return {line["n"] for line in self.lines() if "acked" in line}

    def offers(self):
        """[(number, time)]"""
        return [(line["n"], line["offered"]) for line in self.lines() if "offered" in line]

    def lines(self):
        return self.written.lines()

    def arrivals(self):
        """[(time, number)] as the cloud saw them."""
        return [(line["at"], int(line["payload"].split()[0])) for line in self.recorded.lines()
                if line.get("topic", "").endswith(self.topic) and not line["retain"]]

    def pause(self, since, until=None):
        """Longest time without an arrival between two moments.

        Counted from the last arrival before `since`, or from `since` when nothing flowed then. The window ends with the offers at the latest: that nothing comes after them is no pause.
        """
        until = min(until or time.time(), self.ended or time.time())
        times = [at for at, _ in self.arrivals() if at <= until]
        before = [at for at in times if since - 1 < at < since]
        marks = [before[-1] if before else since] + [at for at in times if at >= since] + [until]
        return max(later - earlier for earlier, later in zip(marks, marks[1:]))

    def gap(self, since, until=None):
        """(seconds, began): the longest time without an arrival between two moments, less one message interval.

        Where the publisher itself waited longer than an interval before a message, that much is taken off instead.
        """
        offered, interval = dict(self.offers()), 1 / self.rate
        arrivals = [(at, number) for at, number in self.arrivals()
                    if since - 1 < at <= (until or at)]
        first = max((index for index, (at, _) in enumerate(arrivals) if at < since), default=0)
        return max(((at - earlier - max(interval, offered[number] - offered[before]), earlier)
                    for (earlier, before), (at, number) in zip(arrivals[first:], arrivals[first + 1:])),
                   default=(0.0, since))

    def told(self, since, until):
        """What became of the messages offered between two moments: (number, offered, acked or None, [arrived])."""
        acked = {line["n"]: line["acked"] for line in self.lines() if "acked" in line}
        arrivals = self.arrivals()
        return [(number, offered, acked.get(number), [at for at, arrived in arrivals if arrived == number])
                for number, offered in self.offers() if since < offered < until]

    def wait_flow(self, since, within=30, messages=3):
        """Until some messages that were offered after `since` have arrived."""
        def flowing():
            sent = {number for number, offered in self.offers() if offered > since}
            return len(sent & {number for at, number in self.arrivals() if at > since}) >= messages
        wait_for(flowing, within, "fresh messages to arrive", every=0.1)


class Tail:
    """The whole lines of a growing JSON-lines file inside the lab; each is read once."""

    def __init__(self, lab, path):
        self.lab, self.path = lab, path
        self.offset = 0
        self.seen = []

    def skip(self):
        """Leave out what is there already."""
        try:
            self.offset = self.lab.path(self.path).stat().st_size
        except FileNotFoundError:
            pass

    def lines(self):
        try:
            with self.lab.path(self.path).open("rb") as file:
                file.seek(self.offset)
                fresh = file.read()
        except FileNotFoundError:
            return self.seen
        whole = fresh[:fresh.rfind(b"\n") + 1]
        self.offset += len(whole)
        self.seen += [json.loads(line) for line in whole.splitlines()]
        return self.seen
