"""One lab for the whole run of the tests, healed before each test; nothing is skipped.

Tests that must spoil a lab (kill it, restart its bus) make their own.
"""

import pytest

from . import plan
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
