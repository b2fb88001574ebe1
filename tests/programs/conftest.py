"""The guest that the programs run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.programs.guest import ProgramGuest, programs_guest


@pytest.fixture(scope="package")
def guest() -> Iterator[ProgramGuest]:
    """One guest for all programs."""
    with programs_guest() as running:
        yield running
