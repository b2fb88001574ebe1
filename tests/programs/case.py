"""A program that is tried, and its cases: what was tried in words, and how."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.programs.guest import ProgramGuest

Try = Callable[[ProgramGuest], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that a user does with a program. `run` returns when it worked."""

    name: str
    run: Try
    quick: bool
    """Whether the tests have it too, and not the command alone."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the distribution, in one configuration."""

    name: str
    running: Callable[[ProgramGuest], AbstractContextManager[None]]
    """Set up and started with the block, stopped after it; its ports are seen to come and to go."""
    cases: list[Case] = field(default_factory=list)

    def case(self, name: str, *, quick: bool = True) -> Callable[[Try], Try]:
        """Makes a case of a function."""

        def add(run: Try) -> Try:
            self.cases.append(Case(name, run, quick))
            return run

        return add


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case went."""

    program: str
    case: str
    seconds: float
    failure: str
    """What was seen instead; empty when it worked."""
    notes: tuple[str, ...]
    quick: bool


def attempt(program: str, case: Case, guest: ProgramGuest) -> Outcome:
    """Try one case."""
    began = time.monotonic()
    failure = ""
    guest.notes.clear()
    try:
        case.run(guest)
    # Whatever a client library makes of a broken forward; and what was expected to be raised and was not.
    except (Exception, pytest.fail.Exception) as error:
        failure = describe(error)
    return Outcome(program, case.name, time.monotonic() - began, failure, tuple(guest.notes), case.quick)


def describe(error: BaseException) -> str:
    """What went wrong, and at which line of the case."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parent == Path(__file__).parent:
            where = f" at `{frame.line}` in {frame.name}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(line.strip() for line in lines[:40])}{where}"
