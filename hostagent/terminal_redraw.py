"""Lines on a terminal that are drawn over themselves again and again, without flicker.

Nothing is erased before it is drawn: each line is written over the old one, and only what the old one had beyond it is
cleared. A frame is one write, between the marks of a synchronised update for terminals that know them (DEC mode 2026).
A line is a row: what does not fit its columns is cut here, since a terminal that must not wrap (DECAWM off, for its own
idea of a character's width) puts all the rest on its last column. Lines for which there are no rows are counted in the
last one. The rest of the screen, and the scroll-back, stay as they are.

When the window changes its size, all is drawn anew. Most terminals then wrap what was longer than the new width, and
that is what we go by: one that does not (xterm) loses as many rows above as they would have made.

rich's `Live` was not taken: it erases each line before it draws it, and cuts lines by parsing their colours again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from hostagent.cli_views import cells

_BEGIN: Final = "\x1b[?2026h\x1b[?7l"
_END: Final = "\x1b[?7h\x1b[?2026l"
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")
_TOKEN: Final = re.compile("\x1b\\[[0-9;]*m|.", re.DOTALL)
_RESIZED: Final = frozenset({signal.SIGWINCH})


def fitting(lines: Sequence[str], rows: int) -> list[str]:
    """As many of `lines` as a terminal of `rows` rows takes, one row being for the cursor."""
    room = max(rows - 1, 1)
    if len(lines) <= room:
        return list(lines)
    left_out = len(lines) - room + 1
    return [*lines[: room - 1], f"... and {left_out} more lines in a taller window"]


def cut(line: str, columns: int) -> str:
    """What of `line` fits `columns` columns, with all of its colours, so that the last one set is its own."""
    kept, room = [], columns
    for token in _TOKEN.findall(line):
        if not _COLOUR.fullmatch(token):
            room -= cells(token)
        if room >= 0 or _COLOUR.fullmatch(token):
            kept.append(token)
    return "".join(kept)


def frame(lines: Sequence[str], before: int, columns: int) -> str:
    """What draws `lines` over the `before` rows above the cursor, and leaves the cursor below them."""
    up = f"\x1b[{before}A" if before else ""
    fitted = [cut(line, columns) for line in lines]
    drawn = "".join(f"{line}{_rest_cleared(line, columns)}\r\n" for line in fitted)
    return f"{_BEGIN}\r{up}{drawn}{_CLEAR_BELOW}{_END}"


def _rest_cleared(line: str, columns: int) -> str:
    """Behind a line that fills its row the cursor stands on the last character, which would be cleared."""
    return _CLEAR_LINE if _width(line) < columns else ""


def rows_taken(widths: Iterable[int], columns: int) -> int:
    """The rows of lines that were so wide, once the terminal has `columns` columns and has wrapped them."""
    return sum(max(-(-width // columns), 1) for width in widths)


def _width(line: str) -> int:
    return cells(_COLOUR.sub("", line))


class RedrawnLines:
    """The lines at the end of the terminal that standard output is. Made by `redrawn_lines`."""

    def __init__(self) -> None:
        self._make: Callable[[int], Sequence[str]] | None = None
        self._widths: list[int] = []

    def show(self, make: Callable[[int], Sequence[str]]) -> None:
        """Draw what `make` gives for a number of columns, over what was there; raises `OutputClosedError`."""
        self._make = make
        self.draw()

    def draw(self) -> None:
        """Draw the same for the size that the terminal has now; raises `OutputClosedError`."""
        if self._make is None:
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _RESIZED)  # a frame does not begin in the middle of another
        try:
            size = shutil.get_terminal_size()
            kept = fitting(self._make(size.columns), size.lines)
            _write(frame(kept, rows_taken(self._widths, size.columns), size.columns))
            self._widths = [min(_width(line), size.columns) for line in kept]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def redrawn_lines() -> Iterator[RedrawnLines]:
    """Lines that can be drawn over until the end of the context; then they stay, and the cursor is back.

    Until then they are drawn anew when the window changes its size. For the main thread, which alone gets signals.
    """
    screen = RedrawnLines()
    handler = signal.signal(signal.SIGWINCH, lambda number, place: screen.draw())
    try:
        _write(_HIDE_CURSOR)
        yield screen
    finally:
        signal.signal(signal.SIGWINCH, handler)
        _write(_SHOW_CURSOR)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
