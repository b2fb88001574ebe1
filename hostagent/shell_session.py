"""`hostagent shell`: runs one command in the guest as if it ran here.

Promises: bytes arrive unchanged and in order, standard error apart from standard output where there is no terminal; a
slow reader here slows the command there; its exit status becomes ours; the terminal is as it was, however we end.

With a pseudo-terminal every key goes to the guest, Ctrl-C too, and so does every change of size. Without one, an
interrupt is passed on as a signal; the second one leaves, and the host agent then kills the command, because a command
that ignores the first must not hold the user. In the background of an interactive shell (`hostagent shell -- server &`)
reading the terminal would stop us (SIGTTIN), so the command's input is then empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Final, assert_never

import trio

from hostagent import exec_frames
from hostagent.api_client import not_running
from hostagent.errors import UserError
from hostagent.exec_frames import (
    MAX_CHUNK,
    ClientFrame,
    Credit,
    EndOfInput,
    ErrorOutput,
    Exited,
    Failed,
    Input,
    Output,
    Resize,
    SendSignal,
    ServerFrame,
    Start,
    Started,
)
from hostagent.paths import InstancePaths
from hostagent.standard_streams import (
    ERROR_OUTPUT,
    INPUT,
    OUTPUT,
    is_foreground,
    raw_terminal,
    read_some,
    terminal_size,
    write_all,
)
from hostagent.terminal_output import OutputClosedError
from hostagent.websocket_client import ConnectionLostError, WebSocketClient, open_websocket
from protocol.errors import RemoteProtocolError
from protocol.stream_messages import CommandTarget

_PASSED_ON: Final = {signal.SIGINT: "INT", signal.SIGQUIT: "QUIT"}
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_PASSED_VARIABLES: Final = ("TERM", "COLORTERM", "NO_COLOR")
"""What a program must know about the terminal. The rest of the environment is the host's, not the guest's."""


def run_shell(
    paths: InstancePaths,
    arguments: tuple[str, ...],
    *,
    user: str = "",
    directory: str = "",
    terminal: bool | None = None,
) -> int:
    """Run `arguments` (a login shell when empty) in the guest, and return its exit status.

    `terminal` asks for a pseudo-terminal or refuses one; None takes one where the user sits at a terminal. Raises
    `UserError` when the command cannot be run or its end will never be known.
    """
    at_terminal = is_foreground(INPUT)
    if terminal is None:
        terminal = at_terminal and os.isatty(OUTPUT)
    environment = [(name, os.environ[name]) for name in _PASSED_VARIABLES if name in os.environ]
    target = CommandTarget(
        arguments=arguments,
        environment=tuple(environment) if terminal else (),
        user=user,
        directory=directory,
        terminal=terminal_size(INPUT if at_terminal else OUTPUT) if terminal else None,
    )
    session = _Session(reads_input=at_terminal or not os.isatty(INPUT), raw=terminal and at_terminal)
    return trio.run(session.run, paths, target)


class _Session:
    """One command, from its start to its exit status."""

    def __init__(self, *, reads_input: bool, raw: bool) -> None:
        self._reads_input = reads_input
        self._raw = raw
        self._websocket: WebSocketClient
        self._credit = 0
        self._more_credit = trio.Event()
        self._interrupts = 0
        self._end: int | Exception | None = None

    async def run(self, paths: InstancePaths, target: CommandTarget) -> int:
        """The command's exit status, or 128 + n when signal n ended us."""
        try:
            async with open_websocket(paths.api_socket, "/v1/exec") as self._websocket:
                await self._send(Start(target))
                await self._work()
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise not_running(paths) from exc
        except ConnectionLostError as exc:
            self._end = exc
        if isinstance(self._end, ConnectionLostError):
            raise UserError(
                "the connection to the command was lost", f"see `hostagent status {paths.name}`; the command was ended"
            ) from self._end
        if isinstance(self._end, RemoteProtocolError):
            raise UserError(f"the host agent is not understood: {self._end}", "start it anew") from self._end
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None, "the nursery closes when the end is known"
        return self._end

    async def _work(self) -> None:
        """Carry bytes and signals until the end is known."""
        signals = (*_PASSED_ON, *_ENDING, signal.SIGWINCH, signal.SIGCONT)
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(trio.open_signal_receiver(*signals))
            make_raw = stack.enter_context(raw_terminal(INPUT)) if self._raw else None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, caught, make_raw, nursery.cancel_scope)
                nursery.start_soon(self._pass_input)
                try:
                    self._end = await self._obey_server()
                except (UserError, ConnectionLostError, RemoteProtocolError, OutputClosedError, OSError) as exc:
                    self._end = exc
                nursery.cancel_scope.cancel()

    async def _obey_server(self) -> int:
        """Write the output, and return the exit status."""
        async for message in self._websocket.messages():
            frame: ServerFrame = exec_frames.server_frame_untrusted(message)
            match frame:
                case Output(data):
                    await write_all(OUTPUT, data)
                case ErrorOutput(data):
                    await write_all(ERROR_OUTPUT, data)
                case Started(credit) | Credit(credit):
                    self._credit += credit
                    self._more_credit.set()
                case Exited(status):
                    return status
                case Failed(message, hint, status):
                    raise UserError(message, hint, status=status)
                case _:
                    assert_never(frame)
        raise ConnectionLostError

    async def _pass_input(self) -> None:
        """Send what is typed or piped in, no faster than the command reads it."""
        while self._reads_input:
            while not self._credit:
                self._more_credit = trio.Event()
                await self._more_credit.wait()
            data = await read_some(INPUT, min(self._credit, MAX_CHUNK))
            if not data:
                break
            self._credit -= len(data)
            await self._send(Input(data))
        await self._send(EndOfInput())

    async def _obey_signals(
        self, caught: AsyncIterator[int], make_raw: Callable[[], None] | None, scope: trio.CancelScope
    ) -> None:
        async for number in caught:
            if number in _ENDING or (number in _PASSED_ON and self._interrupts):
                self._end = 128 + number
                scope.cancel()
            elif number in _PASSED_ON:
                self._interrupts += 1
                await self._send(SendSignal(_PASSED_ON[signal.Signals(number)]))
            elif make_raw is not None:
                if number == signal.SIGCONT:
                    make_raw()
                await self._send(Resize(terminal_size(INPUT)))

    async def _send(self, frame: ClientFrame) -> None:
        # That the server is gone shows where it is read from, together with its last words.
        with contextlib.suppress(ConnectionLostError):
            await self._websocket.send(exec_frames.encode(frame))
