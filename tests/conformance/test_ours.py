"""Every case holds for our forwarder, over both address families. `python -m tests.conformance` writes the table."""

from __future__ import annotations

import pytest

from tests.conformance.bench import Bench, Family
from tests.conformance.case import Case, attempt
from tests.conformance.catalogue import applicable
from tests.conformance.ours import HostProcess, OurForwarder, our_forwarder
from tests.e2e.shared_guest import SharedGuest

pytestmark = [pytest.mark.tiny_guest, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("case", "family"),
    [pytest.param(case, family, id=f"{family}: {case.group}, {case.name}")
     for case, family in applicable(OurForwarder.abilities)],
)  # fmt: skip
async def test_case_holds(guest: SharedGuest, ours: HostProcess, case: Case, family: Family) -> None:
    async with our_forwarder(ours, guest.server) as forwarder:
        outcome = await attempt(case, Bench(forwarder, guest.server, family))
    print(*outcome.notes, sep="\n")
    assert not outcome.failure


async def test_no_port_had_to_be_found_by_the_slow_tick(guest: SharedGuest, ours: HostProcess) -> None:
    """After all of the above, storms included: the kernel's wake-ups have announced every change."""
    async with our_forwarder(ours, guest.server) as forwarder:
        assert await forwarder.wakeups() == {"away": {}, "misses": 0}
