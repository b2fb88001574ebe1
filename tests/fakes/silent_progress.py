"""A `Progress` for tests that do not look at it."""

from __future__ import annotations


class SilentProgress:
    """A `Progress` that shows nothing."""

    def update(self, step: str, done: int, total: int | None) -> None:
        """Ignore the report."""
