"""A running instance whose guest is this machine: commands run here, on pipes or on a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hostagent.api_shapes import Status
from hostagent.errors import UserError
from hostagent.event_log import EventLog
from hostagent.forward_rules import RuleSet
from hostagent.forwards import Endpoint, Forward, ForwardState, Traffic
from hostagent.launch_plan import read_plan
from hostagent.live_rules import LiveRules
from hostagent.paths import InstancePaths
from protocol.ports import PortOwner, Protocol
from protocol.stream_messages import CommandTarget, TerminalSize
from tests.fakes.instance_folder import PLAN


def web_forward(state: ForwardState = ForwardState.LISTENING, reason: str = "", port: int = 8080) -> Forward:
    """A forward of a web server."""
    return Forward(
        protocol=Protocol.TCP,
        guest=Endpoint("0.0.0.0", port),
        host=(Endpoint("127.0.0.1", port), Endpoint("::1", port)),
        state=state,
        reason=reason,
        rule="default rule",
        since=1_700_000_000.0,
        owner=PortOwner("python3", 812, 1000),
        traffic=Traffic(connections=1, connections_total=12, bytes_to_guest=1_234, bytes_to_host=3_400_000),
    )


class FakeInstance:
    """A `RunningInstance`."""

    def __init__(self, folder: Path = Path("/nonexistent")) -> None:
        self.events = EventLog()
        self.applied: list[RuleSet] = []
        paths = InstancePaths(folder)
        plan = read_plan(paths.launch_plan) if paths.launch_plan.exists() else PLAN
        self.rules = LiveRules(paths, plan, self.applied.append)
        self.listed: list[Forward] = [web_forward()]
        self.state, self.reason = "running", ""
        self.stops: list[bool] = []
        self.stopped = trio.Event()
        self.executions: list[FakeExecution] = []
        self.left = 0
        """Commands whose context was left."""
        self.first_left = trio.Event()

    async def refresh(self) -> None:
        await trio.lowlevel.checkpoint()

    def status(self) -> Status:
        return {
            "name": "box",
            "state": self.state,
            "reason": self.reason,
            "directory": "/home/ada/.hostagent/box",
            "version": "1.0",
            "since": 1_700_000_000.0,
            "arch": "x86_64",
            "cpus": 2,
            "memory": 2 << 30,
            "disk": 20 << 30,
            "image": "debian-12",
            "accelerator": {"name": "tcg", "warning": "no KVM"},
            "qemu_pid": 4711,
            "phases": {"qemu": 0.1},
            "guest_agent": {
                "present": True,
                "version": "1.0",
                "seed_version": "1.0",
                "boot_id": "first boot",
                "description": "Debian 12",
                "capabilities": ["exec", "tcp", "udp"],
                "sources": [{"name": "sock_diag", "live": True, "reason": "", "wakeups": 7}],
                "counters": {"misses": 0},
            },
        }

    def forwards(self) -> Sequence[Forward]:
        return tuple(self.listed)

    @asynccontextmanager
    async def execute(self, target: CommandTarget) -> AsyncIterator[FakeExecution]:
        terminal = None if target.terminal is None else _Terminal(target.terminal)
        try:
            process = await _start(target, terminal)
        except OSError as exc:
            message = f"{target.arguments[0]!r} cannot be started: {exc.strerror}"
            raise UserError(message, "check its name", status=127) from exc
        execution = FakeExecution(process, terminal)
        self.executions.append(execution)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execution.pump)
            try:
                yield execution
            finally:
                with trio.CancelScope(shield=True):
                    await execution.end()
                nursery.cancel_scope.cancel()
                self.left += 1
                self.first_left.set()

    async def stop(self, *, force: bool) -> str:
        self.stops.append(force)
        self.stopped.set()
        return "kill" if force else "guest agent"


class _Terminal:
    """A pseudo-terminal: the near end is ours, the far end the command's."""

    def __init__(self, size: TerminalSize) -> None:
        self.near, self.far = pty.openpty()
        self.resize(size)

    def resize(self, size: TerminalSize) -> None:
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))

    def become_controlling(self) -> None:
        os.setsid()
        fcntl.ioctl(self.far, termios.TIOCSCTTY, 0)


async def _start(target: CommandTarget, terminal: _Terminal | None) -> trio.Process:
    arguments = target.arguments or ("sh",)
    environment = {**os.environ, **dict(target.environment)}
    pipe = subprocess.PIPE
    if terminal is None:
        return await trio.lowlevel.open_process(
            arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, process_group=0
        )
    far = terminal.far
    process = await trio.lowlevel.open_process(
        arguments, stdin=far, stdout=far, stderr=far, env=environment, preexec_fn=terminal.become_controlling
    )
    os.close(far)
    return process


class FakeExecution:
    """An `Execution` of a command on this machine."""

    def __init__(self, process: trio.Process, terminal: _Terminal | None) -> None:
        self.signals: list[str] = []
        self.sizes: list[TerminalSize] = []
        self.process = process
        self._terminal = terminal
        self._give, self._take = trio.open_memory_channel[tuple[str, bytes]](0)
        self._input: trio.abc.SendStream
        self._outputs: tuple[trio.abc.ReceiveStream, ...]
        if terminal is None:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            self._input, self._outputs = process.stdin, (process.stdout, process.stderr)
        else:
            self._input = trio.lowlevel.FdStream(os.dup(terminal.near))
            self._outputs = (trio.lowlevel.FdStream(terminal.near),)

    async def pump(self) -> None:
        """Carry the output until all of it was taken, and wait for the end."""
        async with self._give:
            async with trio.open_nursery() as nursery:
                for name, stream in zip(("stdout", "stderr"), self._outputs, strict=False):
                    nursery.start_soon(self._carry, name, stream)
            await self.process.wait()

    async def _carry(self, name: str, stream: trio.abc.ReceiveStream) -> None:
        # Reading a terminal's near end says EIO once its far end is closed (pty(7)).
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(32_768):
                await self._give.send((name, bytes(data)))

    async def send_input(self, data: bytes) -> None:
        await self._input.send_all(data)

    def end_input(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # type: ignore[attr-defined]  # an FdStream, which trio calls a SendStream

    def resize(self, size: TerminalSize) -> None:
        self.sizes.append(size)
        assert self._terminal is not None
        self._terminal.resize(size)

    def send_signal(self, name: str) -> None:
        self.signals.append(name)
        os.killpg(self.process.pid, signal.Signals[f"SIG{name}"])

    async def output(self) -> AsyncGenerator[tuple[str, bytes], None]:
        async for piece in self._take:
            yield piece

    @property
    def status(self) -> int:
        code = self.process.returncode
        assert code is not None
        return 128 - code if code < 0 else code

    async def end(self) -> None:
        """Kill what is left, and leave no file open."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        for stream in (self._input, *self._outputs):
            await trio.aclose_forcefully(stream)
