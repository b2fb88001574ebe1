"""What is quick of the programs' cases. `python -m tests.programs` tries all of them and writes the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.programs.case import Case, Program
from tests.programs.catalogue import PROGRAMS
from tests.programs.guest import ProgramGuest

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(1500)]

QUICK = [(program, case) for program in PROGRAMS for case in program.cases if case.quick]


@pytest.fixture(scope="module")
def program(guest: ProgramGuest, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A program that runs; pytest keeps it for all of its cases, since they come one after the other."""
    wanted: Program = request.param
    with wanted.running(guest):
        yield wanted


@pytest.mark.parametrize(
    ("program", "case"),
    [pytest.param(program, case, id=f"{program.name}: {case.name}") for program, case in QUICK],
    indirect=["program"],
)
def test_program_can_be_used(guest: ProgramGuest, program: Program, case: Case) -> None:
    guest.notes.clear()
    case.run(guest)
    print(program.name, *guest.notes, sep="\n")


def test_no_port_had_to_be_found_by_the_slow_tick(guest: ProgramGuest) -> None:
    """After all of the above: the kernel's wake-ups have announced every change."""
    assert guest.vm.status()["guest_agent"]["counters"]["misses"] == 0
