"""Exec streams: runs what the host asks for, and carries its input, output and end.

Output is read only while the stream has room, and input is granted again only when the command has taken it, so a slow
reader slows its writer through the channel as through a pipe. The order of the end is: all output, EXIT, END.

A command can leave children behind that hold its output open. EXIT does not wait for them, as a shell's prompt would
not: what was written when the command ended is carried, then whatever comes within `GRACE`. What they write later is
read and dropped, so that they do not die of a broken pipe.

When the stream is reset or the generation ends while the command runs, its process group is hung up (SIGHUP), as a
terminal's would be, and killed after `HANGUP_SECONDS`. `supervisor` does the same when the agent was killed.

Requests are the host's, whom the guest trusts: any user, any command, never through a shell that was not asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import struct
import subprocess
import termios
from collections import Counter, deque
from collections.abc import Callable

import trio

from guestagent.command_groups import HANGUP_SECONDS, CommandGroups, GroupEntry
from guestagent.command_process import CommandDescriptors, set_size, start_command
from guestagent.relay import error_name
from guestagent.stream_table import StreamTable
from protocol.connection import Connection
from protocol.limits import MAX_PAYLOAD
from protocol.stream_messages import CommandTarget, TerminalSize
from protocol.streams import Stream

GRACE = 0.25
"""Seconds after a command's end in which its children may still write."""

KILL_SECONDS = 5.0
"""Bound on the end of a killed command: one that waits for a device (state D, proc(5)) may never end."""

MAX_LEFTOVERS = 64
"""Outputs of ended commands that are read and dropped; further ones are closed."""

_END_OF_FILE = b"\x04"  # VEOF, ^D: what ends the input of a program that reads a terminal (termios(3))
_READ_SIZE = 65_536

_log = logging.getLogger(__name__)


class _Output:
    """One descriptor that the command writes to, carried to the stream."""

    def __init__(self, execution: Execution, descriptor: int, *, is_errors: bool) -> None:
        self._execution = execution
        self.descriptor = descriptor
        self._is_errors = is_errors
        self._scope = trio.CancelScope()
        self._left: int | None = None
        self.at_end = False

    async def carry(self) -> None:
        """Carry until the end of the output, or what counts as it after `command_ended`."""
        with self._scope:
            while not self.at_end:
                room = await self._execution.room()
                await trio.lowlevel.wait_readable(self.descriptor)
                self._read(min(room, MAX_PAYLOAD))

    def command_ended(self) -> None:
        """Only what is written by now has to be carried."""
        size = fcntl.ioctl(self.descriptor, termios.FIONREAD, bytes(4))
        self._left = struct.unpack("i", size)[0]
        self._allow(0)

    def _read(self, most: int) -> None:
        try:
            data = os.read(self.descriptor, most)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.EIO:  # a terminal whose last user is gone (pty(7))
                raise
            data = b""
        if not data:
            self.at_end = True
            return
        self._execution.say(data, is_errors=self._is_errors)
        self._allow(len(data))

    def _allow(self, carried: int) -> None:
        if self._left is None:
            return
        self._left -= carried
        if self._left <= 0 and self._scope.deadline == float("inf"):
            self._scope.deadline = trio.current_time() + GRACE

    async def drop_rest(self) -> None:
        """Read to the end what nobody wants any more."""
        while not self.at_end:
            await trio.lowlevel.wait_readable(self.descriptor)
            try:
                self.at_end = not os.read(self.descriptor, _READ_SIZE)
            except BlockingIOError:
                pass
            except OSError:
                return


