"""The lab: real networks around a gateway, in network namespaces, for tests, demo and bench.

Start at `lab.Lab` (laboratory.py). Everything it makes lives in one private tree of pid, mount,
network, uts and ipc namespaces and dies with the first process in it.
"""

from .laboratory import Lab
from .plan import BROKER, UPLINKS

__all__ = ["Lab", "BROKER", "UPLINKS"]
