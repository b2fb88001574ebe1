from __future__ import annotations

import errno
import io
import json
import os
import sys

import pytest

from hostagent import terminal_output
from hostagent.errors import UserError
from hostagent.terminal_output import OutputClosedError


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard output a terminal; not a fixture, because pytest takes the output back after those."""
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_has_width_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert terminal_output.width() == 77
    assert terminal_output.colour()
    assert terminal_output.can_redraw()


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_user_may_want_no_colours(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv(variable, value)
    assert not terminal_output.colour()


def test_a_terminal_that_can_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.delenv("TERM")
    assert not terminal_output.can_redraw()


def test_elsewhere_there_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_output.width() is None
    assert not terminal_output.colour()
    assert not terminal_output.can_redraw()


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    terminal_output.print_json({"text": "\x1b\u202e"}, one_line=True)
    out = capsys.readouterr().out
    assert out == '{"text":"\\u001b\\u202e"}\n'
    assert json.loads(out) == {"text": "\x1b\u202e"}


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EPIPE, OutputClosedError), (errno.ENOSPC, UserError), (errno.EIO, UserError)]
)
def test_what_a_failed_write_means(number: int, expected: type[Exception]) -> None:
    error = terminal_output.output_error(OSError(number, os.strerror(number)))
    assert isinstance(error, expected)
    if isinstance(error, UserError):
        assert os.strerror(number) in error.message
