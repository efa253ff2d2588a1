"""What is done: one function per case, each with the rows of the table it fills.

A case says where the state lives, how far the cloud is and who is compared; it gets a stage in a fresh lab with the
links up and nothing launched. `--only` takes the names of these functions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from . import places
from .stage import TOPIC

CASES = {}
PATIENCE = 30


@dataclass(frozen=True)
class Case:
    name: str
    act: Callable
    place: Callable
    r: float                 # round trip to the cloud, milliseconds
    beside: tuple            # the alternatives that are worth their time here
    once: bool               # takes minutes, or hardly varies


def case(place=places.Directory, r=60, beside=("default", "every"), once=False):
    def keep(act):
        CASES[act.__name__] = Case(act.__name__, act, place, r, beside, once)
        return act
    return keep


@case()
def kill(stage):
    stage.offline()
    acked = stage.publish(count=2000, seconds=60)["acked"]
    stage.carrier.kill(stage.lab)
    stage.carrier.again(stage.lab)
    stage.links_up()
    stage.wait_arrived(2000, PATIENCE)
    time.sleep(1)
    stage.note("kill-delivered", len(stage.load()), acked=acked)
    stage.note("kill-repeated", len(stage.arrivals()) - len(stage.load()))


@case()
def fresh(stage):
    """The publisher is there before the carrier; the break comes when the first messages have arrived."""
    publisher = stage.start(count=10_000, rate=2000, open=1000, seconds=90)
    stage.launch()
    stage.must(stage.wait_arrived(50, PATIENCE) >= 50, "the first messages")
    stage.lab.silent("eth")
    time.sleep(10)
    stage.lab.heal("eth")
    acked = publisher.wait(100)["acked"]
    arrived = stage.wait_arrived(10_000, 60)
    stage.note("fresh-lost", len(publisher.acked() - stage.load()), acked=acked, arrived=arrived)
    seen = {}
    for arrival in stage.arrivals():
        seen.setdefault(arrival.number, []).append(arrival.identity)
    repeats = [names for names in seen.values() if len(names) > 1]
    stage.note("fresh-repeated", sum(len(names) - 1 for names in repeats))
    stage.note("fresh-strange", sum(len(set(names)) > 1 or "-" in names for names in repeats))


@case()
def outage(stage):
    stage.online()
    stage.links_down()
    seconds = stage.of(120, 20)
    stage.start(count=(seconds + 60) * 20, rate=20, seconds=seconds + 60)
    time.sleep(seconds)
    began = stage.links_up("eth")
    deadline = time.time() + PATIENCE
    while not (after := [arrival.at for arrival in stage.arrivals() if arrival.at > began]) and time.time() < deadline:
        time.sleep(0.02)
    stage.note("outage", (after[0] - began) * 1000 if after else None)


# Bytes. The file system commits its journal every 5 s; what it has to say about our writes is counted.

SETTLE = 6


def bytes_per_message(stage, key, **load):
    time.sleep(1)
    before = stage.place.written()
    acked = stage.publish(**load)["acked"]
    time.sleep(SETTLE)
    stage.note(key, (stage.place.written() - before) / max(acked, 1), acked=acked)


@case(place=places.Disk)
def bytes_online(stage):
    stage.online()
    bytes_per_message(stage, "bytes-online", count=2000, rate=500)


@case(place=places.Disk)
def bytes_bulk(stage):
    """Ours twice: its files are filled with zeros when they are made, once in their life; the second lap is every later one."""
    stage.offline()
    count = stage.of(100_000, 20_000) if stage.ours else 1000
    bytes_per_message(stage, "bytes-bulk", count=count, seconds=120)
    if stage.ours:
        stage.links_up()
        stage.wait_arrived(count, PATIENCE)
        stage.links_down()
        bytes_per_message(stage, "bytes-again", count=count, first=1 + count, seconds=120)


@case(place=places.Disk)
def bytes_lone(stage):
    """As many as fill a megabyte of ours, so that blocks written beforehand are counted in proportion."""
    stage.offline()
    bytes_per_message(stage, "bytes-lone", count=4000 if stage.ours else 500, open=1)


@case(place=places.Disk, beside=("default",))
def bytes_commit(stage):
    """Behind a first message, so that the blocks that are written beforehand exist: they last for thousands."""
    stage.offline('[outbox]\ndurability = "batch"\ncommit_interval = "10s"')
    stage.publish(count=1, first=1_000_000)
    time.sleep(SETTLE)
    seconds = stage.of(60, 30)
    bytes_per_message(stage, "bytes-commit", count=seconds, rate=1, seconds=seconds + 15)


@case(r=0)
def rate(stage):
    stage.offline()
    sync, sync_p99 = stage.place.sync_ms()
    syncs = dict(sync=sync, sync_p99=sync_p99)
    stage.carrier_listens()
    told = stage.publish(count=stage.of(300_000, 60_000), seconds=20)
    stage.note("rate", told["acked"] / told["seconds"], **syncs)
    stage.note("rate-p99", told["ack_ms"]["p99"], **syncs)
    told = stage.publish(count=5000, rate=1000, seconds=20, id="paced")
    stage.note("paced-p99", told["ack_ms"]["p99"], **syncs, median=told["ack_ms"]["p50"])


@case(beside=("plain",))
def drain(stage):
    """Over one uplink of 2 Mbit/s: a critical stream alone first, then the same beside the backlog."""
    for uplink in ("wifi", "cell"):
        stage.lab.carrier_down(uplink)
    stage.narrow("eth", 2_000_000)
    stage.online()
    usual = fresh_stream(stage, 10)
    usual.wait(30)
    stage.wait_arrived(100, PATIENCE, FRESH)
    normal = delays(stage, usual, 0, time.time())
    stage.links_down()
    count = stage.of(30_000, 10_000)
    acked = stage.publish(topic=BACKLOG, count=count, seconds=60)["acked"]
    beside = fresh_stream(stage, 60)
    stage.links_up("eth")
    stage.must(stage.wait_arrived(1, PATIENCE, BACKLOG), "the backlog to begin to arrive")
    began, received = time.time(), stage.received("eth")
    stage.wait_arrived(acked, 10, BACKLOG)
    received = stage.received("eth") - received
    backlog = stage.arrivals(BACKLOG)
    ended = backlog[-1].at
    stage.note("drain-share", received * 8 / (ended - began) / 2_000_000 * 100, backlog=len(backlog), acked=acked,
               messages_a_second=len(backlog) / (ended - began))
    stage.note("drain-order", out_of_order(backlog))
    beside.wait(90)
    stage.wait_arrived(0, 3)
    meanwhile = delays(stage, beside, began, ended)
    stage.note("drain-fresh", p99(meanwhile) / p99(normal) if meanwhile else None, normal_ms=p99(normal) * 1000,
               meanwhile_p99=p99(meanwhile) * 1000 if meanwhile else None,
               meanwhile_ms=[round(delay * 1000) for delay in meanwhile[::10]], fresh=len(meanwhile))


BACKLOG, FRESH = f"{TOPIC}/backlog", f"{TOPIC}/fresh"


def fresh_stream(stage, seconds):
    # Numbers never repeat, so that one recording serves both streams.
    first = 1 + 100_000 * len(stage.background)
    return stage.start(topic=FRESH, **{"class": "critical"}, rate=10, count=seconds * 10, first=first, seconds=seconds + 20)


def delays(stage, publisher, since, until):
    """Seconds from offer to first arrival of what was offered in that time; what never came counts as a minute."""
    arrived = {}
    for arrival in stage.arrivals(FRESH):
        arrived.setdefault(arrival.number, arrival.at)
    return [arrived.get(number, at + 60) - at for number, at in publisher.lines("o") if since <= at < until]


def p99(found):
    return sorted(found)[int(len(found) * 0.99)]


def out_of_order(arrivals):
    """Messages whose first arrival comes behind a later one's."""
    highest, seen, late = 0, set(), 0
    for arrival in arrivals:
        if arrival.number not in seen:
            late += arrival.number < highest
            highest = max(highest, arrival.number)
            seen.add(arrival.number)
    return late


