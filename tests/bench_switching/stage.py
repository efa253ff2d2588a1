"""One case in one lab: the networks made well, the carrier started afresh, something broken, and the figures noted.

Knows nothing of what carries the messages but how it is started: what it measures is when messages arrive at the cloud,
and through which provider. For switchback the daemon's own record around a figure that misses its goal is kept.
"""

import datetime
import re
import time

from lab import bridge, plan, trial
from lab.namespaces import LabError, wait_for

from .rows import ROWS

QUIET_BEFORE_A_FAULT = 3.0
EVIDENCE_LINES = 60
PREFERRED, NEXT = "eth", "wifi"


class Stage:
    def __init__(self, lab, carrier, r, patience, share):
        self.lab, self.carrier, self.r, self.patience = lab, carrier, r, patience
        self.share = share          # 0 to 1, other in every repetition: where a case may choose a moment
        self.figures = []           # (row, value, goal median, goal worst, evidence)
        self.noise = []             # gaps when nothing is broken, milliseconds: what the machine itself adds
        self.load = None
        self.flowing = False
        self.gap_began = None       # wall time of the last arrival before the gap measured last

    # The set of a case

    def online(self, rate=20, **launch):
        """Everything well, a fresh carrier, and its messages arrive through the preferred uplink; then some quiet."""
        self.well()
        self.load = self.lab.load(rate=rate).start()
        self.carrier.launch(self.lab, **launch)
        if rate:
            self.must(self.wait_via(PREFERRED, 30), "messages through the preferred uplink")
        else:
            self.must(self.message(30) is not None, "a first message")
        time.sleep(QUIET_BEFORE_A_FAULT)
        if rate:
            self.noise.append(self.load.gap(time.time() - 2)[0] * 1000)

    def well(self):
        self.carrier.stop(self.lab)
        self.heal()
        self.lab.wait_uplinks()

    def heal(self):
        for uplink in plan.UPLINKS:
            self.lab.heal(uplink)
            self.lab.carrier_up(uplink)

    def must(self, true, what):
        if not true:
            record = self.lab.daemon_log(5) if self.carrier.ours else self.lab.log(bridge.SERVICE)[-500:]
            raise LabError(f"waited in vain for {what}: {record}")

    def end(self):
        """Count the load, of switchback after everything is well again: nothing may be lost, ever.

        What a bridge that had not recovered still had to deliver is not called lost.
        """
        if self.carrier.ours:
            self.heal()
        patient = self.carrier.ours or self.flowing
        count = self.load.stop(settle=30 if patient else 0)
        return {"offered": count.offered, "repeated": count.repeated,
                "lost": count.lost if patient else 0, "undelivered": 0 if patient else count.lost}

    # Measuring; milliseconds, or None when it did not happen in the time of patience

    def gap(self, fault, expected):
        """The longest time without an arrival, less one interval, until messages come through `expected`."""
        began = time.time()
        fault()
        if not self.wait_via(expected, self.patience):
            return None
        return self.longest(began)

    def gap_of_the_move(self, repair, expected):
        """The same for a planned move: of switchback, which says when it moves, only the time around that."""
        began = time.time()
        repair()
        if not self.wait_via(expected, self.patience):
            return None
        if self.carrier.ours:
            moves = [at for at, event in self.events() if event["line"].startswith("connect #")]
            began = max([began, *(at - 0.2 - self.r / 1000 for at in moves)])
        return self.longest(began)

    def longest(self, began):
        time.sleep(0.5 + 2 * self.r / 1000)
        seconds, self.gap_began = self.load.gap(began)
        return seconds * 1000

    def wait_via(self, uplink, within):
        """Until messages offered from now on arrive, and through this uplink."""
        end = time.monotonic() + within
        self.flowing = False
        while not self.flowing and time.monotonic() < end:
            since = time.time()
            if trial.carrying(self.lab) == uplink:
                try:
                    self.load.wait_flow(since, within=2)
                    self.flowing = True
                except LabError:
                    pass
        return self.flowing

    def first_arrival(self, since):
        def arrived():
            return [at for at, _ in self.load.arrivals() if at > since]
        try:
            first = min(wait_for(arrived, self.patience, "an arrival", every=0.05))
        except LabError:
            self.flowing = False
            return None
        self.flowing = True
        return (first - since) * 1000

    def message(self, within=None):
        """Offer one message now: how long until the cloud has it?"""
        number, offered = self.load.offer()

        def arrived():
            return [at for at, arrival in self.load.arrivals() if arrival == number]
        try:
            first = min(wait_for(arrived, within or self.patience, "the message to arrive", every=0.05))
        except LabError:
            self.flowing = False
            return None
        self.flowing = True
        return (first - offered) * 1000

    def left(self, seconds):
        """Until the preferred uplink carries no more and stays left, looked at three times a second."""
        began = time.time()
        since = None
        while time.time() - began < seconds:
            now, came = time.time(), trial.received(self.lab, 0.3)
            # The handshake of a second connection is no traffic that has moved.
            moved = came[NEXT] > 300 and came[PREFERRED] < 200
            since = (since or now) if moved else None
            if since and now - since > 3:
                self.flowing = True
                return (since - began) * 1000
        self.flowing = False
        return None

    def welcomed_again(self, fault):
        """Until the cloud sees the carrier come anew, with no message to carry."""
        def welcomes():
            return self.lab.log("broker").count(f"as {self.carrier.client} ")
        before, began = welcomes(), time.time()
        fault()
        try:
            wait_for(lambda: welcomes() > before, self.patience, "a new connection", every=0.05)
        except LabError:
            self.flowing = False
            return None
        return (time.time() - began) * 1000

    def watch(self, seconds, every, act):
        """While act(n) is called every so many seconds: moves between uplinks, percentage of seconds with an arrival."""
        began = time.time()
        ways, step = [], 0
        while time.time() - began < seconds:
            if time.time() - began >= step * every:
                act(step)
                step += 1
            ways.append(trial.carrying(self.lab, 1))
        busy = {int(at - began) for at, _ in self.load.arrivals() if at >= began}
        carried = [PREFERRED, *(way for way in ways if way)]
        moves = sum(one != other for one, other in zip(carried, carried[1:]))
        whole = int(time.time() - began)
        return moves, 100 * len(busy & set(range(whole))) / whole

    def rttvar(self):
        """The kernel's figure for the connection over the preferred uplink, milliseconds."""
        network = plan.UPLINKS[PREFERRED].network
        told = self.lab.run(plan.GATEWAY, f"ss -Htino dst {plan.CLOUD_ADDRESS} and src {network}").stdout
        found = re.search(r" rtt:[\d.]+/([\d.]+)", told)
        return {"rttvar": float(found[1])} if found else {}

    # Notes

    def note(self, key, value, began=None, **facts):
        row = ROWS[key]
        median, worst = row.goal(self.r, facts)
        missed = self.carrier.ours and not row.met(value, median)
        self.figures.append({"row": key, "value": value, "goal": median, "goal_worst": worst,
                             "evidence": self.evidence(began) if missed and began else []})

    def evidence(self, began):
        """What the daemon has written from just before the fault on, with milliseconds since."""
        told = [f"{(at - began) * 1000:8.0f} {event['kind']:6} {event['line']}"
                for at, event in self.events() if at > began - 0.1]
        return told[:EVIDENCE_LINES] + self.messages(began)

    def events(self):
        """The daemon's own record: [(wall time, event)]."""
        return [(datetime.datetime.fromisoformat(event["time"]).timestamp(), event) for event in self.lab.events()]

    def messages(self, began):
        """What became of each message around the gap."""
        if self.gap_began is None:
            return []

        def after(at):
            return "never" if at is None else f"{(at - began) * 1000:.0f}"
        return [f"  message {number}: offered {after(offered)}, acknowledged {after(acked)}, arrived "
                + " ".join(map(after, arrived))
                for number, offered, acked, arrived in self.load.told(self.gap_began - 0.4, self.gap_began + 0.4)]
