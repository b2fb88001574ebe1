"""The table of results, and what becomes of a case that fails."""

from __future__ import annotations

from typing import cast

import pytest

from tests.programs.case import Case, Program, attempt
from tests.programs.guest import ProgramGuest
from tests.programs.table import summary, table

PROGRAM = Program("a|b", lambda _: pytest.fail("not started"))


class NotedGuest:
    """All of a guest that a case without a program needs."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@PROGRAM.case("works")
def works(guest: ProgramGuest) -> None:
    guest.note("12 ms")


@PROGRAM.case("is wrong", quick=False)
def wrong(guest: ProgramGuest) -> None:
    guest.note("before it")
    assert guest.notes == [], "first line\nsecond <line>"


@PROGRAM.case("raises nothing")
def silent(_: ProgramGuest) -> None:
    with pytest.raises(OSError):
        pass


def test_a_failure_is_told_with_its_place_and_all_others_go_on() -> None:
    guest = cast("ProgramGuest", NotedGuest())
    outcomes = [attempt(PROGRAM.name, case, guest) for case in PROGRAM.cases]
    assert [bool(outcome.failure) for outcome in outcomes] == [False, True, True]
    lines = table(outcomes).splitlines()
    assert lines[2:4] == ["| **a\\|b** | | | |", "| works | yes; 12 ms | 0.0 | tests |"]
    assert lines[4].startswith(
        "| is wrong | **no**: AssertionError: first line / second &lt;line> / assert ['before it'] == []"
    )
    assert lines[4].endswith(" in wrong | 0.0 | command |")
    assert "DID NOT RAISE" in lines[5]
    assert summary(outcomes) == "1 of 3 worked, in 0 s, of which 0 s are the tests'."


def test_a_case_of_another_kind_of_mistake_is_not_hidden() -> None:
    def stopped(_: ProgramGuest) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("any", Case("is stopped by hand", stopped, quick=True), cast("ProgramGuest", NotedGuest()))
