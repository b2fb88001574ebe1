"""The real `hostagent` command as a process, on pipes or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "hostagent"]
BOUND = 60.0
"""Seconds that anything may take here; a start takes one on a busy machine."""


def run(*arguments: str, home: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `hostagent` to its end."""
    environment = {**os.environ, "HOSTAGENT_HOME": str(home), **options.pop("env", {})}
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, timeout=BOUND, **options)


@contextmanager
def running(*arguments: str, home: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`hostagent` while it runs, with its standard streams as pipes unless `options` say otherwise."""
    pipe = subprocess.PIPE
    streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe, **options}
    with subprocess.Popen(
        [*COMMAND, *arguments], env={**os.environ, "HOSTAGENT_HOME": str(home)}, bufsize=0, **streams
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A terminal with a program on it: its session, its foreground, its size."""

    def __init__(self, arguments: Sequence[str], home: Path, rows: int, columns: int) -> None:
        self.near, self.far = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.far)
        self.seen = b""

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(self.far, termios.TIOCSCTTY, 0)

        environment = {**os.environ, "HOSTAGENT_HOME": str(home), "TERM": "xterm"}
        for size in ("COLUMNS", "LINES"):  # some test runner's own: a program would believe them instead of us
            environment.pop(size, None)
        self.process = subprocess.Popen(
            arguments, stdin=self.far, stdout=self.far, stderr=self.far, env=environment, preexec_fn=take_terminal
        )

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the foreground gets SIGWINCH."""
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.near, keys)

    def expect(self, text: bytes) -> bytes:
        """Read until `text` was shown; returns everything up to it, and forgets it."""
        deadline = time.monotonic() + BOUND
        while text not in self.seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.near], [], [], max(0.0, left))
            assert ready and left > 0, f"{text!r} was not shown, only {self.seen[-2_000:]!r}"  # noqa: PT018
            self.seen += os.read(self.near, 65_536)
        shown, self.seen = self.seen.split(text, 1)
        return shown

    def rest(self) -> bytes:
        """Everything that the program shows until it ends."""
        while self.process.poll() is None or select.select([self.near], [], [], 0)[0]:
            if select.select([self.near], [], [], 0.05)[0]:
                self.seen += os.read(self.near, 65_536)
        shown, self.seen = self.seen, b""
        return shown

    def end(self) -> int:
        """Wait for the program; its exit status."""
        return self.process.wait(timeout=BOUND)

    @property
    def mode(self) -> list[Any]:
        """The terminal's attributes now."""
        return termios.tcgetattr(self.far)

    @property
    def is_raw(self) -> bool:
        return not self.mode[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@contextmanager
def on_terminal(*arguments: str, home: Path, rows: int = 30, columns: int = 100) -> Iterator[Terminal]:
    """A program on a terminal of its own."""
    terminal = Terminal(arguments, home, rows, columns)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()
        os.close(terminal.near)
        os.close(terminal.far)
