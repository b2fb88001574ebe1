"""Differences between two looks at the ports."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.ports import difference
from tests.strategies import PORTS

SETS = st.frozensets(PORTS, max_size=6)


@given(old=SETS, new=SETS)
def test_a_difference_leads_from_old_to_new(old: frozenset[object], new: frozenset[object]) -> None:
    change = difference(old, new)  # type: ignore[arg-type]
    assert (old - set(change.closed)) | set(change.opened) == new
    assert not set(change.opened) & old
    assert set(change.closed) <= old
    assert bool(change) == (old != new)
    assert list(change.opened) == sorted(change.opened)
