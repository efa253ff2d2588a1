"""What each figure of the table means and what it should be.

A goal is a number, or follows from what was true in that run: the round trip R in milliseconds, and the facts that were
noted with the figure (the disk's own sync, the same figure of another carrier as `plain`).
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    key: str
    said: str
    unit: str                  # messages, ms, B, /s, %, times, MB, yes
    goal: Callable             # (R, facts) -> number, or None: told and not judged
    least: bool = False        # the goal is a lower limit

    def met(self, value, limit):
        if value is None:
            return False
        return value >= limit if self.least else value <= limit


def plain(limit):
    return lambda r, facts: limit


def told():
    return lambda r, facts: None


WINDOW = 256

ROWS = {row.key: row for row in (
    Row("kill-delivered", "2,000 acknowledged offline, kill -9, link returns: delivered", "messages", plain(2000), least=True),
    Row("kill-repeated", "the same: delivered more than once", "messages", plain(0)),
    Row("fresh-lost", "silent break on the first connection of a fresh session, messages in flight: lost", "messages", plain(0)),
    Row("fresh-repeated", "the same: repeated", "messages", plain(WINDOW)),
    Row("fresh-strange", "the same: repeated under another identity", "messages", plain(0)),
    Row("outage", "first message after an outage, from link-up", "ms", lambda r, facts: 3 * r + 200),
    Row("bytes-online", "bytes to the device per message of 200 bytes: QoS 1, the cloud answers", "B", plain(0)),
    Row("bytes-bulk", "the same: cloud away, 100 open", "B", plain(300)),
    Row("bytes-again", "the same, in files that another outage left", "B", plain(300)),
    Row("bytes-lone", "the same: cloud away, one at a time", "B", plain(4500)),
    Row("bytes-commit", "the same: cloud away, one a second, 10 s commit", "B", plain(650)),
    Row("rate", "durable acknowledged messages a second, one client, 100 open, 200 bytes, cloud away", "/s", plain(50_000), least=True),
    Row("rate-p99", "the same: acknowledged after, p99", "ms", lambda r, facts: 2 * facts["sync_p99"]),
    Row("paced-p99", "1,000 messages a second, cloud away: acknowledged after, p99 (goal: 2 syncs)", "ms",
        lambda r, facts: 2 * facts["sync_p99"]),
    Row("drain-share", "drain of a backlog on 2 Mbit/s: share of the link rate", "%", plain(90), least=True),
    Row("drain-order", "the same: out of order", "messages", plain(0)),
    Row("drain-fresh", "the same: fresh critical messages, p99 against normal", "times", plain(2)),
    Row("through", "end to end, 100 open: messages a second at the cloud", "/s", lambda r, facts: facts["plain"], least=True),
    Row("behind", "fresh critical message behind a 2 MB backlog on 64 kB/s", "ms", lambda r, facts: 1000 + 2 * r),
    Row("full-lost", "full disk: acknowledged and not kept", "messages", plain(0)),
    Row("full-starts", "the same: starts again after kill -9", "yes", plain(1), least=True),
    Row("full-heals", "the same: keeps messages again when there is room", "yes", plain(1), least=True),
    Row("recovery", "start with a full 256 MiB outbox: first message at the cloud", "ms", plain(2000)),
    Row("memory-idle", "PSS, idle, TLS up", "MB", plain(4)),
    Row("memory-full", "PSS, messages waiting", "MB", plain(12)),
)}
