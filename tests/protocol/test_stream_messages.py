"""What messages about streams refuse."""

from __future__ import annotations

import pytest

from protocol.errors import RemoteProtocolError
from protocol.stream_messages import (
    CommandTarget,
    Exit,
    ListenerTarget,
    Open,
    Signal,
    StreamKind,
    TerminalSize,
    UnixTarget,
)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0, "tcp", ["::1", 1], 0, "framed"], id="stream 0"),
        pytest.param([1, "icmp", ["::1", 1], 0, "framed"], id="kind"),
        pytest.param([1, "tcp", ["localhost", 1], 0, "framed"], id="name for an address"),
        pytest.param([1, "tcp", ["::1%lo", 1], 0, "framed"], id="zone"),
        pytest.param([1, "tcp", ["::1", 0], 0, "framed"], id="port 0"),
        pytest.param([1, "tcp", ["::1", 1], 262_145, "framed"], id="credit"),
        pytest.param([1, "tcp", ["::1", 1], 0, "lane"], id="transport"),
        pytest.param([1, "exec", ["::1", 1], 0, "framed"], id="target of another kind"),
        pytest.param([1, "tcp", ["::1", 1], 0], id="too few"),
        pytest.param([1, "unix", ["::1", 1], 0, "framed"], id="address for a path"),
        pytest.param([1, "unix", ["run/s"], 0, "framed"], id="relative path"),
        pytest.param([1, "unix", ["/" + "s" * 107], 0, "framed"], id="path too long"),
        pytest.param([1, "tcp", ["/run/s"], 0, "framed"], id="path for an address"),
        pytest.param([2, "tcp", 0, 0, "framed"], id="listener 0"),
        pytest.param([2, "exec", 1, 0, "framed"], id="listener that runs commands"),
        pytest.param([2, "tcp", True, 0, "framed"], id="listener that is no integer"),
    ],
)
def test_what_is_no_open(values: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Open.from_wire_untrusted(values)


@pytest.mark.parametrize(
    ("status", "signal"), [(None, None), (0, "TERM"), (256, None), (-1, None), (True, None), (None, "X" * 17)]
)
def test_what_is_no_exit(status: object, signal: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Exit.from_wire_untrusted([1, status, signal])


def test_a_command_target_and_its_terminal() -> None:
    target = CommandTarget(("ls",), (("LANG", "C"),), "me", "/", TerminalSize(24, 80))
    assert CommandTarget.from_wire_untrusted(target.to_wire()) == target
    with pytest.raises(RemoteProtocolError, match="without NUL"):
        CommandTarget.from_wire_untrusted([["a\0"], [], "", "", None])


@pytest.mark.parametrize(
    "message",
    [
        Open(1, StreamKind.UNIX, UnixTarget("/" + "s" * 106), 262_144),
        Open(2, StreamKind.UNIX, ListenerTarget(1), 0),
        Open(4, StreamKind.TCP, ListenerTarget(2**32 - 1), 0),
        Open(6, StreamKind.UDP, ListenerTarget(7), 0),
    ],
)
def test_a_target_is_a_path_for_the_guest_and_a_listener_for_the_host(message: Open) -> None:
    assert Open.from_wire_untrusted(message.to_wire()) == message


def test_a_signal_cannot_carry_a_terminal_sequence() -> None:
    assert Signal.from_wire_untrusted([1, "\x1b[2J"]).name == "\N{REPLACEMENT CHARACTER}[2J"
