"""Who is at fault is always said."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError


def test_the_parent_is_never_raised() -> None:
    with pytest.raises(TypeError, match="who is at fault"):
        ProtocolError("something")


@pytest.mark.parametrize("kind", [LocalProtocolError, RemoteProtocolError])
def test_the_children_keep_their_message(kind: type[ProtocolError]) -> None:
    assert str(kind("a sentence")) == "a sentence"
