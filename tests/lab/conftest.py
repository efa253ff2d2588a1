"""One lab for the whole run of the tests, healed before each test; nothing is skipped.

Tests that must spoil a lab (kill it, restart its bus) make their own.
"""

import pytest

from . import plan
from .daemon import config
from .laboratory import Lab


@pytest.fixture(scope="session")
def the_lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(the_lab):
    """A well lab with all uplinks activated and no daemon."""
    yield the_lab
    if the_lab.daemon_running():
        the_lab.daemon_kill()
    if the_lab.inside_pid("broker") is None:
        the_lab.broker_start()
    the_lab.broker_thaw()
    for uplink in plan.UPLINKS:
        the_lab.heal(uplink)
        the_lab.carrier_up(uplink)
    if the_lab.inside_pid("network-manager") is None:
        the_lab.network_manager_start()
    the_lab.wait_uplinks()


@pytest.fixture
def online(lab):
    """The same with a fresh daemon online over eth, hold-down three seconds."""
    lab.daemon_fresh(config(hold_down="3s"))
    lab.wait_online("eth", within=15)
    return lab


@pytest.fixture
def load(lab):
    """A publisher of 20 numbered messages a second; the test starts it."""
    with_default_rate = lab.load()
    yield with_default_rate
    if lab.inside_pid(with_default_rate.name):
        with_default_rate.stop(settle=0)
