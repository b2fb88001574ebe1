"""The guests that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.host_side import HostSide, host_side
from tests.e2e.shared_guest import SharedGuest, shared_guest
from tests.e2e.vm import Vm, full_guest


@pytest.fixture(scope="session")
def tiny() -> Iterator[SharedGuest]:
    """One tiny guest for all tests that only need what a guest agent does."""
    with shared_guest() as guest:
        yield guest


@pytest.fixture
async def host(tiny: SharedGuest) -> AsyncIterator[HostSide]:
    """A fresh host's side of it: each test is a generation of its own."""
    async with host_side(tiny.channel_socket) as side:
        yield side


@pytest.fixture(scope="session")
def shared_vm() -> Iterator[Vm]:
    """One full guest for all tests that leave it as they found it."""
    with full_guest() as guest:
        yield guest


@pytest.fixture
def vm(shared_vm: Vm) -> Vm:
    """The shared full guest, running: a test that failed half-way must not take the others with it."""
    if not shared_vm.is_up():
        shared_vm.up()
    return shared_vm
