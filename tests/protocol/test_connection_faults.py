"""What the link does to two connections (facts of virtio-serial): holes, old bytes, cuts in mid-frame, restarts."""

from __future__ import annotations

import math

import pytest

from protocol import limits
from protocol.connection import Event, GenerationEnded, GenerationStarted
from protocol.framing import FLUSH, PREAMBLE_SIZE, Preamble, PreambleKind
from protocol.stream_messages import Data, StreamKind
from tests.protocol.pair import TARGET, End, Pair

CHUNK = bytes(range(256)) * 256


def busy(pair: Pair) -> None:
    """A stream in both directions, with frames on their way."""
    ours, theirs = pair.open()
    for stream, end in ((ours, pair.host), (theirs, pair.guest)):
        end.connection.send_data(stream, CHUNK * 2)
        pair.leave(end)


def generations(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, GenerationStarted | GenerationEnded)]


def assert_usable(pair: Pair) -> None:
    """Both are in the same generation: a stream between them carries data both ways."""
    assert pair.running_again()
    ours, theirs = pair.open()
    pair.host.heard.clear()
    pair.guest.heard.clear()
    pair.host.connection.send_data(ours, b"there")
    pair.guest.connection.send_data(theirs, b"and back")
    pair.settle()
    assert pair.guest.heard == [Data(ours.number, b"there")]
    assert pair.host.heard == [Data(ours.number, b"and back")]


@pytest.mark.parametrize("restarted", ["host", "guest"])
@pytest.mark.parametrize("left", [0, 1, 7, 12, 13, 4_096, 65_000, 70_000])
def test_an_agent_restarts_with_the_other_in_mid_frame(restarted: str, left: int) -> None:
    pair = Pair().start()
    busy(pair)
    end: End = getattr(pair, restarted)
    other = pair.other(end)
    del other.coming[left:]  # the rest of the frame died with the agent
    pair.arrive(other)
    pair.restart(end)
    pair.settle()
    assert_usable(pair)
    ended = [event for event in other.heard if isinstance(event, GenerationEnded)]
    assert len(ended) <= 1


@pytest.mark.parametrize("restarted", ["host", "guest"])
def test_recovery_takes_no_time_when_nothing_is_lost(restarted: str) -> None:
    pair = Pair().start()
    before = pair.now
    busy(pair)
    pair.restart(getattr(pair, restarted))
    pair.settle()
    assert pair.now == before
    assert_usable(pair)


@pytest.mark.parametrize("cut", [1, 11, 12, 100, 65_535])
@pytest.mark.parametrize("to_guest", [True, False])
def test_a_lost_middle_ends_the_generation_and_never_passes(to_guest: bool, cut: int) -> None:
    pair = Pair().start()
    busy(pair)
    receiver = pair.guest if to_guest else pair.host
    del receiver.coming[30 : 30 + cut]
    pair.settle()
    pair.wait(2.0)
    payloads = b"".join(event.payload for event in receiver.heard if isinstance(event, Data))
    assert (CHUNK * 2).startswith(payloads)
    assert any(isinstance(event, GenerationEnded) for event in receiver.heard)
    assert_usable(pair)


def test_megabytes_of_an_older_generation_are_skipped() -> None:
    pair = Pair().start()
    busy(pair)
    stale = bytes(pair.host.coming) * 40
    pair.restart(pair.host)
    pair.host.coming[:0] = stale
    pair.host.heard.clear()
    pair.settle(step=4_096)
    assert [type(event) for event in pair.host.heard] == [GenerationStarted]
    assert_usable(pair)


def test_stale_answers_and_losts_are_skipped() -> None:
    pair = Pair().start()
    stale = Preamble(PreambleKind.ANSWER, b"g" * 16, b"h" * 16).encode() * 3
    pair.restart(pair.host)
    pair.host.coming[:0] = stale
    pair.settle()
    assert_usable(pair)


@pytest.mark.parametrize("lost", ["host", "guest"])
def test_everything_said_at_a_restart_is_lost(lost: str) -> None:
    """QEMU may drop what is queued at a reconnect, the flush and the question as well."""
    pair = Pair().start()
    busy(pair)
    end: End = getattr(pair, lost)
    other = pair.other(end)
    del other.coming[70:]  # the other one is in mid-frame and hears nothing that ends it
    pair.arrive(other)
    pair.restart(end)
    pair.leave(end)
    other.coming.clear()
    pair.settle()
    assert not end.connection.running
    pair.wait(3 * limits.SYNC_RETRY)
    assert_usable(pair)


def test_a_lost_question_is_repeated_with_its_marker() -> None:
    pair = Pair()
    pair.host.connection.connected(pair.now)
    first = pair.host.connection.data_to_send()
    assert pair.host.connection.deadline == pair.now + limits.SYNC_RETRY
    pair.host.connection.handle_time(pair.now + limits.SYNC_RETRY)
    again = pair.host.connection.data_to_send()
    assert again == first
    assert again.startswith(FLUSH)
    assert pair.host.connection.deadline == pair.now + 2 * limits.SYNC_RETRY


def test_questions_that_cannot_leave_cost_no_memory() -> None:
    pair = Pair()
    pair.host.connection.connected(pair.now)
    for second in range(1, 500):
        pair.host.connection.handle_time(pair.now + second * limits.SYNC_RETRY)
        pair.host.connection.receive_data(Preamble(PreambleKind.LOST, b"x" * 16).encode() * 20, pair.now)
    assert len(pair.host.connection.data_to_send()) == len(FLUSH) + PREAMBLE_SIZE


