"""The daemon's own lines in a newcomer's words.

`switchback events` speaks in short lines (`dial wlan0 server 0 #5`). A `Wording` is fed all of them in order, because
only the line that opened a connection says over which interface number 5 is. It gives a sentence, or None for lines
that would only be noise in a demonstration. A line it does not know is given back as it is.
"""

import re

from . import plan

NAMES = {"eth": "the cable", "wifi": "Wi-Fi", "cell": "mobile", None: "nothing"}
DEVICES = {device: NAMES[uplink.name] for uplink in plan.UPLINKS.values() for device in (uplink.device, uplink.profile)}

NOISE = re.compile(r"(address|device|heard|ponged|ping|drain|drained|save|answer|asked|deadline|activation|activate"
                   r"|networkmanager|stored|black box|started|online|session over|uplink|connected over \S+$|no-"
                   r"|(dial #\d+ )?(resolving|connecting|handshake)$)")


class Wording:
    def __init__(self):
        self.over = {}
        self.signed_in = set()
        self.left = set()      # let go on purpose

    def say(self, line):
        opened = re.match(r"dial (\S+) server \d+ (#\d+)", line)
        if opened:
            self.over[opened[2]] = DEVICES.get(opened[1], opened[1])
            return f"opens a connection over {self.over[opened[2]]}"
        ended = re.match(r"(?:hang up|closed) (#\d+)", line)
        if ended and ended[1] in self.left:
            return None
        if line.startswith("hang up"):
            self.left.add(ended[1])
            if ended[1] not in self.signed_in:
                return None    # it only wanted to see whether the cloud answers
        if line.startswith("connect #"):
            self.signed_in.add(line.split()[1])
        link = re.match(r"link (\S+) (up|down|gone)", line)
        if link:
            name = DEVICES.get(link[1], link[1])
            return f"sees that {name} has {'a' if link[2] == 'up' else 'no'} link"
        for pattern, words in (
                (r"dialled (#\d+)", "reaches the cloud over {over}"),
                (r"connect (#\d+)", "signs in over {over}"),
                (r"connected (#\d+)", "is welcomed by the cloud over {over}"),
                (r"settled (#\d+)", "is online over {over}"),
                (r"dial (#\d+) failed (\S+)", "gets no answer over {over} ({why})"),
                (r"closed (#\d+) (\S+)", "loses the connection over {over} ({why})"),
                (r"hang up (#\d+)", "lets go of the connection over {over}"),
                (r"notify (?:lost|outage) ()(\S+)", "tells applications that the cloud is away ({why})"),
                (r"connected over \S+: (\S+), (.*)", "notes: {why}"),
                (r"notify restored", "tells applications that the cloud is back")):
            found = re.match(pattern, line)
            if found:
                groups = found.groups() + (None, None)
                return words.format(over=self.over.get(groups[0], groups[0]), why=groups[1])
        return None if NOISE.match(line) else line
