"""One lab for the whole run of the tests, made well again after each test; nothing is skipped.

A test can count on a well lab: every uplink activated, no fault, no daemon. A lab that cannot be made well is thrown
away and the next test gets a new one, so that one failure does not become many.
"""

import pytest

from . import plan
from .daemon import config
from .laboratory import Lab
from .namespaces import LabError


class Shared:
    """The lab of this run, raised when it is first needed."""

    lab = None

    def get(self):
        if self.lab is None:
            self.lab = Lab().__enter__()
        return self.lab

    def drop(self):
        if self.lab is not None:
            self.lab.__exit__()
            self.lab = None


@pytest.fixture(scope="session")
def shared():
    holder = Shared()
    yield holder
    holder.drop()


@pytest.fixture
def lab(shared):
    yield shared.get()
    try:
        make_well(shared.lab)
    except LabError:
        shared.drop()


@pytest.fixture
def online(lab):
    """The same with a fresh daemon online over eth, hold-down three seconds."""
    lab.daemon_fresh(config(hold_down="3s"))
    lab.wait_online("eth", within=15)
    return lab


@pytest.fixture
def load(lab):
    """A publisher of 20 numbered messages a second; the test starts it."""
    made = lab.load()
    yield made
    if lab.inside_pid(made.name):
        made.stop(settle=0)


def make_well(lab):
    if lab.daemon_running():
        lab.daemon_kill()
    if lab.inside_pid("broker") is None:
        lab.broker_start()
    lab.broker_thaw()
    for uplink in plan.UPLINKS:
        if not lab.path(f"/sys/class/net/{plan.UPLINKS[uplink].device}").exists():
            lab.modem_plug()
        lab.heal(uplink)
        lab.carrier_up(uplink)
    if lab.inside_pid("network-manager") is None:
        lab.network_manager_start()
    lab.modem_refuses(False)
    lab.modem_registered(True)
    try:
        lab.wait_uplinks(within=2)
    except LabError:
        # What an operator or a refusing network has switched off does not come back by itself.
        for uplink in plan.UPLINKS:
            if not lab.activated(uplink):
                lab.run(plan.GATEWAY, f"nmcli --wait 10 connection up {uplink}")
        lab.wait_uplinks(within=10)