@case(r=0, beside=("plain", "every"))
def through(stage):
    """From the first offer to the last arrival. Saved on every change it would take hours: what arrives in 20 s counts."""
    stage.online()
    count = stage.of(200_000, 50_000)
    began = time.time()
    told = stage.publish(count=count, seconds=20)
    stage.wait_arrived(told["acked"], 5)
    arrivals = stage.arrivals()
    stage.note("through", len(stage.load()) / (arrivals[-1].at - began), offered=told["offered"])


@case(beside=("plain",))
def behind(stage):
    """Three times, while the backlog lasts; the worst counts."""
    for uplink in ("wifi", "cell"):
        stage.lab.carrier_down(uplink)
    stage.narrow("eth", 512_000)
    stage.online()
    stage.links_down()
    acked = stage.publish(topic=BACKLOG, count=10_000, seconds=60)["acked"]
    stage.links_up("eth")
    stage.must(stage.wait_arrived(1, PATIENCE, BACKLOG), "the backlog to begin to arrive")
    took = []
    for number in range(3):
        time.sleep(2)
        first = 1 + number
        began = time.time()
        publisher = stage.start(topic=FRESH, **{"class": "critical"}, count=1, first=first, seconds=60)
        left = acked - len(stage.load(BACKLOG))
        stage.wait_arrived(first, 60, FRESH)
        came = {arrival.number: arrival.at for arrival in reversed(stage.arrivals(FRESH))}
        offered = dict(publisher.lines("o")).get(first, began)
        took.append((came.get(first, offered + 60) - offered) * 1000)
        if not stage.ours:
            break
    stage.note("behind", max(took), all=took, left=left)


