"""The daemon under test, driven from outside: start, stop, kill -9, the command line, the status.

Knows the contract (programs, places, `status --json`) and nothing of the inside. The programs are taken
from $SWITCHBACK_BIN, else from cargo's release directory; they are run in the gateway's namespace and
nowhere else.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from . import plan
from .namespaces import LabError, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICE = "switchbackd"


def config(servers=(f"mqtts://{plan.BROKER}:{plan.TLS}",), ca_file=plan.PKI + "/ca.pem", hold_down="5s",
           cloud="", failover="", more=""):
    """A configuration as a user of this lab would write it; the last three are appended as TOML."""
    return f"""[cloud]
servers = {json.dumps(list(servers))}
client_id = "lab-gateway"
ca_file = "{ca_file}"
{cloud}
[failover]
hold_down = "{hold_down}"
{failover}
[uplink.wifi]
match = ["wlan0"]
{more}
"""


def programs():
    """Where switchbackd and switchback are."""
    target = os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target"
    place = Path(os.environ.get("SWITCHBACK_BIN") or Path(target) / "release").resolve()
    for program in ("switchbackd", "switchback"):
        if not (place / program).exists():
            raise LabError(f"there is no {program} in {place}: run cargo build --release, or set SWITCHBACK_BIN")
    return place


def build():
    """cargo build --release, where no built programs were given."""
    if not os.environ.get("SWITCHBACK_BIN"):
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=REPOSITORY, check=True, stdout=sys.stderr)


class Daemon:
    """Mixed into Lab; needs run, start, send_signal, stop, inside_pid and path."""

    state_dir = plan.STATE_DIR

    def daemon_command(self):
        return [str(programs() / "switchbackd"), "--config", plan.CONFIG, "--state-dir", self.state_dir,
                "--runtime-dir", plan.RUNTIME_DIR]

    def configure(self, text):
        self.path(plan.CONFIG).write_text(text)

    def daemon_start(self, text=None):
        """Start it (with a new configuration if given); does not wait for anything."""
        if text is not None:
            self.configure(text)
        self.start(SERVICE, plan.GATEWAY, self.daemon_command())

    def daemon_stop(self, within=20):
        self.must_run()
        return self.stop(SERVICE, signal.SIGTERM, within)

    def daemon_kill(self):
        """kill -9."""
        self.must_run()
        self.stop(SERVICE, signal.SIGKILL)

    def must_run(self):
        if not self.daemon_running():
            raise LabError(f"the daemon has ended by itself:\n{self.daemon_log()}")

    def daemon_running(self):
        return self.inside_pid(SERVICE) is not None

    def daemon_fresh(self, text):
        """A daemon that remembers nothing, with this configuration."""
        if self.daemon_running():
            self.daemon_kill()
        self.run(plan.GATEWAY, f"rm -rf {self.state_dir} {plan.RUNTIME_DIR}/*; mkdir -p {self.state_dir}")
        self.daemon_start(text)

    def switchback(self, *words, check=True, timeout=30, input=None):
        return self.run(plan.GATEWAY, [str(programs() / "switchback"), "--runtime-dir", plan.RUNTIME_DIR, *words],
                        check=check, timeout=timeout, input=input)

    def status(self):
        """`status --json`, or {} while the daemon does not answer."""
        done = self.switchback("status", "--json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def wait_status(self, wanted, within, what):
        """Until wanted(status) is true; gives that status. LabError shows what was there instead."""
        seen = {}

        def right():
            seen.clear()
            seen.update(self.status())
            return bool(seen) and wanted(seen)
        try:
            wait_for(right, within, what, every=0.05)
        except LabError as error:
            raise LabError(f"{error}; instead: {json.dumps(seen)[:3000]}\n{self.daemon_log()}") from None
        return dict(seen)

    def wait_online(self, uplink=None, within=30):
        """Until the daemon is connected (over one of eth, wifi, cell if given). Gives the status."""
        device = uplink and plan.UPLINKS[uplink].device
        return self.wait_status(lambda now: now["connected"] and (device is None or now["uplink"] == device),
                                within, f"the daemon to be online over {device or 'anything'}")

    def daemon_log(self, lines=40):
        try:
            return "\n".join(self.log(SERVICE).splitlines()[-lines:])
        except FileNotFoundError:
            return "(the daemon wrote nothing)"

    def events(self):
        """`events --json` as a list of objects."""
        out = self.switchback("events", "--json", check=False).stdout
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]
