"""What each figure of the table means and what it should be, by the round trip R.

Both paths have the same R here. A goal is a function of R in milliseconds and of what was true just before the fault
(`rttvar`, the kernel's figure for the connection that is about to die); it gives the limit for the median and the
limit for the worst. A figure that never came counts as worse than any limit.
"""

from collections.abc import Callable
from dataclasses import dataclass

INTERVAL = 50.0    # milliseconds between two messages of the load


@dataclass(frozen=True)
class Row:
    key: str
    said: str
    goal: Callable         # (R, facts) -> (median, worst)
    unit: str = "ms"       # ms, moves, %
    least: bool = False    # the goal is a lower limit

    def met(self, value, limit):
        if value is None:
            return False
        return value >= limit if self.least else value <= limit


def plain(limit):
    return lambda r, facts: (limit(r), limit(r))


def silent(r, facts):
    limit = r + 4 * facts.get("rttvar", 0) + 550 + 0.5 * r
    return limit, limit + 250


ROWS = {row.key: row for row in (
    Row("cable", "cable pulled, next uplink has an address", plain(lambda r: 2.5 * r + 20)),
    Row("cable-warm", 'the same, `standby = "warm"`', plain(lambda r: 0.5 * r + 10)),
    Row("silent", "silently dead, 20 messages a second", silent),
    Row("silent-warm", 'the same, `standby = "warm"`', silent),
    Row("idle", "silently dead, idle: the next message", plain(lambda r: 700 + 1.5 * r)),
    Row("idle-warm", 'the same, `standby = "warm"`', plain(lambda r: 700 + 1.5 * r)),
    Row("nat", "NAT mapping gone, idle: the next message", plain(lambda r: 700 + 1.5 * r)),
    Row("idle-seen", "silently dead, idle, nothing sent: until left", plain(lambda r: 15_000)),
    Row("return", "preferred uplink returns", plain(lambda r: max(INTERVAL, r) + 5 - INTERVAL)),
    Row("broker", "broker killed and restarted: first arrival after it listens", plain(lambda r: 3 * r + 250)),
    Row("start", "first uplink dead before the start: first arrival", plain(lambda r: 5_000)),
    Row("half", "50 % loss: until left", plain(lambda r: 30_000)),
    Row("toggle-moves", "20 s cable, 20 s none: moves", plain(lambda r: 3), "moves"),
    Row("toggle-available", "the same: seconds with an arrival", plain(lambda r: 98), "%", least=True),
    Row("slight", "5 % loss: moves", plain(lambda r: 0), "moves"),
)}
