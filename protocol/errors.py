"""Who broke the rules of the channel.

`LocalProtocolError` is a bug on this side: the caller asked for something that the current state does not allow.
`RemoteProtocolError` is about bytes from the other side. Whatever the peer sends, functions that take its bytes either
return or raise `RemoteProtocolError`, never anything else.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Common parent; only its two children are ever raised."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("say who is at fault: LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """We asked for something that the state of the connection or stream does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the rules do not allow, or bytes went missing on the way."""
