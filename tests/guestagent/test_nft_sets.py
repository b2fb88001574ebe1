from __future__ import annotations

import pytest

from guestagent.nft_dump import SetRecord
from guestagent.nft_sets import CONCATENATION, INTERVAL, read_elements


@pytest.mark.parametrize("flags", [0, INTERVAL, INTERVAL | CONCATENATION])
def test_a_set_may_be_empty(flags: int) -> None:
    assert read_elements(SetRecord(2, "nat", "published", flags, 2), []).elements == ()