class Execution:
    """One exec stream and its command; a `StreamHandler`."""

    def __init__(self, stream: Stream, connection: Connection, table: StreamTable, flush: Callable[[], None]) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self._connection = connection
        self._table = table
        self._flush = flush
        self.over = False
        self._room = trio.Event()
        self._input: deque[memoryview] = deque()
        self._input_ended = False
        self._input_closed = False
        self._more_input = trio.Event()
        self._process: trio.Process | None = None
        self._terminal: int | None = None

    # ------------------------------------------------------------------ from the channel

    def receive_data(self, payload: bytes) -> None:
        """Input for the command."""
        if self._input_closed:
            self._connection.consumed(self.stream, len(payload))  # nobody reads it, as with a broken pipe
            return
        self._input.append(memoryview(payload))
        self._more_input.set()

    def receive_end(self) -> None:
        """The input ends behind what came before."""
        self._input_ended = True
        self._more_input.set()
        if self._input_closed:
            self._table.remove(self)

    def receive_reset(self) -> None:
        """Nobody is interested any more: end the command."""
        self.over = True
        self.scope.cancel()

    def unpaused(self) -> None:
        """The stream has room again."""
        self._room.set()

    def receive_signal(self, name: str) -> None:
        """Send a signal to the command's foreground process group."""
        number = int(name) if name.isdecimal() else signal.Signals.__members__.get(f"SIG{name}", 0)
        process = self._process
        if not 0 < number < signal.NSIG or process is None or process.returncode is not None:
            _log.info("signal %s has nobody to go to", name)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._foreground(process), number)

    def receive_size(self, size: TerminalSize) -> None:
        """The user's terminal has a new size."""
        if self._terminal is not None:
            set_size(self._terminal, size)

    def _foreground(self, process: trio.Process) -> int:
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                return os.tcgetpgrp(self._terminal) or process.pid
        return process.pid

    # ------------------------------------------------------------------ to the channel

    async def room(self) -> int:
        """How much to read of the command, once that is not 0."""
        while not (room := self.stream.room()):
            self._room = trio.Event()
            await self._room.wait()
        return room

    def say(self, data: bytes, *, is_errors: bool) -> None:
        """Send output."""
        if not self.over:
            self._connection.send_data(self.stream, data, error_output=is_errors)
            self._flush()

    # ------------------------------------------------------------------ the command

    async def run(self, process: trio.Process, ours: CommandDescriptors) -> list[_Output]:
        """Serve the running command to its end; returns the outputs that its children still hold.

        Cancelled, it ends the command first.
        """
        self._process = process
        self._terminal = ours.output if ours.terminal else None
        outputs = [_Output(self, ours.output, is_errors=False)]
        if ours.errors is not None:
            outputs.append(_Output(self, ours.errors, is_errors=True))
        try:
            async with trio.open_nursery() as feeding:
                feeding.start_soon(self._feed, ours)
                async with trio.open_nursery() as carrying:
                    for output in outputs:
                        carrying.start_soon(output.carry)
                    await process.wait()
                    for output in outputs:
                        output.command_ended()
                feeding.cancel_scope.cancel()
        finally:
            self._terminal = None
            self._close_input()
            if process.returncode is None:
                with trio.CancelScope(shield=True):
                    await _end_group(process)
        self._say_exit(process.returncode)
        return [output for output in outputs if not output.at_end]

    def _say_exit(self, code: int | None) -> None:
        if self.over or code is None:
            return
        if code < 0:
            self._connection.send_exit(self.stream, None, _signal_name(-code))
        else:
            self._connection.send_exit(self.stream, code, None)
        self._connection.send_end(self.stream)
        if self._input_ended:
            self._table.remove(self)
        self._flush()

    async def _feed(self, ours: CommandDescriptors) -> None:
        """Give the command its input."""
        try:
            while True:
                while self._input:
                    await self._give(ours.input)
                if self._input_ended:
                    break
                self._more_input = trio.Event()
                await self._more_input.wait()
            if ours.terminal:
                os.write(ours.input, _END_OF_FILE)
        except OSError as exc:
            if exc.errno not in (errno.EPIPE, errno.EIO, errno.EAGAIN):
                raise
        finally:
            self._close_input()
            if not ours.terminal:
                os.close(ours.input)

    async def _give(self, descriptor: int) -> None:
        chunk = self._input[0]
        try:
            taken = os.write(descriptor, chunk)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(descriptor)
            return
        if taken == len(chunk):
            self._input.popleft()
        else:
            self._input[0] = chunk[taken:]
        if not self.over:
            self._connection.consumed(self.stream, taken)
            self._flush()

    def _close_input(self) -> None:
        self._input_closed = True
        waiting = sum(len(chunk) for chunk in self._input)
        self._input.clear()
        if waiting and not self.over:
            self._connection.consumed(self.stream, waiting)