@pytest.mark.parametrize("one_batch", [True, False])
def test_repeated_questions_start_one_generation_only(one_batch: bool) -> None:
    """The guest agent starts late and finds a backlog of questions."""
    pair = Pair()
    pair.host.connection.connected(pair.now)
    for _ in range(5):
        pair.leave(pair.host)
        pair.now += limits.SYNC_RETRY
        pair.host.connection.handle_time(pair.now)
    pair.guest.connection.connected(pair.now)
    pair.guest.connection.data_to_send()  # its LOST is lost
    while pair.guest.coming:
        pair.arrive(pair.guest, None if one_batch else 1_000)
        pair.leave(pair.guest)
    pair.settle()
    assert [type(event) for event in pair.host.heard] == [GenerationStarted]
    assert [type(event) for event in pair.guest.heard] == [GenerationStarted]
    assert_usable(pair)


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.5, 4.0])
def test_a_slow_link_converges(delay: float) -> None:
    """Each byte takes `delay` seconds each way, which is more than the host waits before it asks again."""
    pair = Pair().connect()
    step = 0.1
    way: dict[str, list[tuple[float, bytes]]] = {"host": [], "guest": []}
    for _ in range(round(20 * max(1.0, delay) / step)):
        for name, end in (("host", pair.host), ("guest", pair.guest)):
            end.heard += end.connection.handle_time(pair.now)
            pair.leave(end)
            other = pair.other(end)
            way[name].append((pair.now + delay, bytes(other.coming)))
            other.coming.clear()
            while way[name] and way[name][0][0] <= pair.now:
                other.heard += other.connection.receive_data(way[name].pop(0)[1], pair.now)
        pair.now += step
    assert pair.host.connection.running
    assert pair.guest.connection.running
    assert [type(event) for event in generations(pair.host.heard)] == [GenerationStarted]


def test_a_late_answer_to_an_older_question_is_ignored() -> None:
    pair = Pair().connect()
    pair.leave(pair.host)
    pair.arrive(pair.guest)
    pair.leave(pair.guest)
    pair.host.connection.disconnected("cut")
    pair.host.connection.connected(pair.now)
    pair.arrive(pair.host)
    assert pair.host.heard == []
    pair.settle()
    assert_usable(pair)


def test_an_answer_repeated_in_mid_generation_begins_a_new_one() -> None:
    pair = Pair().connect()
    pair.settle()
    marker = pair.host.connection._handshake._marker
    answer = Preamble(PreambleKind.ANSWER, pair.guest.connection._handshake._marker, marker).encode()
    busy(pair)
    pair.arrive(pair.host)
    pair.host.coming += answer
    pair.arrive(pair.host)
    assert isinstance(pair.host.heard[-1], GenerationEnded)
    pair.settle()
    pair.wait(3.0)
    assert_usable(pair)


def test_lost_makes_the_host_ask_at_once() -> None:
    pair = Pair().start()
    pair.host.coming += Preamble(PreambleKind.LOST, b"x" * 16).encode()
    pair.arrive(pair.host)
    assert pair.host.heard == [GenerationEnded("the guest agent restarted or lost its place", False)]
    pair.settle()
    assert_usable(pair)


def test_the_guest_says_lost_again_until_it_is_asked() -> None:
    pair = Pair()
    pair.guest.connection.connected(pair.now)
    assert pair.guest.connection.data_to_send()
    pair.guest.connection.handle_time(pair.now + limits.SYNC_RETRY)
    assert pair.guest.connection.data_to_send()
    pair.host.connection.connected(pair.now)
    pair.leave(pair.host)
    pair.arrive(pair.guest)
    assert pair.guest.connection.deadline == math.inf


def test_the_guest_hunts_quietly_when_the_host_flushed() -> None:
    pair = Pair().start()
    pair.guest.coming += FLUSH
    pair.arrive(pair.guest)
    assert pair.guest.heard == [GenerationEnded("the peer gave up this generation", False)]
    assert pair.guest.connection.data_to_send() == b""
    pair.wait(2 * limits.SYNC_RETRY)
    assert_usable(pair)


def test_the_host_asks_when_the_guest_flushed() -> None:
    pair = Pair().start()
    pair.host.coming += FLUSH
    pair.arrive(pair.host)
    assert pair.host.heard == [GenerationEnded("the peer gave up this generation", False)]
    pair.settle()
    assert_usable(pair)


@pytest.mark.parametrize("marker", [bytes(16), b"s" * 16])
def test_a_forged_question_gives_a_stranger_nothing(marker: bytes) -> None:
    """Bytes of strangers may be searched for preambles after a loss; the generation they begin has no frames."""
    pair = Pair().start()
    busy(pair)
    forged = Preamble(PreambleKind.SYNC, marker).encode()
    pair.guest.coming[40:400] = forged
    pair.arrive(pair.guest)
    assert pair.guest.connection._handshake._marker != bytes(16)
    pair.settle()
    pair.wait(2 * limits.SYNC_RETRY)
    assert_usable(pair)


def test_an_echo_of_our_own_bytes_is_no_peer() -> None:
    pair = Pair()
    pair.host.connection.connected(pair.now)
    for _ in range(5):
        echo = pair.host.connection.data_to_send()
        assert pair.host.connection.receive_data(echo, pair.now) == []
        pair.now += limits.SYNC_RETRY
        pair.host.connection.handle_time(pair.now)
    assert not pair.host.connection.running


@pytest.mark.parametrize("cycles", [120])
def test_many_restarts_in_mid_transfer(cycles: int) -> None:
    pair = Pair().start()
    for cycle in range(cycles):
        if pair.running_again():
            busy(pair)
        end = pair.host if cycle % 2 else pair.guest
        other = pair.other(end)
        del other.coming[(cycle * 7_919) % 70_000 :]
        pair.restart(end)
        pair.settle()
    assert pair.host.connection.open_stream(StreamKind.TCP, TARGET).number == 1
