"""How long work reports how far it has come.

A seam between what takes long (downloads, image builds) and what shows it (a bar on a terminal, JSON lines, nothing).
Reports may come often: whoever draws them limits the rate.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of one piece of long work."""

    def update(self, step: str, done: int, total: int | None) -> None:
        """Take note that `step` (words for a user) is at `done` of `total`, in bytes or pieces; None: total unknown."""
