"""Where a carrier keeps its messages while it is measured: a directory on this machine's disk, or a disk of its own.

Both are made for one run of one case and leave nothing behind. What a place counts is what reached the block device,
the file system's journal included.
"""

import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from lab import plan

PARENT = "/var/tmp"
# What the outbox writes at once with a hundred messages of 200 bytes open.
SYNC_BYTES = 28 * 1024
SYNCS = 200


class Directory:
    """On the file system of PARENT, which has to be a real disk for figures that are about disks."""

    def __init__(self, lab):
        self.lab = lab

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="switchback-bench-", dir=PARENT)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def sync_ms(self):
        """(median, p99) of fdatasync(2) of SYNC_BYTES into blocks that exist."""
        name = os.path.join(self.path, "sync")
        took = []
        with open(name, "wb", buffering=0) as file:
            file.write(bytes(SYNC_BYTES * 32))
            os.fsync(file.fileno())
            for number in range(SYNCS):
                file.seek(SYNC_BYTES * (number % 32))
                file.write(os.urandom(SYNC_BYTES))
                began = time.monotonic()
                os.fdatasync(file.fileno())
                took.append((time.monotonic() - began) * 1000)
        os.unlink(name)
        return statistics.median(took), sorted(took)[int(SYNCS * 0.99)]

    def forget(self):
        """The page cache forgets what is kept here, as after a restart of the machine."""
        for name in Path(self.path).rglob("*"):
            if name.is_file():
                with name.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Disk:
    """ext4 on a loop device, mounted in the lab alone; the device goes when it is unmounted or the lab ends."""

    def __init__(self, lab, size="1G"):
        self.lab, self.size = lab, size
        self.path = f"{plan.RUN}/disk-of-its-own"

    def __enter__(self):
        with tempfile.NamedTemporaryFile(prefix="switchback-bench-", dir=PARENT) as image:
            subprocess.run(["truncate", "-s", self.size, image.name], check=True)
            # Nothing is left to be initialised later: that would be counted.
            subprocess.run(["mkfs.ext4", "-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0", image.name], check=True)
            self.lab.run(plan.GATEWAY, f"mkdir -p {self.path}; mount -o loop,noatime {image.name} {self.path}")
        # The image has lost its name; the device holds it.
        source = self.lab.run(plan.GATEWAY, f"findmnt -no SOURCE {self.path}").stdout.strip()
        self.device = re.fullmatch(r"/dev/(loop\d+)", source)[1]
        return self

    def __exit__(self, *_):
        self.lab.run(plan.GATEWAY, f"umount {self.path}", check=False)

    def written(self):
        """Bytes that the device was given so far, everything flushed first."""
        self.lab.run(plan.GATEWAY, f"sync -f {self.path}")
        return int(Path(f"/sys/block/{self.device}/stat").read_text().split()[6]) * 512
