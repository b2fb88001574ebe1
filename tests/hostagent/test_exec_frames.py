from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent import exec_frames
from hostagent.exec_frames import (
    Credit,
    EndOfInput,
    ErrorOutput,
    Exited,
    Failed,
    Input,
    Output,
    Resize,
    SendSignal,
    Start,
    Started,
    client_frame_untrusted,
    server_frame_untrusted,
)
from protocol.errors import RemoteProtocolError
from protocol.stream_messages import CommandTarget, TerminalSize

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PRINTABLE = st.text(st.characters(categories=["L", "N", "P"]), max_size=20)
SIZES = st.builds(TerminalSize, st.integers(0, 65_535), st.integers(0, 65_535))
TARGETS = st.builds(
    CommandTarget,
    arguments=st.lists(WORDS, max_size=4).map(tuple),
    environment=st.dictionaries(WORDS, WORDS, max_size=3).map(lambda pairs: tuple(pairs.items())),
    user=WORDS,
    directory=WORDS,
    terminal=st.none() | SIZES,
)
CREDITS = st.integers(0, exec_frames.INPUT_WINDOW)
CLIENT = st.one_of(
    st.builds(Start, TARGETS),
    st.builds(Input, st.binary()),
    st.just(EndOfInput()),
    st.builds(Resize, SIZES),
    st.builds(SendSignal, st.sampled_from(["INT", "TERM"])),
)
SERVER = st.one_of(
    st.builds(Started, CREDITS),
    st.builds(Credit, CREDITS),
    st.builds(Output, st.binary()),
    st.builds(ErrorOutput, st.binary()),
    st.builds(Exited, st.integers(0, 255)),
    st.builds(Failed, PRINTABLE, PRINTABLE, st.integers(1, 255)),
)


@given(CLIENT)
def test_a_servers_reading_of_a_client_is_what_it_meant(frame: exec_frames.ClientFrame) -> None:
    assert client_frame_untrusted(exec_frames.encode(frame)) == frame


@given(SERVER)
def test_a_clients_reading_of_a_server_is_what_it_meant(frame: exec_frames.ServerFrame) -> None:
    assert server_frame_untrusted(exec_frames.encode(frame)) == frame


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.sampled_from(["start", "exit", "resize"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "arguments",
                    "environment",
                    "terminal",
                    "rows",
                    "columns",
                    "name",
                    "status",
                    "credit",
                    "message",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=10,
)


@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_anything_is_a_frame_or_the_others_fault(message: bytes | str) -> None:
    for parse in (client_frame_untrusted, server_frame_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            parse(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\1output from a client",
        "",
        "[]",
        "[" * 100_000,
        '{"type": "start", "arguments": ["a\\u0000b"]}',
        '{"type": "start", "arguments": ["\\ud800"]}',
        '{"type": "start", "environment": []}',
        '{"type": "start", "terminal": 1}',
        '{"type": "start", "terminal": {"rows": 1}}',
        '{"type": "signal", "name": "\\ud800"}',
        '{"type": "resize", "rows": -1, "columns": 1}',
        '{"type": "exit", "status": 0}',
    ],
)
def test_what_a_client_may_not_send(message: bytes | str) -> None:
    with pytest.raises(RemoteProtocolError):
        client_frame_untrusted(message)


def test_a_start_needs_nothing_but_its_type() -> None:
    assert client_frame_untrusted('{"type": "start"}') == Start(CommandTarget((), (), "", "", None))
