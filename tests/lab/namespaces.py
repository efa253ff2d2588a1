"""Entering a lab from outside: running commands in it and keeping its services by name.

A `Namespaces` knows only the pid of the lab's first process, so any program that finds that pid (the
developers' command as well as the tests) can do the same things. Services are children of the lab's
first process, their pids are files inside the lab; a signal goes to such a pid, in the lab's own pid
namespace, and can therefore never reach a process of the machine.
"""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from . import plan


class LabError(Exception):
    """Something in the lab did not come up or did not answer."""


class Namespaces:
    # Nothing of the caller's environment (a proxy, another bus) may leak into the lab.
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                   "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"), "PYTHONDONTWRITEBYTECODE": "1"}

    def __init__(self, pid):
        self.pid = pid

    def path(self, inside):
        """A path of the lab, as seen from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def enter(self, ns):
        """The command prefix that runs the rest in namespace `ns` of the lab."""
        prefix = ["nsenter", f"--target={self.pid}", "--mount", "--root", "--wd",
                  "--uts", "--ipc", "--pid"]
        net = f"/proc/{self.pid}/ns/net" if ns == plan.GATEWAY else f"/proc/{self.pid}/root/run/netns/{ns}"
        return prefix + [f"--net={net}", "--"]

    def run(self, ns, command, timeout=30, check=True, input=None):
        """Run to the end; gives a CompletedProcess with text. A string goes through the shell."""
        command = ["sh", "-c", command] if isinstance(command, str) else list(command)
        done = subprocess.run(self.enter(ns) + ["timeout", "-k", "1", str(timeout)] + command, text=True,
                              env=self.environment, input=input,
                              stdin=subprocess.DEVNULL if input is None else None,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout + 10)
        if check and done.returncode:
            raise LabError(f"{shlex.join(command)} in {ns} ended with {done.returncode}: "
                           f"{done.stderr.strip() or done.stdout.strip()}")
        return done

    def start(self, name, ns, command, environment=None):
        """Start a service in the background, under a name; its output goes to /run/lab/log/NAME."""
        assignments = [f"{key}={value}" for key, value in (environment or {}).items()]
        script = 'log=$1; shift; setsid "$@" >>"$log" 2>&1 </dev/null & echo $!'
        out = self.run(ns, ["sh", "-c", script, "sh", f"{plan.LOGS}/{name}", "env", *assignments, *command])
        self.path(f"{plan.RUN}/pid/{name}").write_text(out.stdout)

    def inside_pid(self, name):
        """The service's pid inside the lab, or None when it is not running."""
        try:
            pid = int(self.path(f"{plan.RUN}/pid/{name}").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self.path(f"/proc/{pid}").exists() else None

    def send_signal(self, name, number):
        pid = self.inside_pid(name)
        if pid is None:
            raise LabError(f"{name} is not running in the lab")
        self.run(plan.GATEWAY, ["kill", f"-{int(number)}", str(pid)])

    def stop(self, name, number=signal.SIGTERM, within=10):
        """Signal a service and wait until it is gone, which it may be already. Gives the seconds it took."""
        began = time.monotonic()
        try:
            self.send_signal(name, number)
        except LabError:
            if self.inside_pid(name) is not None:
                raise
        wait_for(lambda: self.inside_pid(name) is None, within, f"{name} to end")
        return time.monotonic() - began

    def log(self, name):
        return self.path(f"{plan.LOGS}/{name}").read_text(errors="replace")


def wait_for(condition, within, what, every=0.02):
    """Wait until condition() is true and give its value; LabError with `what` when it does not come."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise LabError(f"waited {within} s for {what}")
        time.sleep(every)


def find(name):
    """The pid of the first process of the running lab called `name`, or None."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                first = Path(f"/proc/{entry}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1]
            except (OSError, IndexError):
                continue
            if f"--name={name}".encode() in words and any(w.endswith(b"/inside.py") for w in words) \
                    and first == "1":
                return int(entry)
    return None
