"""Bodies to messages and back; anything else is `RemoteProtocolError`."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import MESSAGES, check_sendable, decode_untrusted, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.limits import MAX_BODY
from protocol.messages import Message
from protocol.stream_messages import CommandTarget, Open, StreamKind
from tests.strategies import MESSAGES_OF_EVERY_KIND, WIRE_VALUES


@given(message=MESSAGES_OF_EVERY_KIND)
def test_every_message_survives_the_wire(message: Message) -> None:
    body = encode(message)
    assert decode_untrusted(body) == message
    check_sendable(message)


@given(body=st.binary(max_size=100))
def test_garbage_is_a_message_or_an_error(body: bytes) -> None:
    try:
        message = decode_untrusted(body)
    except RemoteProtocolError:
        return
    assert type(message) in MESSAGES.values()


@given(number=st.sampled_from(sorted(MESSAGES)), values=st.lists(WIRE_VALUES, max_size=6))
def test_wrong_fields_are_a_message_or_an_error(number: int, values: list[object]) -> None:
    body: bytes = msgpack.packb([number, *values])
    try:
        message = decode_untrusted(body)
    except RemoteProtocolError:
        return
    assert number == message.NUMBER


@given(message=MESSAGES_OF_EVERY_KIND, data=st.data())
def test_one_field_replaced_is_a_message_or_an_error(message: Message, data: st.DataObject) -> None:
    values = msgpack.unpackb(encode(message))
    at = data.draw(st.integers(0, len(values) - 1))
    values[at] = data.draw(WIRE_VALUES)
    try:
        decode_untrusted(msgpack.packb(values))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x90", id="empty list"),
        pytest.param(b"\x91\x00\x00", id="bytes behind"),
        pytest.param(b"\x91\xcc\xfe", id="unknown number"),
        pytest.param(b"\x91\xff", id="negative number"),
        pytest.param(b"\x91\xc3", id="true is no number"),
        pytest.param(b"\x05", id="no list"),
        pytest.param(b"\x92\x09\xa1\xff", id="text that is not UTF-8"),
        pytest.param(b"\x81\x00\x00", id="a map"),
        pytest.param(b"\x92\x01\xd6\xff\x00\x00\x00\x00", id="a timestamp"),
        pytest.param(b"\x91" * 2_000, id="deep"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GiB announced"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="4 G values announced"),
    ],
)
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(body)


def test_nested_announcements_cost_little_memory() -> None:
    body = b"\xdc\xff\xff" * 1_000 + b"\xc0" * (MAX_BODY - 3_000)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode_untrusted(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("\udcff",), id="not UTF-8"),
        pytest.param(("a\0b",), id="NUL"),
        pytest.param(("x" * 30_000,) * 3, id="larger than a frame"),
        pytest.param(("x",) * 1_025, id="too many"),
    ],
)
def test_a_command_that_the_peer_would_not_take(arguments: tuple[str, ...]) -> None:
    target = CommandTarget(arguments, (), "", "", None)
    with pytest.raises(LocalProtocolError, match="Open cannot be sent"):
        check_sendable(Open(1, StreamKind.EXEC, target, 0))
    check_sendable(Open(1, StreamKind.EXEC, CommandTarget(("ok",), (), "", "", None), 0))


def test_numbers_are_those_of_the_specification() -> None:
    assert sorted(MESSAGES) == list(range(25))
