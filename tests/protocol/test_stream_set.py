"""Numbers, windows and turns of one generation's streams."""

from __future__ import annotations

import pytest

from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.stream_messages import Data, Open, SocketTarget, StreamKind
from protocol.stream_set import StreamSet
from protocol.streams import StreamInput

TARGET = SocketTarget("::1", 1)


def test_a_set_owns_its_own_streams_only() -> None:
    one, two = StreamSet(1), StreamSet(1)
    stream = one.open(StreamKind.TCP, TARGET)
    other = two.open(StreamKind.TCP, TARGET)
    assert stream.number == other.number
    assert one.owns(stream)
    assert not one.owns(other)
    assert one.get(1) is stream


def test_known_numbers() -> None:
    streams = StreamSet(2)
    streams.open(StreamKind.TCP, TARGET)
    streams.offer_untrusted(Open(7, StreamKind.TCP, TARGET, 0))
    assert [number for number in range(1, 10) if streams.was_known(number)] == [1, 2, 3, 5, 7]


def test_ending_a_set_finishes_its_streams() -> None:
    streams = StreamSet(1)
    stream = streams.open(StreamKind.TCP, TARGET)
    stream.queue_payload(b"x")
    streams.end()
    assert stream.finished
    assert list(streams.alive) == []


def test_a_stream_stands_in_the_round_once() -> None:
    streams = StreamSet(1)
    flow = streams.open(StreamKind.UDP, TARGET)
    flow.queue_payload(b"a")
    streams.wake(flow)
    streams.wake(flow)
    assert streams.next_message() == Data(1, b"a")
    assert streams.next_message() is None


def test_what_was_said_goes_first_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUED", 1)
    streams = StreamSet(1)
    streams.said.append(Data(1, b"said"))
    streams.check_said()
    streams.said.append(Data(1, b"more"))
    with pytest.raises(RemoteProtocolError, match="does not read"):
        streams.check_said()
    assert streams.next_message() == Data(1, b"said")


def test_forgetting_waits_for_the_end() -> None:
    streams = StreamSet(1)
    stream = streams.open(StreamKind.TCP, TARGET)
    streams.forget_finished(stream)
    assert streams.owns(stream)
    stream.change(StreamInput.SEND_RESET)
    streams.forget_finished(stream)
    streams.forget_finished(stream)
    assert not streams.owns(stream)
