"""The QEMU process of one instance: start it, find it again, notice its end, stop it.

Theory of operation. QEMU runs in a session of its own and outlives the host agent that started it; another host agent
`attach`es. Promises:

- `start` returns once QEMU has greeted on its monitor: its devices exist and the disk's lock is taken. When QEMU dies
  instead, the error has QEMU's own words. A `start` that is cancelled or fails leaves no process behind; one that
  has returned never ends QEMU by itself.
- Nobody waits for a socket file: the channel's and the monitor's sockets listen before QEMU is started and are
  inherited by it (mkosi's way). A client that connects too early waits in the backlog, and gets an end when QEMU dies.
- A signal never hits a stranger: the process is addressed through a pidfd, and the lock on the pid file, which only
  QEMU holds, is looked at after the pidfd was opened. Without pidfds (macOS, Linux before 5.3) the lock is looked at
  just before, and the end is noticed within `POLL_INTERVAL`.
- `stop` goes from polite to final, with a bound on every step, and says which step it took. Asking the guest agent,
  the most polite step, is up to the caller, before.

QEMU sees the guest's power-off as its own end. When it ends in an orderly way it unlinks both sockets, and when it is
killed they stay; `start` replaces what it finds. Only one host agent may call `start` for an instance at a time; its
lock sees to that, and the pid file's lock keeps even others from running two QEMUs on one disk.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import trio

from hostagent.errors import UserError
from hostagent.paths import InstancePaths
from hostagent.qemu.command_line import Listeners, MachineSpec, arguments, program_name
from hostagent.qemu.last_words import death_error, internal_error, words_of
from hostagent.qemu.monitor import Monitor, MonitorClosedError, MonitorError, open_monitor
from hostagent.qemu.pid_file import HeldPidFile, ProcessIdentity, hold_pid_file, is_held, living_process
from hostagent.qemu.programs import find_program

START_BOUND = 30.0
"""Seconds from exec to the monitor's greeting; 0.1 is usual, a cold disk or a swapping host takes longer."""

PRESS_INTERVAL = 5.0
"""Seconds between presses of the power button: a guest that is still booting does not hear the first."""

FAREWELL_BOUND = 1.0
"""Seconds between QEMU closing its monitor and its end, when it ends by itself."""

POLL_INTERVAL = 0.1
"""Seconds between looks at the pid file's lock where the kernel has no pidfds."""

LOG_LIMIT = 1024 * 1024
"""Bytes in QEMU's log beyond which the next start begins a new one."""

_LOG_TAIL = 64 * 1024

_START_MARK = b"\n--- hostagent starts QEMU: "

_children: dict[int, trio.Process] = {}
"""QEMUs that this process started and has not reaped, whether or not their `Machine` is still in use.

Whoever attaches to one again can reap it, and Python has no reason to warn that a child was forgotten.
"""


class StopStep(StrEnum):
    """What ended QEMU, from the politest to the last."""

    NOT_RUNNING = "not running"
    POWER_BUTTON = "power button"
    QUIT = "quit"
    TERMINATED = "terminated"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class StopBounds:
    """Seconds that each step of `Machine.stop` may take; 0 skips the step."""

    power_button: float = 60.0
    quit: float = 5.0
    terminate: float = 3.0
    kill: float = 10.0


_AT_ONCE = StopBounds(power_button=0, quit=0, terminate=0)


