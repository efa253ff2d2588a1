"""Several labs side by side, one process each: a lane is one carrier at one round trip, all repetitions.

A lane keeps one lab; a case that spoils it (LabError) is told and left out, and the lane goes on in a new lab, a few
times. For the alternative a case whose first runs used up the patience is not repeated: the table says how many runs
there were.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from lab import Lab
from lab.namespaces import LabError

from .carriers import CARRIERS
from .cases import CASES
from .stage import Stage

GIVEN_UP_AFTER = 2
SPOILED_MOST = 3
# Raising a lab costs a processor a second or two; nothing is measured while the others of the first round do that.
SECONDS_TO_RAISE = 2
PR_SET_PDEATHSIG = 1


def fits(carrier, case):
    return (case.warm or carrier.name != "warm") and (carrier.ours or not case.only)


def run(carrier_name, r, options):
    """One lane, in this process, with the options of tests/bench. Gives a plain dictionary."""
    os.nice(-10)    # whatever else this machine does should not be measured; the same for everyone who carries
    carrier = CARRIERS[carrier_name]
    todo = [CASES[name] for name in options.only if fits(carrier, CASES[name])]
    runs, in_vain, spoiled = [], {}, []
    left = [(number, case) for number in range(options.repeat) for case in todo]
    while left and len(spoiled) < SPOILED_MOST:
        try:
            with Lab(delays=dict.fromkeys(("eth", "wifi", "cell"), r / 2) if r else {},
                     **carrier.lab_settings) as lab:
                if not runs and not spoiled:
                    time.sleep(SECONDS_TO_RAISE * options.lanes)
                while left:
                    number, case = left.pop(0)
                    if case.long and number or in_vain.get(case.name, 0) >= GIVEN_UP_AFTER:
                        continue
                    done = once(lab, carrier, r, options, case, (number + 0.5) / options.repeat)
                    runs.append(done)
                    if not carrier.ours and done["figures"][0]["value"] is None:
                        in_vain[case.name] = in_vain.get(case.name, 0) + 1
        except LabError as error:
            tell(f"{carrier.name} R={r:g} {case.name}: spoiled: {error}")
            spoiled.append(f"{case.name}: {error}")
    return {"carrier": carrier.name, "r": r, "runs": runs, "spoiled": spoiled}


def once(lab, carrier, r, options, case, share):
    stage = Stage(lab, carrier, r, options.patience, share)
    case.act(stage)
    count = stage.end()
    for figure in stage.figures:
        value = "never" if figure["value"] is None else f"{figure['value']:.0f}"
        tell(f"{carrier.name} R={r:g} {figure['row']}: {value} (goal {figure['goal']:.0f})")
        if options.why:
            for line in figure["evidence"]:
                tell(f"    {line}")
    return {"case": case.name, "figures": stage.figures, "noise": stage.noise, **count}


def tell(line):
    print(line, file=sys.stderr, flush=True)


def together(command, jobs, lanes):
    """The same, for many lanes, so many at a time, each `command --lane CARRIER:R`. Gives their dictionaries."""
    waiting, running, results = list(jobs), {}, {}
    while waiting or running:
        while waiting and len(running) < lanes:
            job = waiting.pop(0)
            out = tempfile.TemporaryFile("w+")
            running[job] = out, subprocess.Popen([*command, "--lane", f"{job[0]}:{job[1]:g}"], stdout=out,
                                                 stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        time.sleep(0.3)
        for job, (out, process) in list(running.items()):
            if process.poll() is None:
                continue
            del running[job]
            if process.returncode:
                sys.exit(f"bench: the lane {job[0]} at R = {job[1]:g} ms ended with {process.returncode}")
            out.seek(0)
            results[job] = json.load(out)
    return [results[job] for job in jobs]


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
