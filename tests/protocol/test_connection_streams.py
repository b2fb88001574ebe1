"""Streams between a host and a guest: life, credit, priorities, datagrams."""

from __future__ import annotations

import pytest

from protocol import limits
from protocol.errors import LocalProtocolError
from protocol.messages import Clock, Message
from protocol.stream_messages import (
    CommandTarget,
    Credit,
    Data,
    EndOfData,
    Open,
    Opened,
    Refused,
    Reset,
    StreamKind,
)
from protocol.streams import StreamState
from tests.protocol.pair import TARGET, End, Pair

COMMAND = CommandTarget(("sh", "-c", "true"), (("A", "b"),), "", "", None)
WINDOW = limits.STREAM_WINDOW
FRAME = bytes(limits.MAX_PAYLOAD)


def payload(end: End) -> bytes:
    """All data heard."""
    return b"".join(event.payload for event in end.heard if isinstance(event, Data))


# ---------------------------------------------------------------------- life


def test_a_stream_from_open_to_both_ends() -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    assert (ours.state, theirs.state) == (StreamState.OPEN, StreamState.OPEN)
    pair.host.connection.send_data(ours, b"request")
    pair.host.connection.send_end(ours)
    pair.settle()
    assert pair.guest.heard == [Data(1, b"request"), EndOfData(1)]
    pair.guest.connection.send_data(theirs, b"answer")
    pair.guest.connection.send_end(theirs)
    assert theirs.state is StreamState.CLOSED
    assert pair.guest.connection.stream(1) is theirs  # its answer has not left yet
    pair.settle()
    assert pair.host.heard == [Data(1, b"answer"), EndOfData(1)]
    for end in (pair.host, pair.guest):
        assert list(end.connection.streams) == []
        assert end.connection._streams._windows == 0


def test_refused() -> None:
    pair = Pair().start()
    ours, theirs = pair.open(accept=False)
    pair.guest.connection.refuse_stream(theirs, "ECONNREFUSED", "nobody listens")
    pair.settle()
    assert pair.host.heard == [Refused(1, "ECONNREFUSED", "nobody listens")]
    assert ours.finished
    assert list(pair.host.connection.streams) == []


def test_a_reset_drops_what_waits_and_ends_both() -> None:
    pair = Pair().start()
    ours, _ = pair.open()
    pair.host.connection.send_data(ours, FRAME)
    pair.host.connection.send_reset(ours, "enough")
    pair.host.connection.send_reset(ours, "again")
    pair.settle()
    assert pair.guest.heard == [Reset(1, "enough")]
    assert list(pair.guest.connection.streams) == []
    assert not pair.host.connection.send_data(ours, b"late")


def test_the_peer_resets_while_we_dial() -> None:
    """Whatever the dialler does then reaches nobody, and is not its fault."""
    pair = Pair().start()
    ours, theirs = pair.open(accept=False)
    pair.host.connection.send_reset(ours, "the client went away")
    pair.settle()
    pair.guest.connection.accept_stream(theirs)
    pair.guest.connection.send_data(theirs, b"late")
    pair.guest.connection.refuse_stream(theirs, "EIO", "late")
    assert pair.guest.connection.data_to_send() == b""


def test_misuse_is_our_bug() -> None:
    pair = Pair().start()
    ours, _ = pair.open()
    with pytest.raises(LocalProtocolError, match="cannot send OPENED"):
        pair.host.connection.accept_stream(ours)
    pair.host.connection.send_end(ours)
    with pytest.raises(LocalProtocolError, match="cannot send DATA"):
        pair.host.connection.send_data(ours, b"x")


