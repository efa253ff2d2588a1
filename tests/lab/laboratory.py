"""`Lab`: raise the networks, run things in them, break them, take all of it away.

    with Lab() as lab:
        lab.run("gateway", "nmcli device")
        lab.carrier_down("eth")

Always true: the first process of the lab is killed by the kernel when the process that made the lab
dies, and with it goes everything else (make the lab in the main thread: the kernel watches the thread).
Labs share nothing and may run side by side. It never touches the machine's own network, and no file
outside the lab's private /run and /etc.
"""

import ctypes
import os
import signal
import subprocess
import time

from . import needs, plan, services
from .daemon import Daemon
from .faults import Faults
from .measure import Load
from .namespaces import LabError, Namespaces, find, wait_for

PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PR_SET_PDEATHSIG = 1


class Lab(Namespaces, Faults, Daemon):
    package_parent = PARENT

    def __init__(self, name=None, connectivity_interval=0, carrier_wait_ms=None, delays=None):
        super().__init__(None)
        self.name = name or f"lab-{os.getpid()}-{time.monotonic_ns()}"
        self.files = services.files(connectivity_interval, carrier_wait_ms)
        self.commands = services.commands()
        self.delays = delays or {}          # one way towards the cloud: {"cell": 50} milliseconds
        self.outer = None
        self.recording = False

    @classmethod
    def attach(cls, name):
        """A handle on a lab that another process raised; it does not own it."""
        lab = cls(name)
        lab.pid = find(name)
        if lab.pid is None:
            raise LabError(f"no lab called {name} is running; raise one with: tests/lab/lab up")
        lab.recording = lab.inside_pid("recorder") is not None
        return lab

    # Up and down

    def __enter__(self):
        problems = needs.missing()
        if problems:
            raise LabError("\n".join(problems))
        try:
            self._first_process()
            for path, content in self.files.items():
                self.path(path).write_text(content)
                self.path(path).chmod(0o600)
            self._services()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.outer:
            self.outer.kill()
            self.outer.wait()
            # unshare is gone; the kernel ends its child, and the child's namespace with it.
            wait_for(lambda: not os.path.exists(f"/proc/{self.pid}/ns/net"), 10, "the lab to go away")
            self.outer = None

    def _first_process(self):
        me = os.getpid()

        def die_with_parent():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:
                os._exit(1)

        self.outer = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL",
             "--mount-proc", services.PYTHON, os.path.join(services.HERE, "inside.py"), f"--name={self.name}",
             *(f"{uplink}={delay}" for uplink, delay in self.delays.items())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.environment, preexec_fn=die_with_parent)
        if self.outer.stdout.readline() != "ready\n":
            raise LabError(f"the lab's networks did not come up: {self.outer.stderr.read().strip()}")
        self.outer.stdout.close()
        children = f"/proc/{self.outer.pid}/task/{self.outer.pid}/children"
        with open(children, encoding="ascii") as file:
            self.pid = int(file.read().split()[0])

    def start_service(self, name):
        self.start(name, *self.commands[name])

    def _services(self):
        self.start_service("bus")
        for name in self.commands:
            if name.startswith("provider-") or name in ("broker", "check"):
                self.start_service(name)
        wait_for(self.path("/run/dbus/system_bus_socket").exists, 5, "the lab's system bus")
        self.start_service("network-manager")
        self.wait_broker()
        self.start("recorder", plan.CLOUD, [services.PYTHON, os.path.join(services.HERE, "client.py"), "subscribe",
                                            "--topic", "#", "--id", "recorder", "--out", self.recording_file])
        self.recording = True
        wait_for(self.network_manager_answers, 10, "NetworkManager to answer")
        self.start_service("modem-manager")
        wait_for(self.recorders_subscribed, 5, "the recorder to subscribe")
        self.wait_uplinks()

    # What is true now

    recording_file = f"{plan.RUN}/recording.jsonl"

    def recorders_subscribed(self):
        try:
            return self.path(self.recording_file).read_text().count('"subscribed"')
        except FileNotFoundError:
            return 0

    def network_manager_answers(self):
        return self.run(plan.GATEWAY, ["nmcli", "-t", "-f", "RUNNING", "general"], check=False).stdout == "running\n"

    def devices(self):
        """NetworkManager's view: {profile device: (type, state)}."""
        out = self.run(plan.GATEWAY, ["nmcli", "-t", "-f", "DEVICE,TYPE,STATE", "device"], check=False).stdout
        return {line.split(":")[0]: tuple(line.split(":")[1:3]) for line in out.splitlines()}

    def activated(self, uplink):
        return self.devices().get(plan.UPLINKS[uplink].profile, ("", ""))[1] == "connected"

    def wait_uplinks(self, *uplinks, within=20):
        """Until NetworkManager has the uplinks (all of them by default) activated, with address and route."""
        wanted = {plan.UPLINKS[name].profile for name in uplinks or plan.UPLINKS}
        routed = {f"dev {plan.UPLINKS[name].device} " for name in uplinks or plan.UPLINKS}

        def ready():
            connected = {device for device, (_, state) in self.devices().items() if state == "connected"}
            if not wanted <= connected:
                return False
            # NetworkManager can say so a moment before the kernel has the addresses.
            routes = self.run(plan.GATEWAY, "ip route show default").stdout
            return all(device in routes for device in routed)
        try:
            wait_for(ready, within, "the uplinks", every=0.1)
        except LabError:
            raise LabError(f"NetworkManager did not activate {', '.join(sorted(wanted))} in {within} s: "
                           f"{self.devices()}\n{self.log('network-manager')[-4000:]}") from None

    def wait_broker(self):
        def answers():
            if self.inside_pid("broker") is None:
                raise LabError(f"the broker ended: {self.log('broker')[-2000:]}")
            return self.run(plan.CLOUD, f"ss -Hltn sport = :{plan.TLS}").stdout
        wait_for(answers, 10, "the broker to listen")

    # Load

    def load(self, **options):
        """A publisher on the gateway's 127.0.0.1:1883, not started yet; see measure.Load."""
        return Load(self, **options)
