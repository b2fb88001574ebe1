"""Frames and preambles: whole or in pieces, damaged, repeated, missing, of another generation."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol import framing
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import (
    FLUSH,
    HEADER_SIZE,
    MAGIC,
    PREAMBLE_SIZE,
    FrameDecoder,
    FrameEncoder,
    PeerGaveUpError,
    Preamble,
    PreambleKind,
    generation_seed,
)
from protocol.limits import MAX_BODY
from tests.strategies import pieces

MARKERS = st.binary(min_size=16, max_size=16)
PREAMBLES = st.builds(Preamble, st.sampled_from(PreambleKind), MARKERS, MARKERS)
BODIES = st.lists(st.binary(min_size=1, max_size=200), max_size=8)
SEED = generation_seed(b"h" * 16, b"g" * 16)


def decode(decoder: FrameDecoder, *chunks: bytes) -> list[bytes | Preamble | type[Exception]]:
    """Everything that comes out, with an exception's class where one was raised."""
    items: list[bytes | Preamble | type[Exception]] = []
    for chunk in chunks:
        decoder.receive_data(chunk)
        while True:
            try:
                items += decoder.items_untrusted()
            except RemoteProtocolError as exc:
                items.append(type(exc))
            else:
                break
    return items


def framed(bodies: list[bytes], seed: int = SEED) -> bytes:
    encoder = FrameEncoder(seed)
    return b"".join(encoder.encode(body) for body in bodies)


def begun(seed: int = SEED) -> FrameDecoder:
    decoder = FrameDecoder()
    decoder.begin(seed)
    return decoder


@given(bodies=BODIES, data=st.data())
def test_frames_in_any_pieces(bodies: list[bytes], data: st.DataObject) -> None:
    wire = framed(bodies)
    decoder = begun()
    assert decode(decoder, *data.draw(pieces(wire))) == bodies
    assert decode(begun(), *(wire[i : i + 1] for i in range(len(wire)))) == bodies
    assert decoder.received == len(bodies)


@given(preamble=PREAMBLES, noise=st.binary(max_size=300), data=st.data())
def test_a_preamble_is_found_behind_any_noise(preamble: Preamble, noise: bytes, data: st.DataObject) -> None:
    noise = noise.replace(MAGIC, b"")
    wire = noise + preamble.encode()
    decoder = FrameDecoder()
    assert decode(decoder, *data.draw(pieces(wire))) == [preamble]


@given(preamble=PREAMBLES, start=st.integers(0, PREAMBLE_SIZE - 1))
def test_a_preamble_is_found_behind_a_part_of_one(preamble: Preamble, start: int) -> None:
    wire = preamble.encode()
    assert decode(FrameDecoder(), wire[:start] + wire) == [preamble]


@given(bodies=BODIES, preamble=PREAMBLES)
def test_a_preamble_between_frames_ends_them(bodies: list[bytes], preamble: Preamble) -> None:
    decoder = begun()
    wire = framed(bodies)
    head = preamble.encode()
    assert decode(decoder, wire, head[:20], head[20:] + wire) == [*bodies, preamble]


@given(garbage=st.binary(max_size=2_000), begin=st.booleans(), data=st.data())
def test_garbage_is_an_error_or_nothing(garbage: bytes, begin: bool, data: st.DataObject) -> None:
    decoder = begun() if begin else FrameDecoder()
    chunks = data.draw(pieces(garbage))
    items = decode(decoder, *chunks)
    assert all(item in (RemoteProtocolError, PeerGaveUpError) for item in items)
    again = begun() if begin else FrameDecoder()
    assert decode(again, *(garbage[i : i + 1] for i in range(len(garbage)))) == items


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=6),
    at=st.integers(0),
    bit=st.integers(0, 7),
)
def test_damage_never_passes(bodies: list[bytes], at: int, bit: int) -> None:
    wire = bytearray(framed(bodies))
    wire[at % len(wire)] ^= 1 << bit
    items = decode(begun(), bytes(wire), FLUSH)
    good = [item for item in items if isinstance(item, bytes)]
    assert good == bodies[: len(good)]
    assert len(good) < len(bodies)


