"""What is done to the networks: one function per case, each with the rows of the table it fills.

A case starts with everything well, a fresh carrier and a fresh publisher (`stage.online`), and leaves whatever mess it
likes. `--only` takes the names of these functions. A case with `ours` is about the daemon's own promises.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from .stage import NEXT, PREFERRED

CASES = {}


@dataclass(frozen=True)
class Case:
    name: str
    act: Callable
    long: bool
    warm: bool      # worth a row of its own when the next uplink is kept warm
    only: bool      # only for switchback


def case(long=False, warm=False, ours=False):
    def keep(act):
        CASES[act.__name__] = Case(act.__name__, act, long, warm, ours)
        return act
    return keep


@case(warm=True)
def cable(stage):
    stage.online()
    began = time.time()
    gap = stage.gap(lambda: stage.lab.carrier_down(PREFERRED), NEXT)
    stage.note(row(stage, "cable"), gap, began)
    if gap is not None:
        returns(stage, lambda: stage.lab.carrier_up(PREFERRED))


@case(warm=True)
def silent(stage):
    stage.online()
    facts, began = stage.rttvar(), time.time()
    gap = stage.gap(lambda: stage.lab.silent(PREFERRED), NEXT)
    stage.note(row(stage, "silent"), gap, began, **facts)
    if gap is not None:
        returns(stage, lambda: stage.lab.heal(PREFERRED))


@case(warm=True)
def idle(stage):
    stage.online(rate=0)
    stage.lab.silent(PREFERRED)
    first_message(stage, row(stage, "idle"))


@case()
def nat(stage):
    stage.online(rate=0)
    stage.lab.nat_forgets(PREFERRED)
    first_message(stage, "nat")


@case(ours=True)
def idle_seen(stage):
    stage.online(rate=0)
    began = time.time()
    stage.note("idle-seen", stage.welcomed_again(lambda: stage.lab.silent(PREFERRED)), began)


@case()
def broker(stage):
    stage.online()
    stage.lab.broker_kill()
    listens = stage.lab.broker_start()
    stage.note("broker", stage.first_arrival(listens), listens)


@case()
def start(stage):
    stage.well()
    stage.lab.silent(PREFERRED, dns=True)
    stage.load = stage.lab.load().start()
    began = time.time()
    stage.carrier.launch(stage.lab)
    stage.note("start", stage.first_arrival(began), began)


@case()
def half(stage):
    stage.online()
    stage.lab.lossy(PREFERRED, 50)
    began = time.time()
    stage.note("half", stage.left(max(stage.patience, 32)), began)


@case(long=True)
def toggle(stage):
    """Six minutes, with the hold-down users have."""
    stage.online(hold_down="30s")
    change = (stage.lab.carrier_down, stage.lab.carrier_up)
    moves, available = stage.watch(360, 20, lambda number: change[number % 2](PREFERRED))
    stage.note("toggle-moves", moves)
    stage.note("toggle-available", available)


@case(long=True)
def slight(stage):
    """Five minutes."""
    stage.online()
    stage.lab.lossy(PREFERRED, 5)
    moves, _ = stage.watch(300, 300, lambda number: None)
    stage.note("slight", moves)


# Parts of several cases

def row(stage, key):
    return f"{key}-warm" if stage.carrier.name == "warm" else key


def returns(stage, repair):
    began = time.time()
    stage.note("return", stage.gap_of_the_move(repair, PREFERRED), began)


def first_message(stage, key):
    """At another moment in every repetition: before, while and after the daemon asks for a sign of life."""
    time.sleep(1 + 11 * stage.share)
    began = time.time()
    stage.note(key, stage.message(), began)
