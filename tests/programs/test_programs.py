"""What is quick of the programs' cases. `python -m tests.programs` tries all of them and writes the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.programs.case import Case, Program
from tests.programs.catalogue import PROGRAMS
from tests.programs.guest import ProgramGuest

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(1500)]

QUICK = [(program, case) for program in PROGRAMS for case in program.cases if case.quick]


class Stage:
    """The guest with one program at a time, which runs for as long as its cases come one after the other."""

    def __init__(self, guest: ProgramGuest) -> None:
        self._guest = guest
        self._program: Program | None = None
        self._running = ExitStack()

    def enter(self, program: Program) -> None:
        """Have `program` run."""
        if program is not self._program:
            self.leave()
            self._running.enter_context(program.running(self._guest))
            self._program = program

    def leave(self) -> None:
        """Stop the program that runs."""
        self._program = None
        self._running.close()


@pytest.fixture(scope="module")
def stage(guest: ProgramGuest) -> Iterator[Stage]:
    """Left empty at the end. A fixture with the program as its parameter would be made anew for each case."""
    stage = Stage(guest)
    yield stage
    stage.leave()


@pytest.mark.parametrize(
    ("program", "case"),
    [pytest.param(program, case, id=f"{program.name}: {case.name}") for program, case in QUICK],
)
def test_program_can_be_used(guest: ProgramGuest, stage: Stage, program: Program, case: Case) -> None:
    stage.enter(program)
    guest.notes.clear()
    case.run(guest)
    print(program.name, *guest.notes, sep="\n")


def test_no_port_had_to_be_found_by_the_slow_tick(guest: ProgramGuest) -> None:
    """After all of the above: the kernel's wake-ups have announced every change."""
    assert guest.vm.status()["guest_agent"]["counters"]["misses"] == 0
