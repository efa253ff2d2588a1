"""One virtual machine: its power, its cable, its clock, and a line to the agent inside. Its disk is a layer over the image,
so that nothing of a trial is left for the next; a hard power-off keeps what the guest flushed and no more.
"""

import base64
import os
import select
import socket
import subprocess
import time

MEMORY = 768
BOOT_LIMIT = 900


class Said(str):
    """What a command in the guest printed, and how it ended."""
    status = 0


class Machine:
    def __init__(self, architecture, image, work, cargo):
        self.architecture, self.work, self.cargo = architecture, work, cargo
        disk, self.kernel, self.initrd = image
        self.disk = os.path.join(work, "disk.qcow2")
        self.process = self.channel = None
        self.boots = 0
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, self.disk], check=True)

    def command(self, clock, words):
        if self.architecture == "amd64":
            machine, console = ["qemu-system-x86_64", "-M", "pc", "-cpu", "Westmere"], "ttyS0"
        else:
            machine, console = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72"], "ttyAMA0"
        # The two ends of a cable; both radios are in the guest.
        return machine + [
            "-accel", "tcg", "-smp", "1", "-no-reboot", "-m", str(MEMORY), "-display", "none", "-nodefaults",
            "-kernel", self.kernel, "-initrd", self.initrd, "-rtc", f"base={clock}",
            "-append", f"root=/dev/vda rw console={console} quiet loglevel=4 net.ifnames=0 mitigations=off "
                       f"random.trust_cpu=on no_timer_check systemd.show_status=0 {words}",
            "-serial", f"file:{self.work}/console-{self.boots}",
            "-drive", f"file={self.disk},format=qcow2,if=virtio,cache=writeback",
            "-drive", f"file={self.cargo},format=raw,if=virtio,readonly=on",
            "-netdev", "hubport,id=here,hubid=0", "-netdev", "hubport,id=there,hubid=0",
            "-device", "virtio-net-pci,netdev=here,id=cable,mac=52:54:00:00:00:01,romfile=",
            "-device", "virtio-net-pci,netdev=there,id=far,mac=52:54:00:00:00:02,romfile=",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={self.work}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=machine",
            "-chardev", f"socket,id=monitor,path={self.work}/monitor,server=on,wait=off", "-mon", "chardev=monitor,mode=readline"]

    def start(self, clock="utc", words=""):
        """Power on. Returns when the agent answers."""
        self.boots += 1
        self.began = time.time()
        with open(os.path.join(self.work, "qemu.log"), "a") as log:
            self.process = subprocess.Popen(self.command(clock, words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.connect()

    def connect(self):
        self.channel = self.dial("agent")
        self.received = b""
        self.hear(BOOT_LIMIT)

    def dial(self, name):
        until = time.monotonic() + 10
        while True:
            dialled = socket.socket(socket.AF_UNIX)
            try:
                dialled.connect(os.path.join(self.work, name))
                return dialled
            except OSError:
                dialled.close()
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.1)

    def hear(self, limit):
        until = time.monotonic() + limit
        while b"\n" not in self.received:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.channel], [], [], left)[0]:
                raise TimeoutError(f"the guest is silent for {limit} s")
            more = self.channel.recv(1 << 16)
            if not more:
                raise ConnectionError("the machine is off")
            self.received += more
        line, self.received = self.received.split(b"\n", 1)
        return line.decode()

    def run(self, script, limit=120, check=True):
        """Runs a shell script in the guest; what it printed."""
        self.channel.sendall(base64.b64encode(script.encode()) + b"\n")
        status, _, said = self.hear(limit).partition(" ")
        said = Said(base64.b64decode(said).decode(errors="replace").rstrip("\n"))
        said.status = int(status)
        if check and said.status:
            raise AssertionError(f"{script}\nended with {status}:\n{said}")
        return said

    def wait(self, script, limit=120, every=0.3):
        """Until the script succeeds: seconds waited, and what it said."""
        began = time.monotonic()
        while True:
            said = self.run(script, check=False)
            if said.status == 0:
                return time.monotonic() - began, said
            if time.monotonic() - began > limit:
                raise AssertionError(f"not within {limit} s: {script}\n{said}")
            time.sleep(every)

    def monitor(self, *commands):
        dialled = self.dial("monitor")
        for command in commands:
            dialled.sendall(command.encode() + b"\n")
        time.sleep(0.3)
        dialled.close()

    def cable(self, plugged):
        self.monitor(f"set_link cable {'on' if plugged else 'off'}")

    def reboot(self):
        """Asks the guest to; returns when the agent answers again. The hardware starts as if its power came back."""
        self.channel.sendall(base64.b64encode(b"systemctl --no-block reboot") + b"\n")
        self.process.wait(BOOT_LIMIT)
        self.channel.close()
        self.start()

    def power_off(self):
        """At once, as when somebody pulls the plug."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for dialled in (self.channel,):
            if dialled:
                dialled.close()
        self.channel = None
