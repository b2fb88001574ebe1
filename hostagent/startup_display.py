"""Shows a start while it goes on: live on a terminal, a line for each finished phase elsewhere, or JSON lines.

rich draws in a thread of its own, so that spinner and time go on while nothing is reported; it ends with the context.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from hostagent.cli_views import duration, plain, size
from hostagent.lifecycle import AGENT_PHASES
from hostagent.terminal_output import print_error, print_json, print_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

_LABELS: Final = {
    "validate": "configuration",
    "image": "image",
    "disk": "disk",
    "agent": "guest agent",
    "seed": "seed",
    "accelerator": "accelerator",
    "qemu": "QEMU",
    "hello": "guest boots",
    "ports": "ports",
}
_FOREGROUND_HINT: Final = "{} is ready; Ctrl-C stops it. In another terminal: hostagent ports {}, hostagent shell {}"


def show_json(event: Mapping[str, object]) -> None:
    """Print one event of a start as a line of JSON."""
    print_json(event, one_line=True)


def label(phase: object) -> str:
    """What a phase is called."""
    return _LABELS.get(str(phase), plain(phase))


def progress_words(event: Mapping[str, Any], seconds: float) -> str:
    """How far a step is: `downloading 12 of 340 MiB, 5.1 MiB/s`, or per cent where the unit is not bytes."""
    step, done, total = plain(event["step"]), event["done"], event["total"]
    if step.startswith("download"):
        of = f" of {size(total)}" if total else ""
        rate = f", {size(done / seconds)}/s" if seconds >= 1 else ""
        return f"{step} {size(done)}{of}{rate}"
    return f"{step} {100 * done // total} %" if total else step


class PlainDisplay:
    """One line for each finished phase, warning and notice."""

    def __init__(self, *, foreground: bool) -> None:
        self._foreground = foreground

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        return None

    def show(self, event: dict[str, object]) -> None:
        """Print what `event` says, if it says something final."""
        match event:
            case {"event": "phase", "state": "done"}:
                print_lines([phase_line(event)])
            case {"event": "phase", "state": "failed" | "stalled"}:
                print_lines(trouble_lines(event))
            case {"event": "notice", "message": message}:
                print_lines([plain(message)])
            case {"event": "warning", "message": message}:
                print_error(f"warning: {plain(message)}")
            case {"event": "ready", "name": name} if self._foreground:
                print_lines([_FOREGROUND_HINT.format(name, name, name)])


def phase_line(event: Mapping[str, Any]) -> str:
    """A finished phase with its time."""
    return f"{label(event['phase']):13}  {duration(event['seconds']):>7}  {plain(event['detail'])}".rstrip()


def trouble_lines(event: Mapping[str, Any]) -> list[str]:
    """A phase that failed or takes too long, with what is known about why."""
    said = "failed after" if event["state"] == "failed" else "still goes on after"
    # The command itself ends with the reason where a phase of its own failed.
    told = event["state"] == "failed" and event["phase"] not in AGENT_PHASES
    details = [] if told else [f"    {plain(line)}" for line in str(event["detail"]).splitlines()]
    return [f"{label(event['phase'])} {said} {duration(event['seconds'])}" + (":" if details else ""), *details]


@dataclass(frozen=True, slots=True)
class _Underway:
    """The phase that goes on now. Replaced as a whole, because the drawing thread reads it."""

    phase: object
    began: float
    step: Mapping[str, Any] | None = None
    step_began: float = 0.0


class LiveDisplay:
    """Finished phases as lines, and below them the one that goes on: a spinner, its time, how far its step is."""

    def __init__(self, *, foreground: bool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._foreground = foreground
        self._underway: _Underway | None = None
        self._spinner = Spinner("dots")
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, get_renderable=self._draw, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def show(self, event: dict[str, object]) -> None:
        """Draw what `event` says."""
        match event:
            case {"event": "phase", "state": "started", "phase": phase}:
                self._underway = _Underway(phase, time.monotonic())
            case {"event": "progress"}:
                self._advance(event)
            case {"event": "phase", "state": "done"}:
                self._underway = None
                self._print(f"✓ {phase_line(event)}", "green")
            case {"event": "phase", "state": "failed"}:
                self._underway = None
                self._print("✗ " + "\n".join(trouble_lines(event)), "red")
            case {"event": "phase", "state": "stalled"}:
                self._print("\n".join(trouble_lines(event)), "yellow")
            case {"event": "notice", "message": message}:
                self._print(plain(message), "")
            case {"event": "warning", "message": message}:
                self._print(f"warning: {plain(message)}", "yellow")
            case {"event": "ready", "name": name} if self._foreground:
                self._live.stop()
                self._print(_FOREGROUND_HINT.format(name, name, name), "")

    def _advance(self, event: dict[str, object]) -> None:
        underway = self._underway
        if underway is None:
            return
        same = underway.step is not None and underway.step["step"] == event["step"]
        began = underway.step_began if same else time.monotonic()
        self._underway = _Underway(underway.phase, underway.began, event, began)

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=True)

    def _draw(self) -> RenderableType:
        underway, now = self._underway, time.monotonic()
        if underway is None:
            return ""
        words = "" if underway.step is None else progress_words(underway.step, now - underway.step_began)
        text = f"{label(underway.phase):13}  {duration(now - underway.began):>7}  {words}"
        self._spinner.update(text=text.replace("[", "\\["))  # rich reads markup in a spinner's text
        return self._spinner