@case(place=lambda lab: places.Disk(lab, "24M"), r=0, beside=("default", "every"))
def full(stage):
    """A disk that fills while the cloud is away; killed when nothing more is taken; then some room again."""
    ballast = f"{stage.place.path}/ballast"
    # What is saved whole on every change takes thousands of messages in this time, not ten thousands.
    megabytes = stage.of(8, 14) if stage.carrier.name != "every" else 20
    stage.lab.run("gateway", f"head -c {megabytes}M /dev/zero >{ballast}")
    stage.offline()
    publisher = stage.start(count=200_000, open=100, seconds=20)
    publisher.wait(60)
    promised = publisher.acked()
    stage.carrier.kill(stage.lab)
    stage.carrier.again(stage.lab)
    time.sleep(3)
    starts = stage.carrier.pid(stage.lab) is not None
    stage.lab.run("gateway", f"rm {ballast}")
    if not starts:
        stage.carrier.again(stage.lab)
    time.sleep(3)
    runs = stage.carrier.pid(stage.lab) is not None
    later = stage.publish(count=100, first=1_000_001, seconds=10, id="later")["acked"] if runs else 0
    stage.links_up()
    stage.wait_arrived(len(promised) + later if runs else 0, PATIENCE)
    stage.note("full-lost", len(promised - stage.load()), acked=len(promised))
    stage.note("full-starts", int(starts))
    stage.note("full-heals", int(later == 100))


@case(r=0, beside=(), once=True)
def recovery(stage):
    """All three classes that live on disk are full, or nearly; a start after kill -9, with nothing in the page cache."""
    stage.offline()
    stage.carrier_listens()
    most, kept = stage.of(1_000_000, 200_000), 0
    for turn, name in enumerate(("bulk", "critical", "normal")):
        told = stage.publish(**{"class": name}, count=most, first=1 + turn * most, seconds=60, id=name)
        kept += told["acked"]
    size = int(stage.lab.run("gateway", f"du -sb {stage.place.path}").stdout.split()[0])
    stage.carrier.kill(stage.lab)
    stage.links_up()
    stage.lab.wait_uplinks()
    stage.place.forget()
    began = time.time()
    stage.carrier.again(stage.lab)
    stage.must(stage.wait_arrived(1, PATIENCE), "the first message")
    stage.note("recovery", (stage.arrivals()[0].at - began) * 1000, bytes=size, messages=kept)


@case(r=0, beside=("default", "plain"), once=True)
def memory(stage):
    stage.online('[outbox]\nmax_size = "1GiB"')
    time.sleep(10)
    stage.note("memory-idle", stage.memory())
    stage.links_down()
    acked = stage.publish(count=stage.of(1_000_000, 100_000), seconds=300)["acked"]
    time.sleep(10)
    stage.note("memory-full", stage.memory(), acked=acked)
