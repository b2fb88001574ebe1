"""One end's part in agreeing on a generation."""

from __future__ import annotations

import pytest

from protocol.errors import RemoteProtocolError
from protocol.framing import FLUSH, Preamble, PreambleKind
from protocol.handshake import Handshake, Role
from protocol.limits import SYNC_RETRY
from tests.protocol.pair import seeded

H, G = b"h" * 16, b"g" * 16


def handshake(role: Role) -> Handshake:
    made = Handshake(role, seeded(3))
    made.connected(10.0)
    return made


def sync(marker: bytes = H) -> Preamble:
    return Preamble(PreambleKind.SYNC, marker)


def said(one: Handshake) -> Preamble:
    """The preamble that leaves, without its flush."""
    unsaid = one.unsaid
    assert unsaid is not None
    assert one.take_unsaid().endswith(unsaid.encode())
    return unsaid


def test_the_host_asks_and_the_guest_says_lost() -> None:
    host, guest = handshake(Role.HOST), handshake(Role.GUEST)
    assert host.take_unsaid()[: len(FLUSH)] == FLUSH
    assert host.take_unsaid() == b""
    assert said(guest).kind is PreambleKind.LOST
    assert host.retry == 10.0 + SYNC_RETRY


def test_a_flush_that_has_not_left_stays_in_front() -> None:
    guest = handshake(Role.GUEST)
    guest.receive_preamble(sync(), 10.0)
    unsaid = guest.take_unsaid()
    assert unsaid.startswith(FLUSH)
    assert len(unsaid) == len(FLUSH) + len(sync().encode())
    guest.receive_preamble(sync(), 10.0)
    assert not guest.take_unsaid().startswith(FLUSH)


def test_a_repeated_question_gets_the_same_answer_until_the_generation_is_used() -> None:
    guest = handshake(Role.GUEST)
    answers = []
    for _ in range(2):
        guest.receive_preamble(sync(), 10.0)
        answers.append(said(guest))
    assert answers[0] == answers[1]
    guest.decoder._sequence = 1
    guest.receive_preamble(sync(), 10.0)
    assert said(guest).marker != answers[0].marker


def test_another_question_gets_another_answer() -> None:
    guest = handshake(Role.GUEST)
    guest.receive_preamble(sync(H), 10.0)
    first = said(guest)
    guest.receive_preamble(sync(G), 10.0)
    assert said(guest).marker != first.marker


def test_the_marker_is_random_even_for_a_marker_of_zeros() -> None:
    guest = handshake(Role.GUEST)
    guest.receive_preamble(sync(bytes(16)), 10.0)
    assert said(guest).marker != bytes(16)


def test_the_same_answer_again_is_no_turn() -> None:
    host = handshake(Role.HOST)
    answer = Preamble(PreambleKind.ANSWER, G, said(host).marker)
    assert host.receive_preamble(answer, 10.0) is not None
    encoder = host.encoder
    assert host.receive_preamble(answer, 10.0) is None
    assert host.encoder is encoder
    host.decoder._sequence = 2
    assert host.receive_preamble(answer, 10.0) is not None
    assert host.encoder is not encoder


@pytest.mark.parametrize("kind", [PreambleKind.SYNC, PreambleKind.ANSWER])
def test_preambles_for_somebody_else(kind: PreambleKind) -> None:
    host = handshake(Role.HOST)
    stray = Preamble(kind, G, G)
    assert host.receive_preamble(stray, 10.0) is None
    host.receive_preamble(Preamble(PreambleKind.ANSWER, G, said(host).marker), 10.0)
    with pytest.raises(RemoteProtocolError, match="middle of a generation"):
        host.receive_preamble(stray, 10.0)


@pytest.mark.parametrize("role", Role)
def test_asking_again(role: Role) -> None:
    one = handshake(role)
    first = said(one)
    one.ask_again(20.0)
    again = said(one)
    assert (again == first) is (role is Role.HOST)
    assert one.retry == 20.0 + SYNC_RETRY


@pytest.mark.parametrize(("role", "speaks"), [(Role.HOST, True), (Role.GUEST, False)])
def test_when_the_peer_gave_up(role: Role, speaks: bool) -> None:
    one = handshake(role)
    one.take_unsaid()
    one.peer_gave_up(20.0)
    assert bool(one.take_unsaid()) is speaks


def test_disconnecting_forgets_what_was_to_be_said() -> None:
    host = handshake(Role.HOST)
    host.disconnected()
    assert host.take_unsaid() == b""
