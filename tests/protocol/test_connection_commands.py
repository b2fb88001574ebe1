"""Commands over streams, and what a peer cannot make us hold."""

from __future__ import annotations

import pytest

from protocol import limits
from protocol.connection import GenerationEnded
from protocol.errors import LocalProtocolError
from protocol.messages import Message
from protocol.stream_messages import (
    CommandTarget,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Open,
    Opened,
    Resize,
    Signal,
    StreamKind,
    TerminalSize,
)
from tests.protocol.pair import TARGET, Pair

COMMAND = CommandTarget(("sh", "-c", "true"), (("A", "b"),), "", "", None)
WINDOW = limits.STREAM_WINDOW


def test_a_command_speaks_on_two_channels_and_ends() -> None:
    pair = Pair().start()
    ours, theirs = pair.open(kind=StreamKind.TCP)
    pair.host.connection.send_reset(ours, "")
    pair.settle()
    pair.guest.heard.clear()
    ours = pair.host.connection.open_stream(StreamKind.EXEC, COMMAND)
    pair.host.connection.send_about(Resize(ours.number, TerminalSize(25, 80)))
    pair.settle()
    assert pair.guest.heard == [Open(3, StreamKind.EXEC, COMMAND, WINDOW), Resize(3, TerminalSize(25, 80))]
    theirs_found = pair.guest.connection.stream(3)
    assert theirs_found is not None
    theirs = theirs_found
    guest = pair.guest.connection
    guest.accept_stream(theirs)
    guest.send_data(theirs, b"out")
    guest.send_data(theirs, b"err", error_output=True)
    guest.send_exit(theirs, 3, None)
    guest.send_end(theirs)
    pair.settle()
    assert pair.host.heard == [
        Opened(3, WINDOW), Data(3, b"out"), ErrorOutput(3, b"err"), Exit(3, 3, None), EndOfData(3)
    ]  # fmt: skip
    pair.host.connection.send_end(ours)
    pair.settle()
    pair.host.connection.send_about(Signal(3, "INT"))
    assert pair.host.connection.data_to_send() == b""


def test_a_signal_to_a_command_whose_output_waits_is_not_heard() -> None:
    pair = Pair().start()
    ours = pair.host.connection.open_stream(StreamKind.EXEC, COMMAND)
    pair.settle()
    theirs = pair.guest.connection.stream(1)
    assert theirs is not None
    pair.guest.connection.accept_stream(theirs)
    pair.settle()
    pair.host.connection.send_end(ours)
    pair.settle()
    pair.guest.connection.send_data(theirs, bytes(2 * WINDOW))
    pair.guest.connection.send_end(theirs)
    pair.settle()
    pair.guest.heard.clear()
    pair.host.connection.send_about(Signal(1, "INT"))
    pair.settle()
    assert pair.guest.heard == []
    assert pair.guest.connection.running


@pytest.mark.parametrize(
    ("from_host", "message"),
    [(True, ErrorOutput(1, b"x")), (True, Exit(1, 0, None)), (False, Signal(1, "INT")), (False, Exit(3, 0, None)),
     (False, Resize(1, TerminalSize(1, 1))), (True, Signal(3, "INT")), (False, ErrorOutput(3, b"x"))],
)  # fmt: skip
def test_only_commands_have_signals_and_exits_each_from_its_side(from_host: bool, message: Message) -> None:
    pair = Pair().start()
    pair.host.connection.open_stream(StreamKind.EXEC, COMMAND)
    pair.host.connection.open_stream(StreamKind.TCP, TARGET)
    pair.settle()
    for theirs in list(pair.guest.connection.streams):
        pair.guest.connection.accept_stream(theirs)
    pair.settle()
    sender = pair.host if from_host else pair.guest
    pair.say(sender, message)
    assert pair.other(sender).last_reason().endswith("runs no command of that side")


def test_a_command_that_fits_no_frame_is_denied() -> None:
    pair = Pair().start()
    huge = CommandTarget(("x" * 30_000,) * 3, (), "", "", None)
    broken = CommandTarget(("\udcff",), (), "", "", None)
    for target in (huge, broken):
        with pytest.raises(LocalProtocolError, match="Open cannot be sent"):
            pair.host.connection.open_stream(StreamKind.EXEC, target)
    pair.host.connection.open_stream(StreamKind.EXEC, COMMAND)
    pair.settle()
    assert pair.guest.heard == [Open(1, StreamKind.EXEC, COMMAND, WINDOW)]


def test_the_number_of_streams_is_bounded_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STREAMS", 4)
    pair = Pair().start()
    for _ in range(4):
        pair.host.connection.open_stream(StreamKind.TCP, TARGET)
    with pytest.raises(LocalProtocolError, match="all 4 streams"):
        pair.host.connection.open_stream(StreamKind.TCP, TARGET)
    pair.settle()
    pair.open(pair.guest)
    assert pair.guest.connection.running
    pair.say(pair.host, Open(9, StreamKind.TCP, TARGET, 0))
    assert pair.guest.last_reason() == "the peer opened more than 4 streams"


def test_a_peer_that_makes_us_speak_and_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUED", 100)
    pair = Pair().start()
    host = pair.host.connection
    for number in range(2, 500, 2):
        pair.say(pair.guest, Open(number, StreamKind.TCP, TARGET, 0))
        if not host.running:
            break
        stream = host.stream(number)
        assert stream is not None
        host.refuse_stream(stream, "EPERM", "no")
        assert len(host._streams.said) <= 101
    assert pair.host.heard[-1] == GenerationEnded("the peer does not read what it makes us say", True)


def test_new_streams_are_denied_while_too_much_waits_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUED", 10)
    pair = Pair().start()
    for _ in range(5):
        pair.host.connection.open_stream(StreamKind.UDP, TARGET)
    with pytest.raises(LocalProtocolError, match="takes no more"):
        pair.host.connection.open_stream(StreamKind.UDP, TARGET)
