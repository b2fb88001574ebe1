"""What is wrong with a configuration, and where: the one form in which mistakes and warnings leave this package.

Whatever comes from the file is shown through `quoted` or `key_path`, which escape all that is not printable: a file
from the network must not be able to write to the terminal in our name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hostagent.errors import UserError

MAX_LISTED: Final = 100
"""Mistakes that are listed; nobody reads more, and a hostile file could make as many as it has keys."""

_QUOTED_LENGTH: Final = 60
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")


def quoted(text: str) -> str:
    """`text` in quotes, shortened, with everything that is not printable escaped."""
    return repr(text if len(text) <= _QUOTED_LENGTH else text[: _QUOTED_LENGTH - 1] + "…")


def printable(text: str) -> str:
    """`text` in full and without quotes, with everything that is not printable escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def key_path(keys: Iterable[str | int]) -> str:
    """The way to a key as one reads it: `portForwards.0.hostPort`; a key that is no plain word is quoted."""
    words = (str(key) for key in keys)
    return ".".join(word if _PLAIN_KEY.fullmatch(word) else quoted(word) for word in words)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` most likely meant, or None when none is near; case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(word[:_QUOTED_LENGTH].lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing that is wrong, or (as a warning) not acted on, at one place of the file."""

    line: int
    """From 1, as editors count."""
    column: int
    """From 1, in characters."""
    path: str
    """As `key_path` writes it; empty when the mistake is in no key."""
    message: str

    def described(self, name: str) -> str:
        """The mistake as one line, `file:line:column: key.path: what is wrong`, which editors can jump to."""
        where = f"{printable(name)}:{self.line}:{self.column}: "
        return where + (f"{self.path}: " if self.path else "") + self.message


class ConfigError(UserError):
    """A configuration that cannot be used. The message has a line for each mistake, in the order of the file."""

    def __init__(self, message: str, hint: str, mistakes: tuple[Mistake, ...] = ()) -> None:
        super().__init__(message, hint)
        self.mistakes = mistakes

    @classmethod
    def of(cls, name: str, mistakes: Iterable[Mistake], hint: str = "") -> ConfigError:
        """The error that lists `mistakes` (at least one) of the file `name`, at most `MAX_LISTED` of them."""
        ordered = sorted(set(mistakes))
        listed = tuple(ordered[:MAX_LISTED])
        lines = [mistake.described(name) for mistake in listed]
        if more := len(ordered) - len(listed):
            lines.append(f"{printable(name)}: {more} more mistakes are not listed")
        return cls("\n".join(lines), hint or "mend the file and run the command again", listed)
