"""A disk of the lab's own that can lose power: ext4 on a loop device, for the daemon's state.

`cut()` is a power cut as the file system sees it: from that moment nothing reaches the image, and what was not synced
is gone after `again()`. The image lives in the lab's private /run and is mounted in its mount namespace only; the
loop device detaches itself when the lab goes.
"""

from . import plan

IMAGE = f"{plan.RUN}/disk.img"
PLACE = f"{plan.RUN}/disk"

# EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: stop at once, throw the journal's open transaction away.
SHUTDOWN = ("import fcntl, os, struct, sys; "
            "fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))")


class Disk:
    """Takes the place of the daemon's state directory inside `with`."""

    def __init__(self, lab, size="64M"):
        self.lab, self.size = lab, size
        self.usual_place = lab.state_dir

    def __enter__(self):
        self.lab.run(plan.GATEWAY, f"truncate -s {self.size} {IMAGE}; mkfs.ext4 -qF {IMAGE}; mkdir -p {PLACE}; "
                                   f"mount -o loop {IMAGE} {PLACE}")
        self.lab.state_dir = f"{PLACE}/state"
        return self

    def __exit__(self, *_):
        self.lab.state_dir = self.usual_place
        if self.lab.daemon_running():
            self.lab.daemon_kill()
        self.lab.run(plan.GATEWAY, f"umount {PLACE}; rm {IMAGE}")

    def cut(self):
        """The power goes: the disk takes nothing more, and the daemon ends."""
        self.lab.run(plan.GATEWAY, ["/usr/bin/python3", "-c", SHUTDOWN, PLACE])
        self.lab.daemon_kill()

    def again(self):
        """The power is back: the file system recovers from its journal."""
        self.lab.run(plan.GATEWAY, f"umount {PLACE}; mount -o loop {IMAGE} {PLACE}")
