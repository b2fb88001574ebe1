"""Shows the phases of a start that run in this process: their begin, their end with the time taken, their failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from hostagent.errors import UserError
from hostagent.lifecycle import Phase, PhaseClock, PhaseReport

Show = Callable[[dict[str, object]], None]
"""Takes one event of a start: {"event": "phase" | "progress" | "notice" | "warning" | "ready", ...}."""


class ShownPhases:
    """A `PhaseClock` whose reports go to `show`. Implements `hostagent.progress.Progress`."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._clock = PhaseClock()

    @contextmanager
    def shown(self, phase: Phase) -> Iterator[list[str]]:
        """Run a block as `phase`; the texts that the block puts into the list become the detail of its end.

        One that is interrupted has not failed, and ends without a word.
        """
        details: list[str] = []
        self._report(self._clock.begin(phase, time.monotonic()))
        try:
            yield details
        except Exception as exc:
            why = exc.message if isinstance(exc, UserError) else type(exc).__name__
            self._report(self._clock.fail(time.monotonic(), why))
            raise
        self._report(self._clock.end(time.monotonic(), "; ".join(details)))

    def _report(self, report: PhaseReport) -> None:
        self._show({"event": "phase", **asdict(report)})

    def update(self, step: str, done: int, total: int | None) -> None:
        """Say how far the current phase has come; units are the step's own."""
        self._show({"event": "progress", "phase": self._clock.current, "step": step, "done": done, "total": total})

    def warn(self, message: str) -> None:
        """Say something that the user should know and that stops nothing."""
        self._show({"event": "warning", "message": message})
