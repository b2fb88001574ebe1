"""The cases ask for what TCP does, not for what ours happens to do: the reference passes all but what is recorded."""

from __future__ import annotations

import pytest

from tests.conformance.bench import Bench, Family
from tests.conformance.case import Case, attempt
from tests.conformance.catalogue import applicable
from tests.conformance.forwarder import Ability
from tests.conformance.hostfwd import HostForward, host_forward
from tests.e2e.shared_guest import SharedGuest

pytestmark = [pytest.mark.tiny_guest, pytest.mark.timeout(300)]

TCP_CASES = [case for case, _ in applicable(HostForward.abilities - {Ability.UDP})]


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.group}, {case.name}") for case in TCP_CASES])
async def test_the_reference_does_what_tcp_does(guest: SharedGuest, case: Case) -> None:
    async with host_forward(guest.monitor_socket) as forwarder:
        outcome = await attempt(case, Bench(forwarder, guest.server, Family.IPV4))
    deviates = case.name in HostForward.deviations
    assert bool(outcome.failure) == deviates, outcome.failure or "it does this rightly by now: take it off the list"


def test_recorded_deviations_are_about_cases_that_exist() -> None:
    assert set(HostForward.deviations) <= {case.name for case in TCP_CASES}