def test_reasons_of_any_length_and_form_can_be_sent() -> None:
    pair = Pair().start()
    ours, theirs = pair.open(accept=False)
    pair.guest.connection.refuse_stream(theirs, "E" * 300, "\udcff" + "ä" * 5_000)
    pair.settle()
    refused = pair.host.heard.pop()
    assert isinstance(refused, Refused)
    assert refused.error == "E" * limits.MAX_NAME
    assert refused.reason == "?" + "ä" * ((limits.MAX_TEXT - 1) // 2)
    assert ours.finished


# ---------------------------------------------------------------------- credit


def test_a_sender_without_credit_waits_and_nothing_is_lost() -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    sent = bytes(range(256)) * (3 * WINDOW // 256)
    pair.host.connection.send_data(ours, sent)
    pair.host.connection.send_end(ours)
    pair.settle()
    assert len(payload(pair.guest)) == WINDOW
    assert ours.credit == 0
    assert not ours.sendable
    while (got := len(payload(pair.guest))) < len(sent):
        pair.guest.connection.consumed(theirs, 50_000)
        pair.settle()
        assert 0 <= ours.credit <= WINDOW
        assert len(payload(pair.guest)) - got <= WINDOW
    assert payload(pair.guest) == sent
    assert pair.guest.heard[-1] == EndOfData(1)
    assert pair.host.connection.running


def test_credit_is_granted_in_quarters() -> None:
    pair = Pair().start()
    _, theirs = pair.open()
    pair.guest.connection.consumed(theirs, WINDOW // 4 - 1)
    assert pair.guest.connection.data_to_send() == b""
    pair.guest.connection.consumed(theirs, 1)
    pair.settle()
    assert pair.host.connection.stream(1).credit == WINDOW + WINDOW // 4  # type: ignore[union-attr]


def test_no_credit_for_a_direction_that_ended() -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    pair.host.connection.send_end(ours)
    pair.settle()
    pair.guest.connection.consumed(theirs, WINDOW)
    assert pair.guest.connection.data_to_send() == b""


def test_more_than_was_granted_is_a_fault() -> None:
    pair = Pair().start()
    pair.open()
    pair.say(pair.host, *[Data(1, FRAME)] * (WINDOW // len(FRAME)))
    assert len(payload(pair.guest)) == WINDOW
    pair.say(pair.host, Data(1, b"x"))
    assert pair.guest.last_reason() == "stream 1: 1 bytes came with 0 granted"


def test_nothing_is_granted_before_opened() -> None:
    pair = Pair().start()
    pair.open(accept=False)
    pair.say(pair.host, Data(1, b"x"))
    assert pair.guest.last_reason() == "stream 1: 1 bytes came with 0 granted"


@pytest.mark.parametrize("kind", [StreamKind.TCP, StreamKind.UDP])
def test_credit_for_nothing_is_a_fault(kind: StreamKind) -> None:
    pair = Pair().start()
    pair.open(kind=kind, accept=kind is StreamKind.UDP)
    pair.say(pair.host, Credit(1, 1))
    assert pair.guest.last_reason() == "stream 1: credit for nothing"


def test_too_much_credit_is_a_fault() -> None:
    pair = Pair().start()
    pair.open()
    pair.say(pair.host, *[Credit(1, WINDOW)] * 8_192)
    assert pair.guest.last_reason() == "stream 1: credit overflows"


def test_empty_data_is_a_fault() -> None:
    """It would cost no credit, and so could be sent without end."""
    pair = Pair().start()
    pair.open()
    pair.say(pair.host, Data(1, b""))
    assert pair.guest.last_reason() == "stream 1: 0 bytes came with 262144 granted"


def test_windows_stay_within_the_budget() -> None:
    pair = Pair().start()
    full = limits.WINDOW_BUDGET // WINDOW
    windows = [pair.host.connection.open_stream(StreamKind.TCP, TARGET).window for _ in range(full + 2)]
    assert windows == [WINDOW] * full + [limits.SMALL_WINDOW] * 2
    pair.settle()
    assert {stream.window for stream in pair.guest.connection.streams} == {WINDOW, limits.SMALL_WINDOW}
    pair.host.connection.send_reset(next(iter(pair.host.connection.streams)), "room for another")
    assert pair.host.connection.open_stream(StreamKind.UDP, TARGET).window == 0
    pair.host.connection.send_reset(next(iter(pair.host.connection.streams)), "room for another")
    assert pair.host.connection.open_stream(StreamKind.TCP, TARGET).window == WINDOW


def test_the_source_is_paused_and_told_once() -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    pair.host.connection.send_data(ours, bytes(WINDOW))
    pair.settle()
    assert pair.host.connection.take_unpaused() == []
    pair.host.connection.send_data(ours, bytes(limits.SEND_QUEUE))
    assert ours.room() == 0
    pair.settle()
    assert pair.host.connection.take_unpaused() == []
    pair.guest.connection.consumed(theirs, WINDOW)
    pair.settle()
    assert pair.host.connection.take_unpaused() == [1]
    assert pair.host.connection.take_unpaused() == []


# ---------------------------------------------------------------------- what leaves first


def left_first(pair: Pair, end: End) -> list[Message]:
    """What `end` says, in order, as the other end hears it (in one batch)."""
    pair.leave(end)
    pair.arrive(pair.other(end))
    return [event for event in pair.other(end).heard if isinstance(event, Message)]


def test_a_message_overtakes_streams_and_life_overtakes_data() -> None:
    pair = Pair().start()
    ours, _ = pair.open()
    pair.host.connection.send_data(ours, FRAME * 2)
    pair.host.connection.open_stream(StreamKind.TCP, TARGET)
    pair.host.connection.send(Clock(1))
    kinds = [type(message) for message in left_first(pair, pair.host)]
    assert kinds == [Clock, Open, Data, Data]


def test_an_event_waits_for_no_more_than_one_batch_of_data() -> None:
    pair = Pair().start()
    ours, _ = pair.open()
    pair.host.connection.send_data(ours, FRAME * 4)
    first = pair.host.connection.data_to_send()
    assert len(first) < 2 * limits.MAX_PAYLOAD
    pair.host.connection.send(Clock(1))
    pair.guest.coming += first
    assert [type(message) for message in left_first(pair, pair.host)] == [Data, Clock, Data, Data, Data]


def test_streams_take_turns() -> None:
    pair = Pair().start()
    streams = [pair.open()[0] for _ in range(3)]
    for stream in streams:
        pair.host.connection.send_data(stream, FRAME * 2)
    numbers = [message.stream for message in left_first(pair, pair.host) if isinstance(message, Data)]
    assert numbers == [1, 3, 5, 1, 3, 5]


def test_a_reset_stream_leaves_the_round() -> None:
    pair = Pair().start()
    one, two = pair.open()[0], pair.open()[0]
    for stream in (one, two):
        pair.host.connection.send_data(stream, b"x")
    pair.host.connection.send_reset(one, "gone")
    assert left_first(pair, pair.host) == [Reset(1, "gone"), Data(3, b"x")]


def test_data_is_cut_to_the_credit() -> None:
    pair = Pair().start()
    ours = pair.host.connection.open_stream(StreamKind.EXEC, COMMAND)
    pair.settle()
    pair.guest.heard.clear()
    theirs = pair.guest.connection.stream(1)
    assert theirs is not None
    theirs.window = 10
    pair.guest.connection.accept_stream(theirs)
    pair.settle()
    assert pair.host.heard.pop() == Opened(1, 10)
    pair.host.connection.send_data(ours, b"0123456789ABCDEF")
    pair.settle()
    assert pair.guest.heard == [Data(1, b"0123456789")]
    pair.guest.connection.consumed(theirs, 10)
    pair.settle()
    assert pair.guest.heard == [Data(1, b"0123456789"), Data(1, b"ABCDEF")]


# ---------------------------------------------------------------------- datagrams


def test_datagrams_keep_their_boundaries_and_need_no_answer() -> None:
    pair = Pair().start()
    flow = pair.host.connection.open_stream(StreamKind.UDP, TARGET)
    sizes = (0, 1, 1_200, 65_507)
    for size in sizes:
        assert pair.host.connection.send_data(flow, bytes(size))
    pair.settle()
    assert [len(event.payload) for event in pair.guest.heard if isinstance(event, Data)] == list(sizes)
    theirs = pair.guest.connection.stream(1)
    assert theirs is not None
    pair.guest.connection.accept_stream(theirs)
    pair.guest.connection.consumed(theirs, 66_708)
    pair.guest.connection.send_data(theirs, b"answer")
    pair.settle()
    assert pair.host.heard == [Opened(1, 0), Data(1, b"answer")]
    assert flow.counters.sent == len(sizes)


def test_a_full_flow_drops_the_newest_and_counts_it() -> None:
    pair = Pair().start()
    ours, _ = pair.open(kind=StreamKind.UDP)
    taken = [pair.host.connection.send_data(ours, bytes([n])) for n in range(limits.FLOW_QUEUE + 3)]
    assert taken == [True] * limits.FLOW_QUEUE + [False] * 3
    assert (ours.counters.sent, ours.counters.dropped) == (limits.FLOW_QUEUE, 3)
    pair.settle()
    assert payload(pair.guest) == bytes(range(limits.FLOW_QUEUE))


def test_a_flow_is_bounded_in_bytes() -> None:
    pair = Pair().start()
    ours, _ = pair.open(kind=StreamKind.UDP)
    taken = [pair.host.connection.send_data(ours, bytes(65_507)) for _ in range(10)]
    assert taken == [True] * 8 + [False] * 2
    with pytest.raises(LocalProtocolError, match="does not fit"):
        pair.host.connection.send_data(ours, bytes(limits.MAX_PAYLOAD + 1))


@pytest.mark.parametrize("sender", ["host", "guest"])
def test_frames_are_short_while_somebody_waits_for_answers(sender: str) -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    host, guest = pair.host.connection, pair.guest.connection
    assert host.frame_size == guest.frame_size == limits.MAX_PAYLOAD
    if sender == "host":
        host.send_data(ours, bytes(limits.SMALL_PAYLOAD))
    else:
        guest.send_data(theirs, bytes(limits.SMALL_PAYLOAD))
    pair.settle()
    assert host.frame_size == guest.frame_size == limits.SHARED_PAYLOAD
    for _ in range(limits.SHARED_FRAMES):
        assert host.frame_size == limits.SHARED_PAYLOAD
        host.send_data(ours, bytes(limits.SMALL_PAYLOAD + 1))
    assert host.frame_size == limits.MAX_PAYLOAD
    assert guest.frame_size == limits.SHARED_PAYLOAD, "it has sent nothing large since"
