"""All cases, in the order of the table."""

from __future__ import annotations

from tests.conformance import cases_datagrams, cases_ends, cases_listeners, cases_load, cases_servers
from tests.conformance.bench import Family
from tests.conformance.case import CASES, Case
from tests.conformance.forwarder import Ability

GROUPS = (cases_ends, cases_servers, cases_load, cases_listeners, cases_datagrams)

ALL_CASES: tuple[Case, ...] = tuple(sorted(CASES, key=lambda case: [group.GROUP for group in GROUPS].index(case.group)))


def applicable(abilities: frozenset[Ability], *, long: bool = False) -> list[tuple[Case, Family]]:
    """What can be tried on a forwarder with these abilities, in the short or the long form."""
    return [
        (case, family)
        for family in Family
        for case in ALL_CASES
        if case.needs <= abilities
        and (long or not case.long_only)
        and (family is Family.IPV4 or Ability.IPV6 in abilities)
    ]
