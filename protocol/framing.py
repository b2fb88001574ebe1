"""Frames and preambles: how a byte stream with holes and old bytes in it becomes a sequence of whole messages.

Theory of operation
-------------------
The stream below is a virtio-serial port. It has no connect and no disconnect that both ends see: after one end came
back, the other may first read megabytes of an older conversation, and the middle of a conversation may be missing.
So bytes belong to a *generation*, which both ends mark with 16 random bytes in a preamble. The frames that follow
carry a length, a sequence number and a CRC-32 that starts from both markers: a frame of another generation, a
repeated, missing or damaged one does not pass, and ends the generation (never the process).

Promises: bodies come out whole, in order, and of this generation only, or `RemoteProtocolError` is raised once and
the decoder hunts for the next preamble in what is left. Garbage costs no more memory than one frame.

A decoder in the middle of a frame cannot tell the peer's new preamble from the frame's own bytes. Whoever starts
anew therefore first sends `FLUSH`, more zeros than any frame is long: they complete the old frame, which then fails
its checksum, and are skipped otherwise. Rejected: searching preambles inside frames (the payload is chosen by
strangers and could contain one), and a timer for half a frame (it makes recovery slow and still guesses).
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.limits import MAX_BODY

MAGIC = b"\xfe\xedHSTAG\n"
"""Begins a preamble. Read as a length it exceeds `MAX_BODY`, so that no frame can begin with it."""

MARKER_SIZE = 16
NO_MARKER = bytes(MARKER_SIZE)

_PREAMBLE = struct.Struct(">8sB16s16s")
_CHECKSUM = struct.Struct(">I")
PREAMBLE_SIZE = _PREAMBLE.size + _CHECKSUM.size

_HEADER = struct.Struct(">III")
_COVERED = struct.Struct(">II")
HEADER_SIZE = _HEADER.size

FLUSH = bytes(HEADER_SIZE + MAX_BODY)


class PeerGaveUpError(RemoteProtocolError):
    """A flush came where a frame should: the peer ended the generation, and asks for a new one or is about to."""


class PreambleKind(enum.IntEnum):
    """What a preamble asks for."""

    SYNC = 1
    """Host: a new generation begins, this is my marker."""
    ANSWER = 2
    """Guest: this is my marker, and yours as I read it."""
    LOST = 3
    """Guest: I have no generation (any more), please begin one."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """One preamble. `echo` is the host's marker in an ANSWER and zero otherwise."""

    kind: PreambleKind
    marker: bytes
    echo: bytes = NO_MARKER

    def encode(self) -> bytes:
        """The preamble's bytes, checksum included."""
        head = _PREAMBLE.pack(MAGIC, self.kind, self.marker, self.echo)
        return head + _CHECKSUM.pack(zlib.crc32(head))


def _decode_preamble(data: bytes) -> Preamble | None:
    """The preamble that `data` is, or None where it only looks like one."""
    head = data[: _PREAMBLE.size]
    if _CHECKSUM.unpack_from(data, _PREAMBLE.size)[0] != zlib.crc32(head):
        return None
    _, kind, marker, echo = _PREAMBLE.unpack(head)
    try:
        return Preamble(PreambleKind(kind), marker, echo)
    except ValueError:
        return None


def generation_seed(host_marker: bytes, guest_marker: bytes) -> int:
    """Where the checksums of a generation start: different for every pair of markers."""
    return zlib.crc32(guest_marker, zlib.crc32(host_marker))


