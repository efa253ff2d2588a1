"""The results as a table in Markdown: our figures, the goal for that round trip, and the alternative beside them."""

import statistics

from .carriers import CARRIERS, HOLD_DOWN
from .rows import ROWS

NEVER = float("inf")


def figures(results, names, r, key):
    """Every figure of a row by these carriers at one round trip."""
    return [figure for lane in results if lane["carrier"] in names and lane["r"] == r
            for run in lane["runs"] for figure in run["figures"] if figure["row"] == key]


def values(found):
    return sorted(NEVER if figure["value"] is None else figure["value"] for figure in found)


def said(value, unit, patience):
    if value == NEVER:
        return f"> {patience:g} s"
    if unit == "ms":
        return f"{value:,.0f} ms" if value < 9_500 else f"{value / 1000:.1f} s"
    return f"{value:.1f} %" if unit == "%" else f"{value:.0f}"


def cell(row, found, patience, repeat):
    """Median and worst, and the number of figures where it is not the number of repetitions."""
    if not found:
        return "–"
    ranked = values(found)
    median, worst = statistics.median(ranked), ranked[0] if row.least else ranked[-1]
    told = said(median, row.unit, patience)
    if len(found) > 1 and said(worst, row.unit, patience) != told:
        told += f", {said(worst, row.unit, patience)}"
    return told + (f" (n={len(found)})" if len(found) != repeat else "")


def verdict(row, found):
    if not found:
        return "–"
    ranked = values(found)
    median = statistics.median(ranked)
    worst = ranked[0] if row.least else ranked[-1]
    goal = statistics.median(figure["goal"] for figure in found)
    inside = sum(row.met(figure["value"], figure["goal_worst"]) for figure in found)
    if median == NEVER or not row.met(median, goal):
        return "**no**"
    limit = statistics.median(figure["goal_worst"] for figure in found)
    return "yes" if worst != NEVER and row.met(worst, limit) else f"median ({inside} of {len(found)})"


def ratio(row, ours, theirs, patience):
    """How many times less the alternative's best variant would have to be."""
    if not ours or not any(theirs) or row.unit != "ms":
        return "–"
    mine = statistics.median(values(ours))
    best = min(statistics.median(values(found)) for found in theirs if found)
    if mine == NEVER:
        return "–"
    least = min(best, patience * 1000)
    return f"{'> ' if best == NEVER else ''}{least / max(mine, 1):,.0f}"


def render(results, options):
    bridges = [name for name in options.carriers if not CARRIERS[name].ours]
    head = ["case", "R", "goal", "switchback: median, worst", "met",
            *(CARRIERS[name].said for name in bridges), "times"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    ours = [name for name in options.carriers if CARRIERS[name].ours]
    for row in ROWS.values():
        for r in options.rtt:
            mine = figures(results, ours, r, row.key)
            theirs = [figures(results, [name], r, row.key.removesuffix("-warm")) for name in bridges]
            if not mine and (ours or not any(theirs)):
                continue
            goal = statistics.median(figure["goal"] for figure in mine) if mine else row.goal(r, {})[0]
            lines.append("| " + " | ".join([
                row.said, f"{r:g} ms", f"{'≥' if row.least else '≤'} {said(goal, row.unit, 0)}",
                cell(row, mine, options.patience, options.repeat), verdict(row, mine),
                *(cell(row, found, options.patience, options.repeat) for found in theirs),
                ratio(row, mine, theirs, options.patience)]) + " |")
    return "\n".join([*lines, "", counts(results, options), "", caption(options, noise(results))])


def counts(results, options):
    head = ["messages", "offered", "lost", "repeated", "not delivered when patience ended", "runs spoiled by the lab"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name in options.carriers:
        runs = [run for lane in results if lane["carrier"] == name for run in lane["runs"]]
        spoiled = sum(len(lane["spoiled"]) for lane in results if lane["carrier"] == name)
        total = [f"{sum(run[key] for run in runs):,}" for key in ("offered", "lost", "repeated", "undelivered")]
        total.append(str(spoiled))
        lines.append("| " + " | ".join([CARRIERS[name].said, *total]) + " |")
    return "\n".join(lines)


def noise(results):
    """Median and worst gap when nothing was broken."""
    found = [gap for lane in results for run in lane["runs"] for gap in run["noise"]] or [0]
    return f"{statistics.median(found):.0f} ms, worst {max(found):.0f} ms"


def caption(options, quiet):
    return f"""\
R is the round trip to the broker over every uplink. A figure is the longest time without an arrival at the cloud less one
message interval (20 messages a second, QoS 1), or the time named in the row; median and worst of {options.repeat} \
repetitions
unless n says otherwise (an alternative that used up {options.patience:g} s twice is not tried again; long cases run once).
"met" says yes when the median keeps the goal and the worst its limit for the worst. "times" compares the medians of
switchback and of the best bridge here. Hold-down {HOLD_DOWN} (30 s while toggling), so that repetitions are quick; it delays
only the return. Every case has a fresh daemon or bridge; {options.lanes} labs side by side on this machine.
The same gap over two quiet seconds before each fault, which is what the machine itself adds: {quiet}."""
