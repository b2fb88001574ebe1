"""The table of a stream's life against every input, and two tables against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.limits import MAX_PAYLOAD, SEND_QUEUE, SEND_QUEUE_FRAMES, STREAM_WINDOW
from protocol.stream_messages import Data, EndOfData, SocketTarget, StreamKind
from protocol.streams import TRANSITIONS, Stream, StreamInput, StreamState

ENDS = {StreamInput.SEND_RESET, StreamInput.SEND_REFUSED, StreamInput.RECEIVE_RESET, StreamInput.RECEIVE_REFUSED}
MIRROR = {
    said: StreamInput(said.value.replace("send", "X").replace("receive", "send").replace("X", "receive"))
    for said in StreamInput
}


def stream(*, ours: bool = True, kind: StreamKind = StreamKind.TCP, credit: int = 0) -> Stream:
    return Stream(1, kind, SocketTarget("::1", 1), ours=ours, window=STREAM_WINDOW, credit=credit)


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("said", StreamInput)
def test_every_input_in_every_state(state: StreamState, said: StreamInput) -> None:
    one = stream()
    one.state = state
    expected = TRANSITIONS[state].get(said)
    if expected is not None:
        one.change(said)
        assert one.state is expected
        return
    error = LocalProtocolError if said.value.startswith("send") else RemoteProtocolError
    with pytest.raises(error, match=r"stream 1 is .*: cannot "):
        one.change(said)
    assert one.state is state


def test_the_table_is_whole() -> None:
    assert set(TRANSITIONS) == set(StreamState)
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached | {StreamState.OPENING, StreamState.OFFERED} == set(StreamState)
    assert {said for row in TRANSITIONS.values() for said in row} == set(StreamInput)


@pytest.mark.parametrize("state", StreamState)
def test_every_state_can_be_aborted_from_both_sides(state: StreamState) -> None:
    assert TRANSITIONS[state][StreamInput.SEND_RESET] is StreamState.CLOSED
    assert TRANSITIONS[state][StreamInput.RECEIVE_RESET] is StreamState.CLOSED


def test_nothing_leaves_closed() -> None:
    assert set(TRANSITIONS[StreamState.CLOSED].values()) == {StreamState.CLOSED}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(StreamInput)), max_size=12))
def test_what_one_side_may_say_the_other_may_hear(steps: list[tuple[bool, StreamInput]]) -> None:
    """Without delay, two ends never disagree; a table that forgets a state would."""
    opener, accepter = stream(ours=True), stream(ours=False)
    for by_opener, said in steps:
        speaker, listener = (opener, accepter) if by_opener else (accepter, opener)
        if not said.value.startswith("send") or said not in TRANSITIONS[speaker.state]:
            continue
        if listener.state is StreamState.CLOSED:
            continue  # it has forgotten the stream, and ignores what is late
        speaker.change(said)
        listener.change(MIRROR[said])
        assert (opener.state is StreamState.CLOSED) == (accepter.state is StreamState.CLOSED)


@given(
    credits_=st.lists(st.integers(1, STREAM_WINDOW), min_size=1, max_size=10),
    writes=st.lists(st.binary(min_size=1, max_size=2_000), max_size=8),
)
def test_what_leaves_is_what_was_queued_within_credit(credits_: list[int], writes: list[bytes]) -> None:
    one = stream()
    one.change(StreamInput.RECEIVE_OPENED)
    for data in writes:
        assert one.queue_payload(data)
    one.queue_end()
    left = bytearray()
    for credit in credits_:
        one.credit += credit
        while one.sendable:
            message = one.next_message()
            if isinstance(message, Data):
                left += message.payload
            else:
                assert message == EndOfData(1)
            assert one.credit >= 0
    assert b"".join(writes).startswith(left)
    assert one.finished is False
    assert len(left) <= sum(credits_)


def test_large_writes_are_cut_into_frames() -> None:
    one = stream(credit=STREAM_WINDOW)
    one.state = StreamState.OPEN
    one.queue_payload(bytes(2 * MAX_PAYLOAD + 1))
    sizes = []
    while one.sendable:
        message = one.next_message()
        assert isinstance(message, Data)
        sizes.append(len(message.payload))
    assert sizes == [MAX_PAYLOAD, MAX_PAYLOAD, 1]
    assert one.room() == SEND_QUEUE


@pytest.mark.parametrize("size", [1, MAX_PAYLOAD])
def test_room_ends_in_bytes_and_in_frames(size: int) -> None:
    one = stream()
    writes = 0
    while one.room():
        one.queue_payload(bytes(size))
        writes += 1
    assert one.source_paused
    assert writes == min(SEND_QUEUE_FRAMES, SEND_QUEUE // size)


def test_an_abandoned_stream_is_finished() -> None:
    one = stream()
    one.queue_payload(b"x")
    one.abandon()
    assert one.finished
    assert repr(one) == "<Stream 1 tcp closed>"
