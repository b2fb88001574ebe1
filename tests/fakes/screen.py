"""What a terminal shows after it was written to: as much of a terminal as our own output needs."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(?P<private>\??)(?P<number>\d*)(?P<final>[A-Za-z])|(?P<text>[\r\n]|[^\x1b\r\n])", re.DOTALL)


class Screen:
    """A grid of characters and a cursor. Anything that it does not know is a `ValueError`."""

    def __init__(self, rows: int, columns: int) -> None:
        self._columns = columns
        self._cells = [[" "] * columns for _ in range(rows)]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """The rows without blanks at their ends, down to the last one that has any."""
        rows = ["".join(row).rstrip() for row in self._cells]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def write(self, text: str) -> list[list[str]]:
        """Take text; returns how the screen looked after every step."""
        looks = []
        at = 0
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                raise ValueError(f"not understood: {text[at : at + 10]!r}")
            at = token.end()
            if token["text"]:
                self._print(token["text"])
            elif not token["private"]:
                self._control(token["final"], int(token["number"] or 0))
            looks.append(self.lines)
        return looks

    def _print(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            if self._row == len(self._cells) - 1:
                self._cells = [*self._cells[1:], [" "] * self._columns]
            else:
                self._row += 1
        else:
            self._cells[self._row][self._column] = character
            self._column = min(self._column + 1, self._columns - 1)

    def _control(self, final: str, number: int) -> None:
        match final:
            case "A":
                self._row = max(self._row - max(number, 1), 0)
            case "K" if number == 0:
                self._clear(self._row, self._column)
            case "J" if number == 0:
                self._clear(self._row, self._column)
                for row in range(self._row + 1, len(self._cells)):
                    self._clear(row, 0)
            case "m":
                pass  # colours
            case _:
                raise ValueError(f"not understood: {number}{final}")

    def _clear(self, row: int, column: int) -> None:
        self._cells[row][column:] = [" "] * (self._columns - column)
