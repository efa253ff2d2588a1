"""Many messages in at the gateway and out at the cloud, faster than the lab's Python client could: `flood.rs`, driven.

The program is compiled when it is first asked for (rustc, standard library only) and kept beside cargo's output. A
`Recording` is what came to the cloud; `publish` runs a publisher to its end, `start` leaves it running.
"""

import json
import os
import signal
import subprocess
from collections import namedtuple
from pathlib import Path

from . import plan
from .daemon import REPOSITORY
from .namespaces import LabError, wait_for

SOURCE = Path(__file__).resolve().parent / "flood.rs"
Arrival = namedtuple("Arrival", "at topic number identity dup qos")


def program():
    """The compiled program's path; compiles it where its source is newer."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
    built = (target / "flood").resolve()
    if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
        target.mkdir(parents=True, exist_ok=True)
        fresh = built.with_name(f"flood-{os.getpid()}")
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", fresh, SOURCE], check=True)
        fresh.rename(built)
    return str(built)


def words(**options):
    """Keyword arguments as the program's options; what is None is left out, True stands for itself."""
    found = []
    for name, value in options.items():
        if value is not None:
            found += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


def publish(lab, seconds=60, ns=plan.GATEWAY, **options):
    """Publish to the end, at most so many seconds. Gives the publisher's own summary."""
    done = lab.run(ns, [program(), "publish", *words(seconds=seconds, **options)], timeout=seconds + 20)
    return json.loads(done.stdout)


class Publisher:
    """A publisher in the background, with its log."""

    made = 0

    def __init__(self, lab, ns=plan.GATEWAY, **options):
        Publisher.made += 1
        self.lab, self.name = lab, f"flood-{Publisher.made}"
        self.log = f"{plan.RUN}/{self.name}.log"
        lab.path(self.log).write_text("")
        lab.start(self.name, ns, [program(), "publish", *words(log=self.log, id=self.name, **options)])

    def running(self):
        return self.lab.inside_pid(self.name) is not None

    def wait(self, within):
        """Until it has ended. Gives its summary."""
        wait_for(lambda: not self.running(), within, f"{self.name} to end", every=0.1)
        told = self.lab.log(self.name).strip().splitlines()
        if not told or not told[-1].startswith("{"):
            raise LabError(f"{self.name} ended without a word: {told[-3:]}")
        return json.loads(told[-1])

    def stop(self):
        if self.running():
            self.lab.stop(self.name, signal.SIGKILL)

    def lines(self, what):
        """[(number, wall time)] of the messages offered ("o"), acknowledged ("a") or refused ("r")."""
        told = (line.split() for line in self.lab.path(self.log).read_text().splitlines())
        return [(int(line[1]), float(line[2])) for line in told if len(line) > 2 and line[0] == what]

    def acked(self):
        return {number for number, _ in self.lines("a")}


class Recording:
    """What arrives at the cloud under `topic`, by number, with identities.

    Beside the lab's own recorder, or `alone` in its place, where that one would be too slow.
    """

    def __init__(self, lab, topic="#", alone=False, name="flood-recorder"):
        self.lab, self.name = lab, name
        self.out = f"{plan.RUN}/{name}.txt"
        self.offset, self.seen = 0, []
        if alone and lab.recording:
            lab.stop("recorder", signal.SIGKILL)
            lab.recording = False
        lab.path(self.out).write_text("")
        lab.start(name, plan.CLOUD, [program(), "record", *words(topic=topic, out=self.out, id=name, keep=True)])
        wait_for(lambda: "subscribed" in lab.path(self.out).read_text(), 10, "the recorder to subscribe")

    def stop(self):
        if self.lab.inside_pid(self.name):
            self.lab.stop(self.name, signal.SIGKILL)

    def arrivals(self):
        """Every arrival so far, in order."""
        with self.lab.path(self.out).open("rb") as file:
            file.seek(self.offset)
            fresh = file.read()
        whole = fresh[:fresh.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            told = line.split()
            if len(told) == 6 and told[2].isdigit():
                self.seen.append(Arrival(float(told[0]), told[1], int(told[2]), told[3], told[4] == "1", int(told[5])))
        return self.seen

    def numbers(self, topic="load"):
        """The distinct numbers that arrived under a topic or below it."""
        return {arrival.number for arrival in self.under(topic)}

    def under(self, topic):
        return [arrival for arrival in self.arrivals() if (arrival.topic + "/").startswith(topic + "/")]