class Machine:
    """A QEMU that was started, now or by an earlier host agent; made by `start` and `attach`."""

    def __init__(self, paths: InstancePaths, identity: ProcessIdentity) -> None:
        self._paths = paths
        self.identity = identity
        """The process id and when it was started."""
        self._exit_status: int | None = None

    @property
    def monitor_socket(self) -> Path:
        """Where `open_monitor` finds it."""
        return self._paths.monitor_socket

    def is_running(self) -> bool:
        """Whether QEMU lives at this moment."""
        return is_held(self._paths.qemu_pid)

    async def wait_exit(self) -> int | None:
        """Return when QEMU has ended: its exit status (negative: a signal), or None if it was not our own child."""
        with self._pidfd() as pidfd:
            if pidfd is not None:
                await trio.lowlevel.wait_readable(pidfd)
            elif not hasattr(os, "pidfd_open"):
                while self.is_running():  # noqa: ASYNC110 - the kernel tells nobody that a lock has gone
                    await trio.sleep(POLL_INTERVAL)
        if child := _children.get(self.identity.pid):
            self._exit_status = await child.wait()
            _children.pop(self.identity.pid, None)
        await trio.lowlevel.checkpoint()
        return self._exit_status

    def last_words(self) -> str:
        """What QEMU has printed since it was started, less its warnings; empty when it said nothing."""
        return words_of(_read_log(self._paths.qemu_log))

    def internal_error(self) -> str:
        """How QEMU said that the accelerator gave up; empty when it did not."""
        return internal_error(_read_log(self._paths.qemu_log))

    async def stop(self, monitor: Monitor | None = None, bounds: StopBounds | None = None) -> StopStep:
        """End QEMU and return the step that was needed.

        `monitor` is the connection that the caller holds, if any: QEMU has ears for one only. Raises `UserError` when
        even SIGKILL did not end it, which takes a process stuck in the kernel.
        """
        bounds = bounds or StopBounds()
        if not self.is_running():
            await self.wait_exit()
            return StopStep.NOT_RUNNING
        async with self._monitor_or_none(monitor, bounds) as connection:
            if connection and bounds.power_button and await self._press_power_button(connection, bounds.power_button):
                return StopStep.POWER_BUTTON
            if connection and bounds.quit and await self._quit(connection, bounds.quit):
                return StopStep.QUIT
        if bounds.terminate and await self._signal(signal.SIGTERM, bounds.terminate):
            return StopStep.TERMINATED
        if await self._signal(signal.SIGKILL, bounds.kill):
            return StopStep.KILLED
        raise UserError(
            f"QEMU (process {self.identity.pid}) did not end when killed",
            "it is stuck in the kernel, often on a disk or a network file system that does not answer: mend that first",
        )

    @contextlib.asynccontextmanager
    async def _monitor_or_none(self, given: Monitor | None, bounds: StopBounds) -> AsyncIterator[Monitor | None]:
        if given is not None or not (bounds.power_button or bounds.quit):
            yield given
            return
        async with contextlib.AsyncExitStack() as stack:
            connection = None
            # a QEMU that hangs, has just died, or listens to someone else: the signals remain
            with contextlib.suppress(MonitorClosedError):
                connection = await stack.enter_async_context(open_monitor(self.monitor_socket))
            yield connection

    async def _press_power_button(self, monitor: Monitor, bound: float) -> bool:
        with trio.move_on_after(bound):
            while await _accepts(monitor, "system_powerdown"):
                if await self.ends_within(PRESS_INTERVAL):
                    return True
            # refused, or a QEMU that is about to end has closed its monitor
            return await self.ends_within(FAREWELL_BOUND)
        return not self.is_running()

    async def _quit(self, monitor: Monitor, bound: float) -> bool:
        with trio.move_on_after(bound):
            await _accepts(monitor, "quit")
            return await self.ends_within(bound)
        return not self.is_running()

    async def ends_within(self, bound: float) -> bool:
        """Whether QEMU ends within `bound` seconds; waits no longer than that."""
        with trio.move_on_after(bound):
            await self.wait_exit()
            return True
        return False

    async def _signal(self, number: signal.Signals, bound: float) -> bool:
        self._send_signal(number)
        return await self.ends_within(bound)

    def _send_signal(self, number: signal.Signals) -> None:
        with self._pidfd() as pidfd, contextlib.suppress(ProcessLookupError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)
            elif not hasattr(os, "pidfd_open") and self.is_running():
                os.kill(self.identity.pid, number)

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        """A pidfd of QEMU; None when it has ended or when there are no pidfds."""
        if not hasattr(os, "pidfd_open"):
            yield None
            return
        try:
            pidfd = os.pidfd_open(self.identity.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # still locked after opening: the pid was QEMU's when it was opened
            yield pidfd if self.is_running() else None
        finally:
            os.close(pidfd)


async def _accepts(monitor: Monitor, command: str) -> bool:
    try:
        await monitor.execute(command)
    except MonitorError:
        return False
    return True


async def start(spec: MachineSpec, paths: InstancePaths, bound: float = START_BOUND) -> Machine:
    """A running QEMU for `spec`; the instance's folder must exist.

    Raises `UserError` when QEMU is missing, is running already, ends at once or does not answer within `bound` seconds.
    """
    program = find_program(program_name(spec.architecture))
    try:
        with hold_pid_file(paths.qemu_pid) as pid_file:
            machine = await _spawn(program, spec, paths, pid_file)
    except OSError as exc:
        hint = f"check the free space and the rights of {paths.directory}"
        raise UserError(f"QEMU could not be started: {exc}", hint) from exc
    try:
        async with open_monitor(paths.monitor_socket, bound):
            return machine
    except BaseException as exc:
        has_closed = isinstance(exc, MonitorClosedError)
        with trio.CancelScope(shield=True):
            if has_closed and await machine.ends_within(FAREWELL_BOUND):
                status = await machine.wait_exit()
                raise death_error(_read_log(paths.qemu_log), paths.qemu_log, status) from exc
            await machine.stop(bounds=_AT_ONCE)
        if has_closed:
            raise UserError(f"QEMU did not get ready: {exc}", f"what it said is in {paths.qemu_log}") from exc
        raise


def attach(paths: InstancePaths) -> Machine | None:
    """The instance's living QEMU, or None; raises `UserError` when it lives but cannot be told which process it is."""
    identity = living_process(paths.qemu_pid)
    return Machine(paths, identity) if identity else None


async def _spawn(program: Path, spec: MachineSpec, paths: InstancePaths, pid_file: HeldPidFile) -> Machine:
    with (
        _listening(paths.channel_socket) as channel,
        _listening(paths.monitor_socket) as monitor,
        _open_log(paths.qemu_log) as log,
        trio.CancelScope(shield=True),  # a process that was started is recorded, or ended
    ):
        command = [str(program), *arguments(spec, Listeners(channel.fileno(), monitor.fileno()))]
        log.write(_START_MARK + os.fsencode(shlex.join(command)) + b"\n")
        log.flush()
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(channel.fileno(), monitor.fileno(), pid_file.fd),
        )
        identity = ProcessIdentity(process.pid, time.time())
        try:
            pid_file.record(identity)
        except OSError:
            process.kill()
            await process.wait()
            raise
        _children[process.pid] = process
    return Machine(paths, identity)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket that accepts connections on `path`, replacing what a killed QEMU left there; closed at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        yield listener


def _open_log(path: Path) -> BinaryIO:
    log = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")
    if os.fstat(log.fileno()).st_size > LOG_LIMIT:
        log.truncate(0)
    return log


def _read_log(path: Path) -> str:
    """What QEMU printed since its last start, at most the last `_LOG_TAIL` bytes of it."""
    with path.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL))
        tail = log.read(_LOG_TAIL)
    _, mark, since = tail.rpartition(_START_MARK)
    return (since.partition(b"\n")[2] if mark else tail).decode("utf-8", "replace")
