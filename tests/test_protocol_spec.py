"""protocol/SPEC.md says what the code does: its drawn parts, its numbers, its test vectors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.codec import MESSAGES, decode_untrusted
from protocol.framing import (
    FLUSH,
    MAGIC,
    PREAMBLE_SIZE,
    FrameDecoder,
    FrameEncoder,
    Preamble,
    PreambleKind,
    generation_seed,
)
from protocol.messages import Hello, Message, Ping
from protocol.stream_messages import Data, Open, SocketTarget, StreamKind

ROOT = Path(__file__).resolve().parent.parent
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")
HOST, GUEST = bytes(range(16)), bytes(range(16, 32))

PREAMBLES = {
    "SYNC": Preamble(PreambleKind.SYNC, HOST),
    "ANSWER": Preamble(PreambleKind.ANSWER, GUEST, HOST),
    "LOST": Preamble(PreambleKind.LOST, GUEST),
}
FRAMES: dict[str, Message] = {
    'Hello(1, 1, {"exec"}, "0.1.0", "", "Debian 12")': Hello(1, 1, frozenset({"exec"}), "0.1.0", "", "Debian 12"),
    "Ping(7)": Ping(7),
    "Open(1, tcp, 127.0.0.1, 80, 262144)": Open(1, StreamKind.TCP, SocketTarget("127.0.0.1", 80), 262_144),
    'Data(1, "hi")': Data(1, b"hi"),
}


def vector(name: str) -> bytes:
    """The bytes that the page gives for `name`."""
    found = re.findall(rf"^\| {re.escape(name)} \| `([0-9a-f]+)` \|$", SPEC, re.MULTILINE)
    assert len(found) == 1, name
    return bytes.fromhex(found[0])


def test_the_drawn_parts_are_what_the_tables_give() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "build" / "draw_state_diagrams.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_message_has_its_number_and_no_other_is_listed() -> None:
    listed = re.findall(r"^\| (\d+) \| (\w+) \| [a-z ]+ \|", SPEC, re.MULTILINE)
    assert {int(number): name for number, name in listed} == {
        number: kind.__name__ for number, kind in MESSAGES.items()
    }


@pytest.mark.parametrize("name", PREAMBLES)
def test_preamble_vectors(name: str) -> None:
    assert vector(name) == PREAMBLES[name].encode()
    decoder = FrameDecoder()
    decoder.receive_data(vector(name))
    assert list(decoder.items_untrusted()) == [PREAMBLES[name]]


def test_frame_vectors() -> None:
    seed = generation_seed(HOST, GUEST)
    assert f"the seed is `{seed:08x}`" in SPEC
    decoder, encoder = FrameDecoder(), FrameEncoder(seed)
    decoder.begin(seed)
    for name, message in FRAMES.items():
        frame = vector(name)
        decoder.receive_data(frame)
        (body,) = decoder.items_untrusted()
        assert isinstance(body, bytes)
        assert decode_untrusted(body) == message
        assert encoder.encode(body) == frame


def test_sizes_in_the_text() -> None:
    assert f"A **preamble** has {PREAMBLE_SIZE} bytes" in SPEC
    assert f"A **flush** is {len(FLUSH):,} zeros" in SPEC
    assert f"magic `{MAGIC.hex(' ')}`" in SPEC
