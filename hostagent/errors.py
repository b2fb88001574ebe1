"""Errors that a user can act on.

There are three families in this project. `protocol.errors.ProtocolError` says who broke the wire rules, `UserError`
is shown without a traceback and always names a next step, and everything else is a bug that is shown with its
traceback. Errors of the operating system and of libraries are translated once, where the call is made.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. `message` says what happened, `hint` what to do next, `status` our exit code."""

    def __init__(self, message: str, hint: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"


class EndedBySignalError(Exception):
    """A signal asked for the end, and what was under way was undone; exit code 128 + `number`, as a shell shows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number
