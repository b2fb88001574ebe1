"""What each message about the guest refuses, and what it clips of our own."""

from __future__ import annotations

import pytest

from protocol import limits
from protocol.codec import decode_untrusted, encode
from protocol.errors import RemoteProtocolError
from protocol.messages import Clock, Hello, Message, PortOwners, PortsChanged, PortsSnapshot, Status
from protocol.ports import Port, PortOwner, Protocol, WakeupSource

PORT = Port(Protocol.TCP, "0.0.0.0", 80)


def test_a_later_hello_may_have_more_fields() -> None:
    hello = Hello(1, 2, frozenset({"a"}), "v", "b", "d")
    assert Hello.from_wire_untrusted([*hello.to_wire(), "news", 7]) == hello


def test_our_own_texts_are_clipped_and_made_utf8() -> None:
    owner = PortOwner("\udcffd", 1, 0, "u" * 400)
    heard = decode_untrusted(encode(PortOwners(((PORT, owner),))))
    assert heard == PortOwners(((PORT, PortOwner("?d", 1, 0, "u" * limits.MAX_NAME)),))
    status = decode_untrusted(encode(Status((WakeupSource("s", False, "r" * 5_000, 0),), ())))
    assert isinstance(status, Status)
    assert status.sources[0].reason == "r" * limits.MAX_TEXT
    hello = decode_untrusted(encode(Hello(1, 1, frozenset(), "v", "b", "\udc80" + "x" * 300)))
    assert isinstance(hello, Hello)
    assert hello.description == "?" + "x" * 254


@pytest.mark.parametrize("message", [PortsSnapshot((PORT,) * 257, True), PortsChanged((), (PORT,) * 257)])
def test_more_ports_than_a_frame_may_hold(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(encode(message))


def test_the_largest_snapshot_frame_fits() -> None:
    port = Port(Protocol.TCP, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", 65_535)
    owner = PortOwner("p" * 64, 2**32 - 1, 2**32 - 1, "u" * 100)
    for message in (PortsSnapshot((port,) * 256, True), PortsChanged((port,) * 256, (port,) * 256)):
        assert len(encode(message)) <= limits.MAX_BODY
    assert len(encode(PortOwners(((port, owner),) * 256))) <= limits.MAX_BODY


def test_a_clock_is_positive() -> None:
    with pytest.raises(RemoteProtocolError):
        Clock.from_wire_untrusted([-1])


def test_a_message_must_say_how_it_is_read() -> None:
    with pytest.raises(NotImplementedError):
        Message.from_wire_untrusted([])
