"""One fault after another under load, each measured at the cloud; the demo and the bench are made of this.

Knows nothing of what carries the messages (our daemon, a bridge): what it measures is when they arrive and
through which provider. A step is over when messages offered after the fault arrive through the uplink that is
expected, or when patience ends.
"""

import time
from dataclasses import dataclass

from . import plan
from .namespaces import LabError


@dataclass(frozen=True)
class Step:
    name: str
    began: float            # wall time just before the fault
    pause_s: float | None   # longest time without an arrival; None when it never recovered
    settled_s: float | None  # until messages came through the expected uplink
    via: str | None         # the uplink that carried them in the end


def received(lab, seconds):
    """Bytes that come to the cloud through each uplink in so many seconds."""
    def total():
        # As the recorder sees them: it lives in the cloud's namespace, and looking costs no process.
        rows = lab.path(f"/proc/{lab.inside_pid('recorder')}/net/dev").read_text().splitlines()
        return {row.split(":")[0].strip(): int(row.split(":")[1].split()[0]) for row in rows if ":" in row}
    before = total()
    time.sleep(seconds)
    after = total()
    return {uplink: after[uplink] - before[uplink] for uplink in plan.UPLINKS}


def carrying(lab, seconds=0.3):
    """The uplink over which the cloud receives most just now, or None."""
    grown = received(lab, seconds)
    best = max(grown, key=grown.get)
    return best if grown[best] > 300 else None


def step(lab, load, name, fault, expected, patience=60, settle=4):
    """Do the fault, wait until messages come through `expected`, let it settle, and measure the pause."""
    began = time.time()
    fault()
    via = settled = None
    while settled is None and time.time() - began < patience:
        since = time.time()
        via = carrying(lab)
        if via == expected:
            try:
                load.wait_flow(since, within=2)
                settled = time.time() - began
            except LabError:
                continue
    if settled is None:
        return Step(name, began, None, None, via)
    time.sleep(settle)
    return Step(name, began, load.pause(began), settled, carrying(lab))
