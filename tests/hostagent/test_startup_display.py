from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from hostagent import startup_display
from hostagent.startup_display import PlainDisplay, phase_line, progress_words, trouble_lines
from tests.fakes.command_line import on_terminal

EVENTS: list[dict[str, Any]] = [
    {"event": "phase", "phase": "validate", "state": "started", "seconds": 0.0, "detail": ""},
    {"event": "phase", "phase": "validate", "state": "done", "seconds": 0.02, "detail": "box"},
    {"event": "warning", "message": "box.yaml:3:1: mounts: not acted on \x1b[2J"},
    {"event": "phase", "phase": "image", "state": "started", "seconds": 0.0, "detail": ""},
    {"event": "progress", "phase": "image", "step": "downloading", "done": 1 << 20, "total": 10 << 20},
    {"event": "phase", "phase": "image", "state": "done", "seconds": 2.0, "detail": "debian-12 [cached]"},
    {"event": "notice", "message": "taking over"},
    {"event": "phase", "phase": "hello", "state": "stalled", "seconds": 90.0, "detail": "line 1\nline \x1b[31m2"},
    {"event": "phase", "phase": "hello", "state": "failed", "seconds": 100.0, "detail": "QEMU ended"},
    {"event": "ready", "name": "box"},
]


def test_elsewhere_a_line_for_each_finished_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay(foreground=False) as display:
        for event in EVENTS:
            display.show(event)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "configuration    0.0 s  box",
        "image            2.0 s  debian-12 [cached]",
        "taking over",
        "guest boots still goes on after 90 s:",
        "    line 1",
        "    line 2",
        "guest boots failed after 100 s:",
        "    QEMU ended",
    ]
    assert printed.err == "warning: box.yaml:3:1: mounts: not acted on \n"


def test_what_the_command_ends_with_is_not_said_twice() -> None:
    event = {"phase": "image", "state": "failed", "seconds": 2.0, "detail": "no image can be reached"}
    assert trouble_lines(event) == ["image failed after 2.0 s"]


def test_in_the_foreground_the_next_steps_come_when_it_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay(foreground=True) as display:
        display.show(EVENTS[-1])
    assert "hostagent shell box" in capsys.readouterr().out


def test_json_is_the_events_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for event in EVENTS:
        startup_display.show_json(event)
    out = capsys.readouterr().out
    assert [json.loads(line) for line in out.splitlines()] == EVENTS
    assert out.isascii()


@pytest.mark.parametrize(
    ("event", "seconds", "words"),
    [
        ({"step": "downloading", "done": 12 << 20, "total": 340 << 20}, 4.0, "downloading 12 MiB of 340 MiB, 3 MiB/s"),
        ({"step": "downloading", "done": 12 << 20, "total": None}, 0.5, "downloading 12 MiB"),
        ({"step": "installing packages", "done": 30, "total": 120}, 4.0, "installing packages 25 %"),
        ({"step": "preparing", "done": 0, "total": None}, 4.0, "preparing"),
        ({"step": "empty", "done": 0, "total": 0}, 4.0, "empty"),
    ],
)
def test_progress_in_words(event: dict[str, Any], seconds: float, words: str) -> None:
    assert progress_words(event, seconds) == words


def test_nothing_of_an_event_steers_the_terminal() -> None:
    hostile = "\x1b]0;x\x07\x9b2J"
    event = {"phase": hostile, "state": "failed", "seconds": 1.0, "detail": f"{hostile}\n{hostile}"}
    assert all(line.isprintable() for line in [phase_line(event), *trouble_lines(event)])
    assert progress_words({"step": hostile, "done": 0, "total": None}, 0.0).isprintable()


SHOW = """
import sys, json
from pathlib import Path
from hostagent.startup_display import LiveDisplay
with LiveDisplay(foreground=False) as display:
    for event in json.loads(sys.argv[1]):
        display.show(event)
        if event["event"] == "progress":
            input()
"""


def test_on_a_terminal_the_current_step_is_drawn_and_goes_away(tmp_path: Any) -> None:
    with on_terminal(sys.executable, "-c", SHOW, json.dumps(EVENTS), home=tmp_path) as terminal:
        shown = terminal.expect("✓ configuration".encode())
        shown += terminal.expect(b"downloading 1 MiB of 10 MiB")
        terminal.type(b"\n")
        shown += terminal.expect("✓ image            2.0 s  debian-12 [cached]".encode())
        shown += terminal.expect("✗ guest boots failed after 100 s".encode())
        shown += terminal.expect(b"\x1b[?25h")  # the cursor is shown again
        assert terminal.end() == 0
    assert b"\x1b[2J" not in shown
