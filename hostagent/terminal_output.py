"""How this process prints: on a terminal in colour and as wide as it is, elsewhere plain.

Whoever prints (rich and click too) may find that the reader has gone or the disk is full. `open_streams` makes standard
output say so in our own errors, in one place for all of them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from hostagent.errors import UserError


class OutputClosedError(Exception):
    """Whoever read our standard output has had enough.

    Not a BrokenPipeError, of which click makes exit status 1, and which other pipes can raise too.
    """


def output_error(exc: OSError) -> OutputClosedError | UserError:
    """What it means that standard output cannot be written."""
    if isinstance(exc, BrokenPipeError):
        return OutputClosedError()
    return UserError(f"the output cannot be written: {exc.strerror}", "make room where it goes, or send it elsewhere")


class _Output(io.FileIO):
    """Standard output as bytes; raises what `output_error` says."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as exc:
            raise output_error(exc) from exc


def open_streams() -> None:
    """Make the standard streams usable, also where this process was started without some of them.

    What is opened next would otherwise get their numbers, and what is printed would go there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one (open(2))
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor, for good
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    plain = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "wb", closefd=False)),
        encoding=plain.encoding if plain else "utf-8",
        line_buffering=plain.line_buffering if isinstance(plain, io.TextIOWrapper) else False,
    )


def drop_output() -> None:
    """Let what could not be printed go nowhere: the interpreter flushes once more when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, OutputClosedError, UserError):
        close_output()


def close_output() -> None:
    """Let go of standard output: what is printed from now on goes nowhere."""
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def colour() -> bool:
    """Whether standard output takes colours, and the user wants them (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_redraw() -> bool:
    """Whether standard output is a terminal on which lines can be drawn over."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def print_lines(lines: Iterable[str]) -> None:
    """Print each line, and flush, so that a reader sees it now; raises `OutputClosedError` or `UserError`."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_json(document: Mapping[str, Any], *, one_line: bool = False) -> None:
    """Print a document in ASCII, so that no string in it can steer a terminal."""
    print_lines([json.dumps(document, separators=(",", ":")) if one_line else json.dumps(document, indent=2)])


def print_error(message: str) -> None:
    """Print one line to standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
