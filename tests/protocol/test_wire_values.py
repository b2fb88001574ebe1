"""Each check returns the value or raises `RemoteProtocolError`, whatever it is given."""

from __future__ import annotations

import enum
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.wire_values import (
    address_untrusted,
    argument_untrusted,
    boolean_untrusted,
    bytes_untrusted,
    choice_untrusted,
    fields_untrusted,
    integer_untrusted,
    list_untrusted,
    listener_untrusted,
    socket_path_untrusted,
    text_clipped,
    text_untrusted,
)
from tests.strategies import WIRE_VALUES


class Colour(enum.StrEnum):
    RED = "red"


CHECKS: dict[str, tuple[Callable[[object], object], type]] = {
    "integer": (lambda value: integer_untrusted(value, 10), int),
    "boolean": (boolean_untrusted, bool),
    "bytes": (lambda value: bytes_untrusted(value, 3), bytes),
    "text": (lambda value: text_untrusted(value, 3), str),
    "argument": (lambda value: argument_untrusted(value, 3), str),
    "list": (lambda value: list_untrusted(value, 3), list),
    "fields": (lambda value: fields_untrusted(value, 2), list),
    "choice": (lambda value: choice_untrusted(value, Colour), str),
    "address": (address_untrusted, str),
    "socket path": (socket_path_untrusted, str),
    "listener": (listener_untrusted, int),
}


@pytest.mark.parametrize("name", CHECKS)
@given(value=WIRE_VALUES | st.sampled_from(["red", "::1", [1, 2], b"abc", 0, 10, "/run/s"]))
def test_a_value_of_that_type_or_an_error(name: str, value: object) -> None:
    check, kind = CHECKS[name]
    try:
        checked = check(value)
    except RemoteProtocolError:
        return
    assert isinstance(checked, kind)


@pytest.mark.parametrize(
    ("given_text", "canonical"),
    [("::FFFF:1.2.3.4", "::ffff:102:304"), ("127.0.0.1", "127.0.0.1"), ("0:0::1", "::1")],
)
def test_addresses_become_canonical(given_text: str, canonical: str) -> None:
    assert address_untrusted(given_text) in (canonical, "::ffff:1.2.3.4")


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\u202egnp", "\x00"])
def test_text_for_terminals_has_no_control_characters(text: str) -> None:
    assert text_untrusted(text).isprintable()


@given(st.text(st.characters(codec=None)), st.integers(0, 20))
def test_clipped_text_can_be_said_and_is_taken(text: str, most: int) -> None:
    clipped = text_clipped(text, most)
    assert len(clipped.encode()) <= most
    text_untrusted(clipped, most)


def test_short_text_is_not_clipped() -> None:
    assert text_clipped("Grüße") == "Grüße"


def test_true_is_no_integer() -> None:
    with pytest.raises(RemoteProtocolError):
        integer_untrusted(True, 10)
