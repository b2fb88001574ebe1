"""Framing of netlink messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.netlink import DONE, ERROR, HEADER, KernelDataError, Message, error_number, pack, unpack

MESSAGES = st.lists(
    st.builds(
        Message,
        kind=st.integers(0, 0xFFFF),
        flags=st.integers(0, 0xFFFF),
        sequence=st.integers(0, 0xFFFFFFFF),
        payload=st.binary(max_size=40),
    )
)


@given(MESSAGES)
def test_what_is_packed_is_unpacked(messages: list[Message]) -> None:
    data = b""
    for message in messages:
        data += b"\0" * (-len(data) % 4) + pack(message.kind, message.flags, message.sequence, message.payload)
    assert list(unpack(data)) == messages


@given(st.binary(max_size=200))
def test_garbage_is_messages_or_the_documented_error(data: bytes) -> None:
    try:
        messages = list(unpack(data))
        for message in messages:
            if message.kind in (DONE, ERROR):
                error_number(message)
    except KernelDataError:
        return
    assert sum(HEADER.size + len(message.payload) for message in messages) <= len(data)


def test_an_error_without_errno_is_refused_and_a_bare_done_is_success() -> None:
    with pytest.raises(KernelDataError, match="no errno"):
        error_number(Message(ERROR, 0, 1, b""))
    assert error_number(Message(DONE, 0, 1, b"")) == 0


def test_the_kernel_gives_errnos_as_negative_numbers() -> None:
    assert error_number(Message(ERROR, 0, 1, (-16).to_bytes(4, "little", signed=True))) in (16, 0x10000000)
