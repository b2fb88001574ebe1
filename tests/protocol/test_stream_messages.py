"""What messages about streams refuse."""

from __future__ import annotations

import pytest

from protocol.errors import RemoteProtocolError
from protocol.stream_messages import CommandTarget, Exit, Open, Signal, TerminalSize


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


def test_a_signal_cannot_carry_a_terminal_sequence() -> None:
    assert Signal.from_wire_untrusted([1, "\x1b[2J"]).name == "\N{REPLACEMENT CHARACTER}[2J"
