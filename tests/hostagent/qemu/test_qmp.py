"""QMP without I/O: a real exchange, however it is cut; garbage; the handshake's order."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.qemu import qmp
from hostagent.qemu.qmp import Event, Greeting, Message, QmpConnection, Refusal, Reply, State
from protocol.errors import LocalProtocolError, RemoteProtocolError

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, '
    b'"capabilities": ["oob"]}}\r\n'
)


def ready() -> QmpConnection:
    connection = QmpConnection()
    connection.receive_data(GREETING)
    identity, _ = connection.negotiate()
    connection.receive_data(line({"return": {}, "id": identity}))
    assert connection.state is State.READY
    return connection


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


def test_the_handshake() -> None:
    connection = QmpConnection()
    assert connection.receive_data(GREETING) == [Greeting((7, 2, 22), "Debian 1:7.2", ("oob",))]
    identity, data = connection.negotiate()
    assert json.loads(data) == {"execute": "qmp_capabilities", "id": identity}
    assert data.endswith(b"\n")
    assert connection.receive_data(line({"return": {}, "id": identity})) == [Reply(identity, {})]


def test_a_refused_handshake_can_be_tried_again() -> None:
    connection = QmpConnection()
    connection.receive_data(GREETING)
    identity, _ = connection.negotiate()
    connection.receive_data(line({"error": {"class": "GenericError", "desc": "no"}, "id": identity}))
    assert connection.state is State.NEGOTIATING
    assert connection.negotiate()[0] != identity


def test_commands_before_the_handshake_are_our_fault() -> None:
    connection = QmpConnection()
    with pytest.raises(LocalProtocolError):
        connection.command("stop")
    with pytest.raises(LocalProtocolError):
        connection.negotiate()
    connection.receive_data(GREETING)
    connection.negotiate()
    with pytest.raises(LocalProtocolError):
        connection.negotiate()


def test_replies_may_come_in_any_order() -> None:
    connection = ready()
    first, data = connection.command("query-status")
    second, _ = connection.command("device_del", {"id": "disk"})
    assert json.loads(data) == {"execute": "query-status", "id": first}
    refusal = {"id": second, "error": {"class": "DeviceNotFound", "desc": "no disk"}}
    assert connection.receive_data(line(refusal) + line({"return": [1], "id": first})) == [
        Refusal(second, "DeviceNotFound", "no disk"),
        Reply(first, [1]),
    ]


def test_events_come_at_any_time_after_the_greeting() -> None:
    connection = QmpConnection()
    connection.receive_data(GREETING)
    stop = {"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 500_000}}
    moved = {"event": "MOVED", "data": {"to": 1}, "timestamp": {"seconds": -1, "microseconds": -1}}
    assert connection.receive_data(line(stop)) == [Event("STOP", 5.5)]
    assert connection.receive_data(line(moved)) == [Event("MOVED", -1.000001, {"to": 1})]


@pytest.mark.parametrize(
    "wrong",
    [
        b"SSH-2.0-OpenSSH_9.2\n",
        b"[]\n",
        b'{"return": {}}\n',
        b'{"return": {}, "id": 99}\n',
        b'{"return": {}, "id": true}\n',
        b'{"return": {}, "id": "0"}\n',
        b'{"return": NaN, "id": 1}\n',
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
        b'{"error": "no", "id": 1}\n',
        b'{"error": {"class": 1, "desc": "x"}, "id": 1}\n',
        b'{"event": 5, "timestamp": {"seconds": 1, "microseconds": 1}}\n',
        b'{"event": "X"}\n',
        b'{"event": "X", "timestamp": {"seconds": 1e400, "microseconds": 1}}\n',
        b'{"event": "X", "timestamp": {"seconds": 1' + b"0" * 400 + b', "microseconds": 1}}\n',
        b'{"event": "X", "data": [], "timestamp": {"seconds": 1, "microseconds": 1}}\n',
        b"{}\n",
        b'{"return": "\xff", "id": 1}\n',
        '{"return": {}, "id": 1}\n'.encode("utf-16"),
        b"[" * 100_000 + b"\n",
        b'{"return": ' + b"[" * qmp.MAX_DEPTH + b"]" * qmp.MAX_DEPTH + b', "id": 1}\n',
        b" " * (qmp.MAX_LINE + 1),
        b" " * (qmp.MAX_LINE + 1) + b"\n",
    ],
    ids=lambda value: repr(value[:24]),
)
def test_garbage_is_one_error_and_final(wrong: bytes) -> None:
    connection = ready()
    connection.command("query-status")
    with pytest.raises(RemoteProtocolError):
        connection.receive_data(wrong)
    assert connection.state is State.FAILED
    with pytest.raises(LocalProtocolError):
        connection.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        connection.command("query-status")


def test_the_deepest_message_that_is_allowed() -> None:
    connection = ready()
    identity, _ = connection.command("query-status")
    depth = qmp.MAX_DEPTH - 1
    value = b'{"return": ' + b"[" * depth + b"]" * depth + b', "id": %d}\n' % identity
    assert len(connection.receive_data(value)) == 1


def test_a_greeting_must_come_first_and_be_whole() -> None:
    wrongs: tuple[dict[str, Any], ...] = (
        {"return": {}},
        {"QMP": {}},
        {"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}},
    )
    for wrong in wrongs:
        with pytest.raises(RemoteProtocolError):
            QmpConnection().receive_data(line(wrong))


def test_replies_that_nobody_reads_are_bounded() -> None:
    connection = ready()
    for _ in range(qmp.MAX_OUTSTANDING):
        connection.command("query-status")
    with pytest.raises(LocalProtocolError):
        connection.command("query-status")


EXCHANGE = (
    line({"return": {"status": "läuft\n"}, "id": 1})
    + b"\r\n"
    + line({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
    + line({"error": {"class": "GenericError", "desc": "x"}, "id": 2})
)


def received(pieces: list[bytes]) -> list[Message]:
    connection = ready()
    connection.command("query-status")
    connection.command("query-status")
    return [message for piece in pieces for message in connection.receive_data(piece)]


@given(st.lists(st.integers(0, len(EXCHANGE)), max_size=8))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(EXCHANGE)]
    pieces = [EXCHANGE[start:end] for start, end in itertools.pairwise(edges)]
    assert received(pieces) == received([EXCHANGE])
    assert len(received([EXCHANGE])) == 3


def test_byte_by_byte() -> None:
    assert received([bytes([byte]) for byte in EXCHANGE]) == received([EXCHANGE])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["QMP", "return", "error", "event", "id", "timestamp", "data", "class", "desc", "version", "qemu"]
)
near_messages = st.dictionaries(keys, json_values | st.dictionaries(keys, json_values, max_size=3), max_size=4)


@given(st.binary(max_size=200) | near_messages.map(line), st.booleans())
def test_anything_parses_or_is_the_documented_error(data: bytes, is_ready: bool) -> None:
    connection = ready() if is_ready else QmpConnection()
    if is_ready:
        connection.command("query-status")
    try:
        messages: list[Any] = connection.receive_data(data + b"\n")
    except RemoteProtocolError:
        assert connection.state is State.FAILED
    else:
        assert all(isinstance(message, Greeting | Reply | Refusal | Event) for message in messages)