@given(bodies=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6), data=st.data())
def test_a_hole_never_passes(bodies: list[bytes], data: st.DataObject) -> None:
    wire = framed(bodies)
    start = data.draw(st.integers(0, len(wire) - 1))
    end = data.draw(st.integers(start + 1, len(wire)))
    holed = wire[:start] + wire[end:]
    assume(not (holed + FLUSH).startswith(wire))  # the zeros that were lost are those of the flush
    items = decode(begun(), holed, FLUSH)
    good = [item for item in items if isinstance(item, bytes)]
    assert good == bodies[: len(good)]
    assert len(good) < len(bodies)


def test_repeated_frames_and_frames_of_another_generation_do_not_pass() -> None:
    one, two = FrameEncoder(SEED), FrameEncoder(generation_seed(b"h" * 16, b"x" * 16))
    frame = one.encode(b"body")
    assert decode(begun(), frame, frame) == [b"body", RemoteProtocolError]
    assert decode(begun(), two.encode(b"body")) == [RemoteProtocolError]
    assert decode(begun(), framed([b"a", b"b"])[HEADER_SIZE + 1 :]) == [RemoteProtocolError]


def test_the_seed_tells_host_and_guest_apart() -> None:
    assert generation_seed(b"h" * 16, b"g" * 16) != generation_seed(b"g" * 16, b"h" * 16)


@pytest.mark.parametrize("have", [1, 5, 11, HEADER_SIZE, HEADER_SIZE + 1, HEADER_SIZE + MAX_BODY - 1])
def test_a_flush_ends_whatever_frame_the_decoder_is_in(have: int) -> None:
    wire = framed([bytes([255]) * MAX_BODY])
    sync = Preamble(PreambleKind.SYNC, b"m" * 16)
    items = decode(begun(), wire[:have], FLUSH + sync.encode())
    assert items[-1] == sync
    assert not any(isinstance(item, bytes) for item in items)


def test_a_flush_between_frames_says_that_the_peer_gave_up() -> None:
    sync = Preamble(PreambleKind.SYNC, b"m" * 16)
    assert decode(begun(), framed([b"a"]) + FLUSH + sync.encode()) == [b"a", PeerGaveUpError, sync]


def test_a_flush_is_skipped_while_hunting() -> None:
    decoder = FrameDecoder()
    assert decode(decoder, *([FLUSH] * 50)) == []
    assert decoder.held < len(MAGIC)


@pytest.mark.parametrize("begin", [True, False])
def test_garbage_costs_no_more_memory_than_a_frame(begin: bool) -> None:
    decoder = begun() if begin else FrameDecoder()
    worst = MAX_BODY.to_bytes(4, "big") + b"\xff" * 4_092
    for _ in range(200):
        decode(decoder, worst)
        assert decoder.held <= HEADER_SIZE + MAX_BODY


def test_an_unknown_preamble_is_none() -> None:
    head = framing._PREAMBLE.pack(MAGIC, 9, b"m" * 16, b"e" * 16)
    wire = head + framing._CHECKSUM.pack(zlib.crc32(head))
    assert decode(FrameDecoder(), wire) == []
    assert decode(begun(), wire) == [RemoteProtocolError]


@pytest.mark.parametrize("length", [MAX_BODY + 1, 0xFFFFFFFF])
def test_too_long_a_frame_is_an_error_at_once(length: int) -> None:
    assert decode(begun(), length.to_bytes(4, "big") + bytes(8)) == [RemoteProtocolError]


@pytest.mark.parametrize("length", [0, MAX_BODY + 1])
def test_our_own_bodies_must_fit(length: int) -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        FrameEncoder(SEED).encode(bytes(length))


def test_the_sequence_wraps() -> None:
    encoder, decoder = FrameEncoder(SEED), begun()
    encoder._sequence = decoder._sequence = 0xFFFFFFFF
    assert decode(decoder, encoder.encode(b"a") + encoder.encode(b"b")) == [b"a", b"b"]
    assert decoder.received == 1


def test_clear_forgets_bytes() -> None:
    decoder = begun()
    decode(decoder, framed([b"abc"])[:5])
    decoder.clear()
    decoder.begin(SEED)
    assert decode(decoder, framed([b"abc"])) == [b"abc"]
