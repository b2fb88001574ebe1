"""The instance that the short form of the suite does its worst to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.instance import Instance, instance


@pytest.fixture(scope="session")
def shared_victim() -> Iterator[Instance]:
    """One instance for all tests."""
    with instance() as made:
        yield made


@pytest.fixture
def victim(shared_victim: Instance) -> Instance:
    """The instance, running: a test that failed half-way must not take the others with it."""
    shared_victim.recover()
    return shared_victim


@pytest.fixture
def without_host_agent(victim: Instance) -> Instance:
    """The same, but nobody is at the host's end of its channel."""
    victim.kill_host_agent()
    return victim