class FrameEncoder:
    """Numbers and checks the frames of one generation, one direction."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sequence = 0

    def encode(self, body: bytes) -> bytes:
        """The frame that carries `body`."""
        return b"".join(self.parts(body))

    def parts(self, body: bytes) -> tuple[bytes, bytes]:
        """The same in two parts, so that a caller who joins many frames copies each body once."""
        length = len(body)
        if not 0 < length <= MAX_BODY:
            raise LocalProtocolError(f"a body of {length} bytes does not fit a frame")
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFFFFFF
        checksum = zlib.crc32(body, zlib.crc32(_COVERED.pack(length, sequence), self._seed))
        return _HEADER.pack(length, sequence, checksum), body


class FrameDecoder:
    """Bytes in, bodies and preambles out. Hunts for a preamble until `begin` is called.

    Bytes are parsed where they came in. Only what a frame's end is still missing from is joined with what follows, and
    once, when the end is there: a body is copied once or twice, however many reads it came in.
    """

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # what comes before was taken
        self._later: list[bytes] = []
        self._missing = 0  # bytes without which looking at `_later` is of no use
        self._seed: int | None = None
        self._sequence = 0

    @property
    def received(self) -> int:
        """Whole frames since `begin`, modulo 2**32."""
        return self._sequence

    @property
    def held(self) -> int:
        """Bytes that were received and are not taken yet."""
        return len(self._data) - self._at + sum(map(len, self._later))

    def begin(self, seed: int) -> None:
        """From the next byte on, frames of the generation with this seed follow."""
        self._seed = seed
        self._sequence = self._missing = 0

    def hunt(self) -> None:
        """Skip everything up to the next preamble."""
        self._seed = None
        self._missing = 0

    def clear(self) -> None:
        """Forget all bytes: the stream below was replaced."""
        self.hunt()
        self._data = b""
        self._at = 0
        self._later.clear()

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self._later.append(data)
        self._missing -= len(data)

    def items_untrusted(self) -> Iterator[bytes | Preamble]:
        """Each whole body or preamble that is there. Act on one before asking for the next.

        Raises `RemoteProtocolError` where the generation's frames stop making sense; the bytes behind that point are
        kept, the decoder hunts, and the caller may ask again.
        """
        while self._missing <= 0:
            if self._later:
                if rest := self._data[self._at :]:
                    self._later.insert(0, rest)
                self._data = b"".join(self._later)  # without a copy where there is only one
                self._at = 0
                self._later.clear()
            item = self._hunted() if self._seed is None else self._framed(self._seed)
            if item is None:
                return
            yield item

    def _hunted(self) -> Preamble | None:
        data = self._data
        while (at := data.find(MAGIC, self._at)) >= 0:
            if len(data) - at < PREAMBLE_SIZE:
                self._at = at
                return None
            preamble = _decode_preamble(data[at : at + PREAMBLE_SIZE])
            self._at = at + (1 if preamble is None else PREAMBLE_SIZE)
            if preamble is not None:
                return preamble
        # The magic's first bytes may already be here.
        self._at = max(self._at, len(data) - len(MAGIC) + 1)
        return None

    def _framed(self, seed: int) -> bytes | Preamble | None:
        data, at = self._data, self._at
        have = len(data) - at
        if have < HEADER_SIZE:
            self._missing = HEADER_SIZE - have
            return None
        length, sequence, checksum = _HEADER.unpack_from(data, at)
        if not 0 < length <= MAX_BODY:
            return self._unframed(length)
        if have < HEADER_SIZE + length:
            self._missing = HEADER_SIZE + length - have
            return None
        begin = at + HEADER_SIZE
        body = data[begin : begin + length]
        if checksum != zlib.crc32(body, zlib.crc32(data[at : at + _COVERED.size], seed)):
            self._fail("a frame's checksum does not match: bytes are missing or belong to an older generation")
        if sequence != self._sequence:
            self._fail(f"frame {sequence} came where {self._sequence} was expected")
        self._sequence = (sequence + 1) & 0xFFFFFFFF
        self._at = begin + length
        return body

    def _unframed(self, length: int) -> Preamble | None:
        """What stands where a frame should: a preamble (or a part of one), or nothing that makes sense."""
        data, at = self._data, self._at
        if data.startswith(MAGIC, at):
            if (missing := PREAMBLE_SIZE - len(data) + at) > 0:
                self._missing = missing
                return None
            if (preamble := _decode_preamble(data[at : at + PREAMBLE_SIZE])) is None:
                self._fail("a preamble's checksum does not match")
            self._at = at + PREAMBLE_SIZE
            self.hunt()
            return preamble
        if not length:
            self.hunt()
            raise PeerGaveUpError("the peer gave up this generation")
        return self._fail(f"a frame announces {length} bytes")

    def _fail(self, message: str) -> NoReturn:
        # No good preamble begins at the first byte, or it would have been taken for one.
        self._at += 1
        self.hunt()
        raise RemoteProtocolError(message)