class Executions:
    """Runs a command for each OPEN of an exec stream."""

    def __init__(
        self,
        connection: Connection,
        table: StreamTable,
        nursery: trio.Nursery,
        flush: Callable[[], None],
        groups: CommandGroups,
    ) -> None:
        self._connection = connection
        self._table = table
        self._nursery = nursery
        self._flush = flush
        self._groups = groups
        self._leftovers = 0
        self.counters: Counter[str] = Counter()

    def open(self, stream: Stream, target: CommandTarget) -> None:
        """Start the command; OPENED or REFUSED follows."""
        execution = Execution(stream, self._connection, self._table, self._flush)
        self._table.add(execution)
        try:
            entry = self._groups.reserve()
        except OSError as exc:
            self._refuse(execution, error_name(exc.errno or errno.EAGAIN), str(exc.strerror))
            return
        self._nursery.start_soon(self._run, execution, target, entry)

    async def _run(self, execution: Execution, target: CommandTarget, entry: GroupEntry) -> None:
        try:
            with entry, execution.scope:
                if started := await self._start(execution, target):
                    entry.started(started[0].pid)
                    await self._serve(execution, *started)
        except Exception:  # a bug here must not end the other streams; `failed` logs it
            self._table.failed(execution)
            self._flush()

    async def _start(
        self, execution: Execution, target: CommandTarget
    ) -> tuple[trio.Process, CommandDescriptors] | None:
        try:
            started = await start_command(target)
        except LookupError as exc:
            self._refuse(execution, "EINVAL", str(exc.args[0]))
        except OSError as exc:
            what = "" if exc.filename is None else f"{exc.filename}: "
            self._refuse(execution, error_name(exc.errno or errno.EIO), what + (exc.strerror or str(exc)))
        except (ValueError, subprocess.SubprocessError) as exc:
            self._refuse(execution, "EINVAL", str(exc))
        else:
            if not execution.over:
                self.counters["commands"] += 1
                self._connection.accept_stream(execution.stream)
                self._flush()
            return started
        return None

    def _refuse(self, execution: Execution, error: str, reason: str) -> None:
        if not execution.over:
            self._table.remove(execution)
            self._connection.refuse_stream(execution.stream, error, reason)
            self._flush()

    async def _serve(self, execution: Execution, process: trio.Process, ours: CommandDescriptors) -> None:
        leftovers: list[_Output] = []
        try:
            leftovers = await execution.run(process, ours)
        finally:
            for descriptor in (ours.output, ours.errors):
                kept = next((output for output in leftovers if output.descriptor == descriptor), None)
                if descriptor is None:
                    continue
                if kept is None or ours.terminal or self._leftovers >= MAX_LEFTOVERS:
                    os.close(descriptor)
                else:
                    self._leftovers += 1
                    self._nursery.start_soon(self._drop, kept)

    async def _drop(self, output: _Output) -> None:
        try:
            await output.drop_rest()
        finally:
            self._leftovers -= 1
            os.close(output.descriptor)


def _signal_name(number: int) -> str:
    """The name as in signal(7) without SIG; the number where it has none (a real-time signal)."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


async def _end_group(process: trio.Process) -> None:
    """End the command and what it started in its process group, gently at first."""
    for number, bound in ((signal.SIGHUP, HANGUP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a stopped process hears nothing else
        with trio.move_on_after(bound):
            await process.wait()
            return
    _log.warning("process %d does not end", process.pid)
