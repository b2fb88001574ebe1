"""Starts a command as a user of the guest: with three pipes, or on a terminal of its own.

Nothing here reads or writes what the command says; `guestagent.execution` does.

The terminal is made the command's by an ioctl between fork and exec (tty_ioctl(4), TIOCSCTTY): a `partial` of two C
functions, so that no Python code runs in the forked child. Rejected: opening the terminal again through a helper
program, which costs the start of another interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import struct
import termios
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from guestagent.account import Account, find_account, login_environment
from protocol.stream_messages import CommandTarget, TerminalSize

_SOFT_FILES = 1_024
"""systemd's default for programs. The agent's own limit is higher, and some programs walk through all numbers."""

_TAKE_TERMINAL = partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
_TERMINAL_MODE = 0o620  # as grantpt(3) leaves it


@dataclass(frozen=True, slots=True)
class CommandDescriptors:
    """Our ends, non-blocking. On a terminal `input` and `output` are the same, and there is no `errors`."""

    input: int
    output: int
    errors: int | None
    terminal: bool


@dataclass(frozen=True, slots=True)
class _Ends:
    """Both sides of what a command is connected to."""

    ours: CommandDescriptors
    theirs: tuple[int, int, int]
    """Standard input, output and error."""

    def close_theirs(self) -> None:
        for descriptor in set(self.theirs):
            os.close(descriptor)

    def close_ours(self) -> None:
        for descriptor in {self.ours.input, self.ours.output, self.ours.errors}:
            if descriptor is not None:
                os.close(descriptor)


def set_size(terminal: int, size: TerminalSize) -> None:
    """Tell the terminal its size; the kernel tells its foreground programs (SIGWINCH)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", size.rows, size.columns, 0, 0))


async def start_command(target: CommandTarget) -> tuple[trio.Process, CommandDescriptors]:
    """The running command, leader of a session of its own, and our ends of it.

    Raises `LookupError` for an unknown user or folder, and `OSError` when the command is missing or not permitted.
    """
    account = await trio.to_thread.run_sync(find_account, target.user)
    if target.directory and not await trio.Path(target.directory).is_dir():
        raise LookupError(f"there is no folder {target.directory}")
    becomes_user = _becomes(account)
    home = account.home if await trio.Path(account.home).is_dir() else "/"
    ends = _open_terminal(target.terminal, account) if target.terminal else _open_pipes()
    stdin, stdout, stderr = ends.theirs
    try:
        process = await trio.lowlevel.open_process(
            target.arguments or account.login_arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            executable=None if target.arguments else account.shell,
            cwd=target.directory or home,
            env=login_environment(account) | dict(target.environment),
            start_new_session=True,
            preexec_fn=_TAKE_TERMINAL if target.terminal else None,
            user=account.uid if becomes_user else None,
            group=account.gid if becomes_user else None,
            extra_groups=account.groups if becomes_user else None,
        )
    except BaseException:
        ends.close_ours()
        raise
    finally:
        ends.close_theirs()
    _restore_limits(process.pid)
    return process, ends.ours


def _becomes(account: Account) -> bool:
    """Whether the child has to become the user; raises `PermissionError` where it cannot."""
    if os.geteuid() != 0 and account.uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the guest agent is not root and cannot become", account.name)
    return os.geteuid() == 0


def _open_pipes() -> _Ends:
    pipes: list[int] = []
    try:
        for _ in range(3):
            pipes += os.pipe()
        for ours in (pipes[1], pipes[2], pipes[4]):
            os.set_blocking(ours, False)
    except OSError:
        for descriptor in pipes:
            os.close(descriptor)
        raise
    return _Ends(CommandDescriptors(pipes[1], pipes[2], pipes[4], terminal=False), (pipes[0], pipes[3], pipes[5]))


def _open_terminal(size: TerminalSize, account: Account) -> _Ends:
    terminal, theirs = os.openpty()
    try:
        set_size(terminal, size)
        os.set_blocking(terminal, False)
        if os.geteuid() == 0:
            os.fchown(theirs, account.uid, -1)
            os.fchmod(theirs, _TERMINAL_MODE)
    except OSError:
        os.close(terminal)
        os.close(theirs)
        raise
    return _Ends(CommandDescriptors(terminal, terminal, None, terminal=True), (theirs, theirs, theirs))


def _restore_limits(pid: int) -> None:
    """Give the command what a login would have, not what the agent has: ours is spared when memory runs out."""
    # What fails: it has exited already, or we are not root and have nothing to restore.
    with contextlib.suppress(OSError):
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] > _SOFT_FILES:
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_SOFT_FILES, hard))
    with contextlib.suppress(OSError):
        if Path("/proc/self/oom_score_adj").read_text("ascii") != "0\n":
            Path(f"/proc/{pid}/oom_score_adj").write_text("0", "ascii")
