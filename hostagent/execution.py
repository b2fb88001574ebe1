"""One command in the guest, as the host's API uses it: input with back-pressure, output in order, a status at the end.

What arrives is kept until it is asked for, and counted as consumed only then; the stream's window bounds it. Pieces
are put together as they come, since a guest that sends single bytes would cost a hundred times its window.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import AsyncGenerator

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.errors import UserError
from protocol.codec import check_sendable
from protocol.errors import LocalProtocolError
from protocol.limits import MAX_ARGUMENTS, MAX_COMMAND, MAX_PAYLOAD
from protocol.stream_messages import CommandTarget, Open, Resize, Signal, StreamKind, TerminalSize
from protocol.streams import Stream, StreamState

REFUSAL_STATUS = {"ENOENT": 127, "EACCES": 126, "ENOEXEC": 126, "ENOTDIR": 126}
"""What a shell exits with when it cannot start a command for that reason (POSIX, "Exit Status for Commands")."""

START_BOUND = 30.0
"""Seconds in which the guest must have started the command."""


class GuestExecution(StreamHandler):
    """Implements `hostagent.running_instance.Execution` on a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stream: Stream | None = None
        self._answered = trio.Event()
        self._refusal = ""
        self._refusal_error = ""
        self._output: deque[tuple[str, bytearray]] = deque()
        self._news = trio.Event()
        self._room = trio.Event()
        self._ended = False
        self._lost = ""
        self._status: int | None = None

    async def start(self, target: CommandTarget) -> None:
        """Start the command; raises `UserError` when the guest cannot."""
        if not self._channel.running:
            raise UserError("the guest agent is not there", "see `hostagent status`; it comes back by itself")
        try:
            check_sendable(Open(1, StreamKind.EXEC, target, 0))
        except LocalProtocolError as exc:
            hint = f"a command has at most {MAX_ARGUMENTS} arguments and {MAX_COMMAND} bytes, in UTF-8"
            raise UserError(f"the command cannot be sent to the guest: {exc}", hint) from exc
        self._stream = self._channel.open(StreamKind.EXEC, target, self)
        if self._stream is None:
            raise UserError("the guest agent has too much to do", "end some connections or commands, and try again")
        self._channel.flush()
        with trio.move_on_after(START_BOUND) as scope:
            await self._answered.wait()
        if scope.cancelled_caught:
            raise UserError(f"the guest did not start the command in {START_BOUND:.0f} s", "see `hostagent status`")
        if self._refusal:
            raise UserError(
                f"the guest cannot run it: {self._refusal}",
                _refusal_hint(self._refusal_error, target),
                status=REFUSAL_STATUS.get(self._refusal_error, 1),
            )

    def close(self) -> None:
        """Kill what is left of the command."""
        if self._stream is not None:
            self._channel.forget(self._stream, self)
            self._channel.connection.send_reset(self._stream, "the client left")
            self._channel.flush()

    # ------------------------------------------------------------------ what the guest says

    def opened(self) -> None:
        self._answered.set()

    def refused(self, error: str, reason: str) -> None:
        self._refusal = f"{reason} ({error})"
        self._refusal_error = error
        self._answered.set()

    def receive_data(self, payload: bytes) -> None:
        self._keep("stdout", payload)

    def receive_error_output(self, payload: bytes) -> None:
        self._keep("stderr", payload)

    def receive_exit(self, status: int | None, signal: str | None) -> None:
        self._status = status if status is not None else 128 + _signal_number(signal or "")

    def receive_end(self) -> None:
        self._ended = True
        self._news.set()

    def receive_reset(self, reason: str) -> None:
        self._lost = reason
        self._refusal = self._refusal or reason
        self._ended = True
        self._answered.set()
        self._news.set()
        self._room.set()

    def unpaused(self) -> None:
        self._room.set()

    def _keep(self, name: str, payload: bytes) -> None:
        if self._output and self._output[-1][0] == name and len(self._output[-1][1]) + len(payload) <= MAX_PAYLOAD:
            self._output[-1][1].extend(payload)
        else:
            self._output.append((name, bytearray(payload)))
        self._news.set()

    # ------------------------------------------------------------------ what the client says

    async def send_input(self, data: bytes) -> None:
        """Give the command bytes; waits while it does not read them."""
        assert self._stream is not None
        view = memoryview(data)
        while view and self._input_open:
            if not (room := self._stream.room()):
                self._room = trio.Event()
                await self._room.wait()
                continue
            chunk = view[: min(room, MAX_PAYLOAD)]
            self._channel.connection.send_data(self._stream, bytes(chunk))
            self._channel.flush()
            view = view[len(chunk) :]
        await trio.lowlevel.checkpoint()

    def end_input(self) -> None:
        """Close the command's standard input."""
        if self._input_open:
            assert self._stream is not None
            self._channel.connection.send_end(self._stream)
            self._channel.flush()

    @property
    def _input_open(self) -> bool:
        stream = self._stream
        return (
            not self._lost and stream is not None and stream.state in (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
        )

    def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size."""
        assert self._stream is not None
        if self._lost:
            return  # in another generation the number is another command's
        self._channel.connection.send_about(Resize(self._stream.number, size))
        self._channel.flush()

    def send_signal(self, name: str) -> None:
        """Send a signal to the command's process group."""
        assert self._stream is not None
        if self._lost:
            return
        self._channel.connection.send_about(Signal(self._stream.number, name))
        self._channel.flush()

    async def output(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Everything that the command writes, until its end."""
        assert self._stream is not None
        while True:
            while self._output:
                name, payload = self._output.popleft()
                yield name, bytes(payload)
                self._channel.connection.consumed(self._stream, len(payload))
                self._channel.flush()
            if self._ended:
                return
            self._news = trio.Event()
            await self._news.wait()

    @property
    def status(self) -> int:
        """Exit status as a shell shows it; raises `UserError` when the command was lost before its end."""
        if self._status is None:
            raise UserError(f"the command was cut off: {self._lost or 'no status came'}", "see `hostagent status`")
        return self._status


def _refusal_hint(error: str, target: CommandTarget) -> str:
    """What to look at: EINVAL is how the guest says that it has no such user or folder."""
    if error in REFUSAL_STATUS:
        if error == "EACCES":
            return "see that it may be executed"
        return "check the command's name; what a shell is to read goes to one: `hostagent shell -- sh -c '...'`"
    if error == "EINVAL":
        return "check the folder and the user" if target.directory else "check the user"
    return "see `hostagent status`"


def _signal_number(name: str) -> int:
    """The number of a signal that the guest names as in signal(7), or by its number where it has no name there."""
    if name.isdecimal() and int(name) < signal.NSIG:
        return int(name)
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        return 0
