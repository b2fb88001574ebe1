"""How the two ends agree on a generation: preambles in, preambles out, and what each of them means for the frames.

The host asks (SYNC, with a random marker of its own), the guest answers (ANSWER, with its marker and the host's),
and from then on both count frames from a seed that only this pair of markers gives. Whoever finds that the frames
make no sense any more gives up: it sends a flush, which ends whatever frame the peer may be in the middle of, and the
host asks again, or the guest says LOST so that the host does.

Every preamble can be lost, late or doubled. So both ends repeat what they said until they are heard, and:

- Only the newest preamble waits to be sent, so that a peer that makes us say much costs no memory.
- A repeated question has the same marker, and the guest repeats its answer unless the generation has already begun to
  be used. So however slow the way is, the answers that are still under way all name the same generation, and the
  agents do not see it end and start once for each question.
- A peer that only flushed is about to ask, so the guest does not answer the flush with LOST: a slow guest and an
  impatient host would go on restarting each other.
- A preamble that makes no sense while a generation is on ends it: the decoder has already left the frames.

A marker is also a secret between the two ends. Bytes that strangers send through the channel may contain preambles,
and may be searched for them after something was lost, but nobody can name a marker that he has not seen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import RemoteProtocolError
from protocol.framing import (
    FLUSH,
    MARKER_SIZE,
    NO_MARKER,
    FrameDecoder,
    FrameEncoder,
    Preamble,
    PreambleKind,
    generation_seed,
)
from protocol.limits import GUEST_PING_AFTER, PING_AFTER, SYNC_RETRY


class Role(enum.Enum):
    """Which end of the channel this is."""

    HOST = 1
    GUEST = 0

    @property
    def first_stream(self) -> int:
        """The host opens odd streams, the guest even ones."""
        return 1 if self is Role.HOST else 2

    @property
    def ping_after(self) -> float:
        """Seconds of silence after which this end asks for a sign of life."""
        return PING_AFTER if self is Role.HOST else GUEST_PING_AFTER


@dataclass(frozen=True, slots=True)
class Turn:
    """What a preamble changed: the present generation, if any, ended; perhaps another one began."""

    reason: str
    begun: bool


class Handshake:
    """One end's part in agreeing on a generation. `random(n)` gives n unguessable bytes."""

    def __init__(self, role: Role, random: Callable[[int], bytes]) -> None:
        self._role = role
        self._random = random
        self.decoder = FrameDecoder()
        self.encoder: FrameEncoder | None = None
        """Makes this generation's frames; None while there is no generation."""
        self._marker = NO_MARKER
        self._peer_marker: bytes | None = None
        self._flush = False
        self.unsaid: Preamble | None = None
        """What is to be said before all frames; `take_unsaid` has its bytes."""
        self._asked = 0.0

    @property
    def retry(self) -> float:
        """When to ask again, as long as nobody answers."""
        return self._asked + SYNC_RETRY

    def connected(self, now: float) -> None:
        """The transport is new: forget the old one's bytes, and begin."""
        self.disconnected()
        self.give_up(now)

    def disconnected(self) -> None:
        """The transport is gone."""
        self.decoder.clear()
        self.encoder = None
        self._flush = False
        self.unsaid = None

    def give_up(self, now: float) -> None:
        """End the generation from this side. The peer may be in the middle of a frame, hence the flush."""
        self._hunt(now)
        self._flush = True
        if self._role is Role.HOST:
            self._ask()
        else:
            self.unsaid = Preamble(PreambleKind.LOST, self._random(MARKER_SIZE))

    def peer_gave_up(self, now: float) -> None:
        """The peer flushed. It is not in the middle of a frame, and (as the host) is about to ask."""
        self._hunt(now)
        if self._role is Role.HOST:
            self._ask()

    def ask_again(self, now: float) -> None:
        """Nobody answered in time. The host's question keeps its marker: an answer that is only late must count."""
        if self._role is Role.GUEST:
            self.give_up(now)
            return
        self._hunt(now)
        self._flush = True
        self.unsaid = Preamble(PreambleKind.SYNC, self._marker)

    def take_unsaid(self) -> bytes:
        """Bytes that go before all frames, once."""
        if self.unsaid is None:
            return b""
        unsaid = self.unsaid.encode()
        if self._flush:
            unsaid = FLUSH + unsaid
        self._flush = False
        self.unsaid = None
        return unsaid

    def receive_preamble(self, preamble: Preamble, now: float) -> Turn | None:
        """What `preamble` changes; None for nothing. Raises `RemoteProtocolError` where none can stand."""
        match self._role, preamble.kind:
            case Role.GUEST, PreambleKind.SYNC:
                return self._answer(preamble.marker)
            case Role.HOST, PreambleKind.ANSWER if preamble.echo == self._marker:
                return self._receive_answer(preamble.marker)
            case Role.HOST, PreambleKind.LOST:
                self._hunt(now)
                self._ask()
                return Turn("the guest agent restarted or lost its place", begun=False)
            case _ if self.encoder is not None:
                raise RemoteProtocolError("a preamble came in the middle of a generation")
            case _:
                return None  # an answer to somebody else's question, or our own bytes

    def _hunt(self, now: float) -> None:
        self.decoder.hunt()
        self.encoder = None
        self._asked = now

    def _ask(self) -> None:
        """With a new marker, answers to older questions mean nothing."""
        self._marker = self._random(MARKER_SIZE)
        self.unsaid = Preamble(PreambleKind.SYNC, self._marker)

    def _answer(self, host_marker: bytes) -> Turn:
        if host_marker != self._peer_marker or self.decoder.received > 0:
            self._marker = self._random(MARKER_SIZE)
        self._peer_marker = host_marker
        self.unsaid = Preamble(PreambleKind.ANSWER, self._marker, host_marker)
        self._begin(generation_seed(host_marker, self._marker))
        return Turn("the host began a new generation", begun=True)

    def _receive_answer(self, guest_marker: bytes) -> Turn | None:
        seed = generation_seed(self._marker, guest_marker)
        if self.encoder is not None and guest_marker == self._peer_marker and self.decoder.received <= 1:
            # The answer to a repeated question. Nothing but the guest's HELLO came so far; now it comes again.
            self.decoder.begin(seed)
            return None
        self._peer_marker = guest_marker
        self._begin(seed)
        return Turn("the guest began a new generation", begun=True)

    def _begin(self, seed: int) -> None:
        self.decoder.begin(seed)
        self.encoder = FrameEncoder(seed)
