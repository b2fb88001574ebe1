"""How this process prints: on a terminal in colour and as wide as it is, elsewhere plain."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any


class OutputClosedError(Exception):
    """Whoever read our standard output has had enough.

    Not a BrokenPipeError, of which click makes exit status 1, and which other pipes can raise too.
    """


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
    """Print each line, and flush, so that a reader sees it now; raises `OutputClosedError`."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError as exc:
        raise OutputClosedError from exc


def print_json(document: Mapping[str, Any], *, one_line: bool = False) -> None:
    """Print a document in ASCII, so that no string in it can steer a terminal."""
    print_lines([json.dumps(document, separators=(",", ":")) if one_line else json.dumps(document, indent=2)])


def print_error(message: str) -> None:
    """Print one line to standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
