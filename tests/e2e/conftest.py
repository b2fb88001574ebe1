"""The guests that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.host_side import HostSide, host_side
from tests.e2e.shared_guest import SharedGuest, shared_guest


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
