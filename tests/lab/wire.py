#!/usr/bin/python3
"""A long cable: two Ethernet devices in two namespaces, and every frame takes its time between them.

    wire.py NAMESPACE DEVICE NAMESPACE DEVICE MILLISECONDS     one way

For kernels without netem. Makes a TAP device in each of the two namespaces of the lab and carries frames in order,
each due its delay after it came; nothing is dropped. The devices are there once it prints "ready". Runs inside a lab.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000


def tap(namespace, name):
    """A TAP device made in the named namespace; the descriptor works from everywhere."""
    with open(f"/run/netns/{namespace}", encoding="ascii") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def carry(ends, delay):
    queues = {end: collections.deque() for end in ends}   # frames that came from this end
    other = dict(zip(ends, reversed(ends)))
    while True:
        due = [queue[0][0] for queue in queues.values() if queue]
        wait = max(0, min(due) - time.monotonic()) if due else None
        for end in select.select(ends, [], [], wait)[0]:
            try:
                while True:
                    queues[end].append((time.monotonic() + delay, os.read(end, 65536)))
            except BlockingIOError:
                pass
        now = time.monotonic()
        for end, queue in queues.items():
            while queue and queue[0][0] <= now:
                try:
                    os.write(other[end], queue.popleft()[1])
                except OSError:
                    pass   # the other device is down: as on a cable, the frame is gone


def main(first_namespace, first, second_namespace, second, milliseconds):
    ends = [tap(first_namespace, first), tap(second_namespace, second)]
    print("ready", flush=True)
    carry(ends, float(milliseconds) / 1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
