"""The guest and the forwarders that the cases are tried with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.bench import raise_descriptor_limit
from tests.conformance.ours import HostProcess, host_process
from tests.e2e.shared_guest import SharedGuest, shared_guest


@pytest.fixture(scope="package")
def guest() -> Iterator[SharedGuest]:
    """One tiny guest for all cases."""
    raise_descriptor_limit()
    with shared_guest() as running:
        yield running


@pytest.fixture(scope="module")
def ours(guest: SharedGuest) -> Iterator[HostProcess]:
    """Our host's side of it, for one module: the guest's ports are on the host while it lives."""
    with host_process(guest.channel_socket) as process:
        yield process
