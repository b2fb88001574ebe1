"""What messages about listeners in the guest refuse."""

from __future__ import annotations

import pytest

from protocol.codec import decode_untrusted, encode
from protocol.errors import RemoteProtocolError
from protocol.listener_messages import Listen, ListenFailed, UnixAddress, Unlisten
from protocol.stream_messages import StreamKind


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0, "tcp", ["::1", 1]], id="listener 0"),
        pytest.param([2**32, "tcp", ["::1", 1]], id="listener too large"),
        pytest.param([True, "tcp", ["::1", 1]], id="no integer"),
        pytest.param([1, "exec", ["::1", 1]], id="kind that runs commands"),
        pytest.param([1, "sctp", ["::1", 1]], id="unknown kind"),
        pytest.param([1, "tcp", ["/run/s", 0o600, ""]], id="path for an address"),
        pytest.param([1, "unix", ["::1", 1]], id="address for a path"),
        pytest.param([1, "unix", ["run/s", 0o600, ""]], id="relative path"),
        pytest.param([1, "unix", ["/run/s\0", 0o600, ""]], id="NUL"),
        pytest.param([1, "unix", ["/" + "s" * 107, 0o600, ""]], id="path too long"),
        pytest.param([1, "unix", ["/run/s", 0o1000, ""]], id="mode"),
        pytest.param([1, "unix", ["/run/s", 0o600, "u" * 256]], id="owner too long"),
        pytest.param([1, "tcp"], id="too few"),
    ],
)
def test_what_is_no_listen(values: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Listen.from_wire_untrusted(values)


def test_the_longest_path_of_a_socket_fits() -> None:
    message = Listen(1, StreamKind.UNIX, UnixAddress("/" + "s" * 106, 0o777, "ada"))
    assert decode_untrusted(encode(message)) == message


def test_a_reason_of_ours_is_clipped_and_one_of_theirs_cannot_carry_a_terminal_sequence() -> None:
    heard = decode_untrusted(encode(ListenFailed(7, "E" * 300, "r" * 5_000)))
    assert heard == ListenFailed(7, "E" * 255, "r" * 4_096)
    assert ListenFailed.from_wire_untrusted([7, "EIO", "\x1b[2J"]).reason == "\N{REPLACEMENT CHARACTER}[2J"


def test_what_is_taken_back_is_named() -> None:
    with pytest.raises(RemoteProtocolError):
        Unlisten.from_wire_untrusted([])
