"""This process's terminal, standard input and output for a trio program that shares them with others.

They are never made non-blocking: that is a property of the open file, so the shell that started us (and everything
else on the terminal) would inherit it. Instead the kernel is asked first, and no more is read or written at once than
cannot block. Files that cannot be waited for (regular files, /dev/null: epoll_ctl(2) says EPERM) never block long.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from hostagent.terminal_output import output_error
from protocol.stream_messages import TerminalSize

INPUT: Final = 0
OUTPUT: Final = 1
ERROR_OUTPUT: Final = 2

_FALLBACK_SIZE: Final = TerminalSize(24, 80)


async def read_some(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes as soon as there are any; empty at the end, and when the terminal is gone."""
    while True:
        await _ready(trio.lowlevel.wait_readable, descriptor)
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            continue  # somebody else made it non-blocking, and was faster
        except OSError:
            return b""  # EIO: the terminal hung up, or is not ours to read any more; EBADF: closed from the start


async def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, waiting while the reader is slow; raises what `output_error` says."""
    view = memoryview(data)
    while view:
        # A writable pipe takes PIPE_BUF bytes without blocking (poll(2), pipe(7)).
        size = select.PIPE_BUF if await _ready(trio.lowlevel.wait_writable, descriptor) else len(view)
        try:
            view = view[os.write(descriptor, view[:size]) :]
        except BlockingIOError:
            continue
        except OSError as exc:
            raise output_error(exc) from exc


async def _ready(wait: Callable[[int], Awaitable[None]], descriptor: int) -> bool:
    """Wait for the file; False when it is of a kind that cannot be waited for."""
    try:
        await wait(descriptor)
    except OSError:
        await trio.lowlevel.checkpoint()
        return False
    return True


def is_foreground(descriptor: int) -> bool:
    """Whether `descriptor` is a terminal that this process may read now, instead of being stopped for trying."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # ENOTTY: a terminal, but not the one that controls us
        return True


def terminal_size(descriptor: int) -> TerminalSize:
    """Size of the terminal; 24 x 80 when it does not know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return _FALLBACK_SIZE
    return TerminalSize(rows, columns) if rows and columns else _FALLBACK_SIZE


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[Callable[[], None]]:
    """Pass every key through as it is, until the context is left; yields what does so again after a suspension."""
    saved = termios.tcgetattr(descriptor)

    def make_raw() -> None:
        tty.setraw(descriptor, termios.TCSADRAIN)  # not TCSAFLUSH: what was typed ahead is meant for the command

    make_raw()
    try:
        yield make_raw
    finally:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs no restoring
            termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
