"""A host and a guest back to back: generations, versions, messages, liveness."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import encode
from protocol.connection import GenerationEnded, GenerationStarted, Incompatible
from protocol.errors import LocalProtocolError
from protocol.framing import FLUSH, FrameEncoder, Preamble, PreambleKind
from protocol.listener_messages import Listen, ListenFailed, Listening, Unlisten
from protocol.messages import (
    Clock,
    Message,
    Ping,
    Pong,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    Status,
    StatusRequest,
)
from protocol.ports import Port, Protocol
from protocol.stream_messages import (
    Credit,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
    StreamMessage,
    TerminalSize,
)
from tests.protocol.pair import HELLO, TARGET, Pair
from tests.strategies import MESSAGES_OF_EVERY_KIND, pieces

LISTEN = Listen(1, StreamKind.TCP, SocketTarget("127.0.0.1", 80))
CHANGE = PortsChanged((Port(Protocol.TCP, "0.0.0.0", 80),), ())


# ---------------------------------------------------------------------- a generation begins


def test_both_say_hello_and_run() -> None:
    pair = Pair().connect()
    assert not pair.host.connection.running
    pair.settle()
    assert pair.host.heard == [GenerationStarted(replace(HELLO, boot_id="boot"), 1)]
    assert pair.guest.heard == [GenerationStarted(HELLO, 1)]


def test_byte_by_byte_says_the_same() -> None:
    whole, slow = Pair().connect(), Pair().connect()
    whole.settle()
    slow.settle(step=1)
    assert whole.host.heard == slow.host.heard
    assert whole.guest.heard == slow.guest.heard


@given(data=st.data())
@settings(max_examples=30)
def test_any_pieces_say_the_same(data: st.DataObject) -> None:
    pair = Pair().start()
    stream, _ = pair.open()
    pair.host.connection.send_data(stream, b"hello")
    pair.host.connection.send(Clock(7))
    pair.host.connection.send_end(stream)
    pair.leave(pair.host)
    for piece in data.draw(pieces(bytes(pair.guest.coming))):
        pair.guest.heard += pair.guest.connection.receive_data(piece, pair.now)
    assert pair.guest.heard == [Clock(7), Data(1, b"hello"), EndOfData(1)]


def test_the_highest_common_version_is_spoken() -> None:
    pair = Pair(host=replace(HELLO, highest_version=7), guest=replace(HELLO, lowest_version=1, highest_version=5))
    pair.connect().settle()
    assert [event.version for event in pair.host.heard if isinstance(event, GenerationStarted)] == [5]
    assert [event.version for event in pair.guest.heard if isinstance(event, GenerationStarted)] == [5]


@pytest.mark.parametrize("host_is_newer", [True, False])
def test_no_common_version_is_said_and_nothing_follows(host_is_newer: bool) -> None:
    newer = replace(HELLO, lowest_version=2, highest_version=3)
    pair = Pair(host=newer) if host_is_newer else Pair(guest=newer)
    pair.connect().settle()
    assert isinstance(pair.host.heard[0], Incompatible)
    assert isinstance(pair.guest.heard[0], Incompatible)
    assert not pair.host.connection.running
    with pytest.raises(LocalProtocolError):
        pair.host.connection.send(CHANGE)
    pair.say(pair.guest, Ping(1))
    assert len(pair.host.heard) == 1
    assert pair.host.connection.deadline == math.inf


def test_an_upgraded_guest_agent_ends_the_incompatibility() -> None:
    pair = Pair(guest=replace(HELLO, lowest_version=2, highest_version=3)).connect()
    pair.settle()
    pair.guest.connection._hello = HELLO
    pair.restart(pair.guest)
    pair.settle()
    assert pair.running_again()


def test_something_else_than_hello_ends_the_greeting() -> None:
    pair = Pair().connect()
    pair.guest.connection._hello = Ping(1)  # type: ignore[assignment]
    for _ in range(3):
        pair.leave(pair.host)
        pair.arrive(pair.guest)
        pair.leave(pair.guest)
        pair.arrive(pair.host)
    assert pair.host.heard == [GenerationEnded("the peer did not say hello first", fault=True)] * 3
    assert not pair.host.connection.running
    pair.guest.connection._hello = HELLO
    pair.settle()
    assert pair.running_again()


def test_nothing_can_be_sent_without_a_generation() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.host.connection.send(CHANGE)
    with pytest.raises(LocalProtocolError):
        pair.host.connection.open_stream(StreamKind.TCP, TARGET)
    assert pair.host.connection.receive_data(b"early", 0.0) == []
    assert pair.host.connection.data_to_send() == b""
    assert pair.host.connection.deadline == math.inf
    assert pair.host.connection.handle_time(0.0) == []


def test_connecting_twice_is_our_bug() -> None:
    pair = Pair().connect()
    with pytest.raises(LocalProtocolError, match="connected already"):
        pair.host.connection.connected(0.0)


# ---------------------------------------------------------------------- what may be said


@given(message=MESSAGES_OF_EVERY_KIND, to_host=st.booleans())
def test_any_message_is_an_event_or_a_fault(message: Message, to_host: bool) -> None:
    pair = Pair().start()
    pair.open(pair.host)
    pair.open(pair.guest)
    sender = pair.guest if to_host else pair.host
    receiver = pair.other(sender)
    pair.say(sender, message)
    for event in receiver.heard:
        assert event == message or isinstance(event, GenerationEnded)
    pair.settle()
    assert pair.host.connection.running
    assert pair.guest.connection.running


@given(garbage=st.binary(max_size=500))
def test_garbage_never_raises_and_both_run_again(garbage: bytes) -> None:
    pair = Pair().start()
    pair.host.coming += garbage
    pair.guest.coming += garbage
    pair.settle()
    pair.wait(2.0)
    assert pair.host.connection.running
    assert pair.guest.connection.running


@given(body=st.binary(min_size=1, max_size=60))
def test_a_frame_full_of_garbage_never_raises(body: bytes) -> None:
    pair = Pair().start()
    encoder = pair.guest.connection._handshake.encoder
    assert encoder is not None
    pair.host.coming += encoder.encode(body)
    pair.settle()
    assert pair.host.connection.running


@pytest.mark.parametrize(
    "message",
    [CHANGE, PortsSnapshot((), True), PortOwners(()), Status((), ()), Listening(1), ListenFailed(1, "EIO", "")],
)
def test_only_the_guest_speaks_of_its_ports(message: Message) -> None:
    pair = Pair().start()
    pair.say(pair.guest, message)
    assert pair.host.heard == [message]
    pair.say(pair.host, message)
    assert pair.guest.last_reason().endswith("is not the peer's to say")


@pytest.mark.parametrize("message", [Clock(1), PowerOff(False), StatusRequest(), LISTEN, Unlisten(1)])
def test_only_the_host_gives_orders(message: Message) -> None:
    pair = Pair().start()
    pair.say(pair.host, message)
    assert pair.guest.heard == [message]
    pair.say(pair.guest, message)
    assert pair.host.last_reason().endswith("is not the peer's to say")


def test_hello_twice_is_a_fault() -> None:
    pair = Pair().start()
    pair.say(pair.guest, Ping(1), HELLO)
    assert pair.host.heard == [GenerationEnded("the peer said hello twice", True)]


FOR_NO_STREAM: list[StreamMessage] = [
    Opened(99, 1),
    Refused(99, "EIO", ""),
    Data(98, b"x"),
    EndOfData(99),
    Reset(98, ""),
    Credit(99, 1),
    Signal(98, "INT"),
    Resize(98, TerminalSize(1, 1)),
    Exit(99, 0, None),
    ErrorOutput(99, b"x"),
]


@pytest.mark.parametrize("message", FOR_NO_STREAM)
def test_a_stream_that_never_was_is_a_fault(message: StreamMessage) -> None:
    pair = Pair().start()
    pair.say(pair.guest, message)
    assert pair.host.last_reason() == f"stream {message.stream} was never opened"


@pytest.mark.parametrize("message", [Data(1, b"x"), EndOfData(1), Reset(1, ""), Credit(1, 1), Opened(1, 1)])
def test_late_messages_about_a_finished_stream_are_ignored(message: Message) -> None:
    pair = Pair().start()
    stream, _ = pair.open()
    pair.host.connection.send_reset(stream, "enough")
    pair.say(pair.guest, message)
    assert pair.host.heard == []
    assert pair.host.connection.running


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_streams_have_the_openers_parity_and_rise(number: int) -> None:
    pair = Pair().start()
    pair.open(pair.guest)  # 2
    pair.say(pair.guest, Open(number, StreamKind.TCP, TARGET, 0))
    assert pair.host.last_reason() == f"stream {number} is not the peer's to open"


def test_numbers_may_have_gaps() -> None:
    pair = Pair().start()
    pair.say(pair.guest, Open(10, StreamKind.TCP, TARGET, 0))
    pair.say(pair.guest, Data(4, b"x"))
    assert [type(event) for event in pair.host.heard] == [Open]
    assert [stream.number for stream in pair.host.connection.streams] == [10]


# ---------------------------------------------------------------------- liveness


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    pair = Pair().start()
    start = pair.now
    pair.host.connection.receive_data(b"", start)
    assert pair.host.connection.deadline == start + limits.PING_AFTER
    assert pair.host.connection.handle_time(start + limits.PING_AFTER - 0.1) == []
    assert pair.host.connection.data_to_send() == b""
    assert pair.host.connection.handle_time(start + limits.PING_AFTER) == []
    assert pair.host.connection.data_to_send() != b""
    assert pair.host.connection.deadline == start + limits.PING_AFTER + limits.PONG_WITHIN
    assert pair.host.connection.handle_time(start + limits.PING_AFTER + limits.PONG_WITHIN) == [
        GenerationEnded("the peer has been silent", False)
    ]
    assert pair.host.connection.data_to_send().startswith(FLUSH)


def test_an_idle_pair_keeps_running() -> None:
    pair = Pair().start()
    pair.wait(120.0)
    assert pair.host.heard == []
    assert pair.guest.heard == []
    assert pair.host.connection.running


def test_a_process_that_slept_asks_before_it_gives_up() -> None:
    pair = Pair().start()
    pair.now += 3_600.0
    assert pair.guest.connection.handle_time(pair.now) == []
    pair.settle()
    assert pair.guest.connection.deadline == pair.now + limits.GUEST_PING_AFTER


def test_bytes_that_are_no_frame_are_no_sign_of_life() -> None:
    pair = Pair().start()
    encoder = pair.guest.connection._handshake.encoder
    assert encoder is not None
    half = encoder.encode(bytes(60_000))
    for second in range(40):
        pair.host.connection.receive_data(half[second : second + 1], pair.now + second)
        pair.host.heard += pair.host.connection.handle_time(pair.now + second)
    assert pair.host.last_reason() == "the peer has been silent"


def test_a_pong_says_the_token_and_only_the_last_one_waits() -> None:
    pair = Pair().start()
    pair.say(pair.guest, *(Ping(token) for token in range(1_000)))
    assert pair.host.connection._pong == Pong(999)
    sent = pair.leave(pair.host)
    assert sent == len(FrameEncoder(0).encode(encode(Pong(999))))
    pair.arrive(pair.guest)
    assert pair.guest.heard == []


# ---------------------------------------------------------------------- generations end


def test_disconnecting_ends_the_generation_once() -> None:
    pair = Pair().start()
    stream, _ = pair.open()
    assert pair.host.connection.disconnected("cut") == [GenerationEnded("cut", False)]
    assert pair.host.connection.disconnected("cut") == []
    assert pair.host.connection.data_to_send() == b""
    assert list(pair.host.connection.streams) == []
    assert stream.finished


def test_a_stream_of_an_older_generation_reaches_nothing() -> None:
    """Its number belongs to another stream now."""
    pair = Pair().start()
    old, old_theirs = pair.open()
    waiting, _ = pair.open(pair.guest, accept=False)
    pair.restart(pair.host)
    pair.settle()
    pair.host.heard.clear()
    pair.guest.heard.clear()
    new, theirs = pair.open()
    assert (new.number, old.number) == (1, 1)
    guest = pair.guest.connection
    assert not guest.send_data(old_theirs, b"stale")
    guest.send_end(old_theirs)
    guest.send_exit(old_theirs, 0, None)
    guest.send_reset(old_theirs, "stale")
    guest.consumed(old_theirs, limits.STREAM_WINDOW)
    guest.accept_stream(waiting)
    guest.refuse_stream(waiting, "EIO", "stale")
    pair.settle()
    assert pair.host.heard == []
    assert theirs.sendable is False
    assert guest.send_data(theirs, b"new")
    pair.settle()
    assert pair.host.heard == [Data(1, b"new")]


def test_a_long_command_is_denied_before_it_is_sent() -> None:
    pair = Pair().start()
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        pair.host.connection.open_stream(StreamKind.TCP, SocketTarget("fe80::1%eth0", 80))
    assert list(pair.host.connection.streams) == []
    assert pair.open()[0].number == 1


def test_preambles_out_of_place_end_the_generation() -> None:
    pair = Pair().start()
    pair.host.coming += Preamble(PreambleKind.ANSWER, b"x" * 16, b"y" * 16).encode()
    pair.arrive(pair.host)
    assert pair.host.heard == [GenerationEnded("a preamble came in the middle of a generation", True)]
    pair.settle()
    assert pair.host.connection.running
