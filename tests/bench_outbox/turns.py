"""One case after the other, each in a lab of its own; what a spoiled one says is told, and it is tried once more."""

import os
import sys

from lab import Lab
from lab.namespaces import LabError

from .carriers import CARRIERS
from .cases import CASES
from .rows import ROWS
from .stage import Stage

TRIES = 2


def run(options):
    """Every chosen case for every carrier worth it. Gives one dictionary for each run: case, carrier, figures."""
    os.nice(-10)    # whatever else this machine does should not be measured; the same for everyone who carries
    runs = []
    for name in options.only:
        case = CASES[name]
        for number in range(1 if case.once else options.repeat):
            for carrier in options.carriers:
                if CARRIERS[carrier].ours or carrier in case.beside:
                    runs.append(once(case, CARRIERS[carrier], options))
    compare(runs)
    return runs


def once(case, carrier, options):
    said = []
    for _ in range(TRIES):
        try:
            with Lab(delays=dict.fromkeys(("eth", "wifi", "cell"), case.r / 2) if case.r else {}) as lab:
                figures = play(case, carrier, options, lab)
            break
        except LabError as error:
            said.append(str(error))
            tell(f"{case.name} {carrier.name}: spoiled: {error}")
    else:
        figures = []
    for figure in figures:
        facts = {name: value for name, value in figure.items() if name not in ("row", "value")}
        tell(f"{case.name} {carrier.name}: {figure['row']} {figure['value']} {facts or ''}")
    return {"case": case.name, "carrier": carrier.name, "r": case.r, "figures": figures, "spoiled": said}


def play(case, carrier, options, lab):
    with case.place(lab) as place:
        stage = Stage(lab, carrier, place, case.r, options.quick)
        try:
            case.act(stage)
            if options.why and carrier.ours and any(missed(figure, case.r) for figure in stage.figures):
                tell(lab.daemon_log(30))
        finally:
            stage.close()
        return stage.figures


def missed(figure, r):
    row = ROWS[figure["row"]]
    limit = row.goal(r, {"plain": 0, **figure})
    return limit is not None and not row.met(figure["value"], limit)


def compare(runs):
    """Our figures learn what the plain carrier made of the same row, where that is the goal."""
    for run in runs:
        for figure in run["figures"]:
            same = [other["value"] for beside in runs if beside["carrier"] == "plain"
                    for other in beside["figures"] if other["row"] == figure["row"]]
            if same:
                figure["plain"] = sorted(same)[len(same) // 2]


def tell(line):
    print(line, file=sys.stderr, flush=True)
