"""The results as a table in Markdown: our figures, the goal, and the alternatives beside them."""

import statistics

from .carriers import CARRIERS
from .rows import ROWS


def figures(runs, carrier, key):
    return [(figure, run["r"]) for run in runs if run["carrier"] == carrier
            for figure in run["figures"] if figure["row"] == key]


def said(value, unit):
    if value is None:
        return "never"
    if unit == "yes":
        return "yes" if value else "no"
    if unit == "ms" and value >= 9_500:
        return f"{value / 1000:.1f} s"
    digits = 0 if unit in ("messages", "/s", "B") or value >= 100 else 1 if value >= 10 else 2
    words = {"messages": "", "/s": "/s", "times": " times", "%": " %"}.get(unit, f" {unit}")
    return f"{value:,.{digits}f}{words}"


def worst_first(row, found):
    """The values, the worst first; what never came is worse than anything."""
    return sorted((figure["value"] for figure, _ in found),
                  key=lambda value: (value is not None, value if row.least else -(value or 0)))


def median(row, found):
    ranked = worst_first(row, found)
    return ranked[len(ranked) // 2]


def cell(row, found):
    if not found:
        return "–"
    told = said(median(row, found), row.unit)
    worst = said(worst_first(row, found)[0], row.unit)
    return told if len(found) == 1 or worst == told else f"{told}, {worst}"


def goals(row, found):
    limits = [row.goal(r, figure) for figure, r in found if row.key != "through" or "plain" in figure]
    return [limit for limit in limits if limit is not None]


def verdict(row, found):
    limits = goals(row, found)
    if not found or not limits:
        return "–"
    limit = statistics.median(limits)
    if not row.met(median(row, found), limit):
        return "**no**"
    inside = sum(row.met(figure["value"], limit) for figure, _ in found)
    return "yes" if inside == len(found) else f"median ({inside} of {len(found)})"


def ratio(row, ours, theirs):
    """How many times better than the best alternative, by medians."""
    others = [median(row, found) for found in theirs if found]
    others = [value for value in others if value is not None]
    if not ours or not others or row.unit in ("yes", "messages", "times", "%"):
        return "–"
    mine, best = median(row, ours), max(others) if row.least else min(others)
    if mine is None:
        return "–"
    times = (mine / best if best else None) if row.least else (best / mine if mine else None)
    return "–" if times is None else f"{times:,.1f}" if times < 100 else f"{times:,.0f}"


def render(runs, options):
    ours = [name for name in options.carriers if CARRIERS[name].ours]
    others = [name for name in options.carriers if not CARRIERS[name].ours]
    head = ["case", "R", "goal", "switchback", "met", *(CARRIERS[name].said for name in others), "times"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in ROWS.values():
        mine = [found for name in ours for found in figures(runs, name, row.key)]
        theirs = [figures(runs, name, row.key) for name in others]
        if not mine and not any(theirs):
            continue
        limits = goals(row, mine)
        goal = f"{'≥' if row.least else '≤'} {said(statistics.median(limits), row.unit)}" if limits else "–"
        r = next(r for found in [mine, *theirs] for _, r in found)
        lines.append("| " + " | ".join([row.said, f"{r:g} ms", goal, cell(row, mine), verdict(row, mine),
                                        *(cell(row, found) for found in theirs), ratio(row, mine, theirs)]) + " |")
    return "\n".join([*lines, "", caption(runs, options)])


def caption(runs, options):
    syncs = [figure for run in runs for figure in run["figures"] if "sync" in figure]
    sync = f"""
This disk's own fdatasync of 28 KiB into blocks that exist: median {statistics.median(s['sync'] for s in syncs):.2f} ms, \
p99 {statistics.median(s['sync_p99'] for s in syncs):.2f} ms.""" if syncs else ""
    spoiled = sum(len(run["spoiled"]) for run in runs)
    repetitions = "one repetition" if options.repeat == 1 else f"{options.repeat} repetitions"
    loads = " with smaller loads (--quick)" if options.quick else ""
    return f"""\
Median, then worst where it differs, of {repetitions}{loads}; cases that take minutes run once. "met" says yes
when every repetition keeps the goal. "times" compares the medians of switchback and of the best alternative. R is the
round trip to the broker. Every run has a lab of its own, one at a time. Bytes are counted at a block device of its own (ext4
on a loop device), the file system's journal included; everything about speed is on this machine's disk. Runs spoiled by the
lab: {spoiled}.{sync}"""
