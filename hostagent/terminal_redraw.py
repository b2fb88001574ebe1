"""Lines on a terminal that are drawn over themselves again and again, without flicker.

Nothing is erased before it is drawn: each line is written over the old one, and only what the old one had beyond it is
cleared. A frame is one write, between the marks of a synchronised update for terminals that know them (DEC mode 2026).
Lines do not wrap (DECAWM off): the terminal cuts them, so that a line is a row. Lines for which there are no rows are
counted in the last one. The rest of the screen, and the scroll-back, stay as they are.

rich's `Live` was not taken: it erases each line before it draws it, and cuts lines by parsing their colours again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from hostagent.terminal_output import OutputClosedError

_BEGIN: Final = "\x1b[?2026h\x1b[?7l"
_END: Final = "\x1b[?7h\x1b[?2026l"
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")


def fitting(lines: Sequence[str], rows: int) -> list[str]:
    """As many of `lines` as a terminal of `rows` rows takes, one row being for the cursor."""
    room = max(rows - 1, 1)
    if len(lines) <= room:
        return list(lines)
    left_out = len(lines) - room + 1
    return [*lines[: room - 1], f"... and {left_out} more lines: make the window taller, or see `hostagent ports`"]


def frame(lines: Sequence[str], before: int, columns: int) -> str:
    """What draws `lines` over the `before` lines above the cursor, and leaves the cursor below them."""
    up = f"\x1b[{before}A" if before else ""
    drawn = "".join(f"{line}{_rest_cleared(line, columns)}\r\n" for line in lines)
    return f"{_BEGIN}\r{up}{drawn}{_CLEAR_BELOW}{_END}"


def _rest_cleared(line: str, columns: int) -> str:
    """Behind a line that fills its row the cursor stands on the last character, which would be cleared."""
    return _CLEAR_LINE if len(_COLOUR.sub("", line)) < columns else ""


class RedrawnLines:
    """The lines at the end of the terminal that standard output is. Made by `redrawn_lines`."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, lines: Sequence[str]) -> None:
        """Draw `lines` over those before; raises `OutputClosedError`."""
        size = shutil.get_terminal_size()
        kept = fitting(lines, size.lines)
        _write(frame(kept, self._shown, size.columns))
        self._shown = len(kept)


@contextlib.contextmanager
def redrawn_lines() -> Iterator[RedrawnLines]:
    """Lines that can be drawn over until the end of the context; then they stay, and the cursor is back."""
    _write(_HIDE_CURSOR)
    try:
        yield RedrawnLines()
    finally:
        _write(_SHOW_CURSOR)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as exc:
        raise OutputClosedError from exc
