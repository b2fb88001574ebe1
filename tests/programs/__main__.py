"""Tries real programs and writes a table: `python -m tests.programs [--only WORDS] [--quick] [--output FILE]`."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.programs.case import Case, Outcome, Program, attempt
from tests.programs.catalogue import PROGRAMS
from tests.programs.guest import ProgramGuest, programs_guest
from tests.programs.table import summary, table

RESULTS = Path(__file__).with_name("RESULTS.md")
START, STOP = "set up and started: its ports come", "stopped: its ports go"


def try_program(program: Program, cases: list[Case], guest: ProgramGuest) -> Iterator[Outcome]:
    """Start, try and stop one program; what does not start is not tried."""
    running = program.running(guest)
    yield (started := attempt(program.name, Case(START, lambda _: running.__enter__(), quick=True), guest))
    if started.failure:
        return
    for case in cases:
        yield attempt(program.name, case, guest)
    yield attempt(program.name, Case(STOP, lambda _: _stop(running), quick=True), guest)


def _stop(running: AbstractContextManager[None]) -> None:
    running.__exit__(None, None, None)


def document(outcomes: list[Outcome], command: str, load: tuple[float, float, float], boot: float) -> str:
    """The whole Markdown file."""
    today = dt.datetime.now(tz=dt.UTC).date()
    busy = ", ".join(f"{value:.1f}" for value in load)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return f"""# Real programs

Written by `{command}` on {today}: {platform.system()} {platform.release()}, {os.cpu_count()} CPUs,
{qemu.splitlines()[0]}, Debian 12 guest with 2 CPUs under software emulation (TCG), Python {platform.python_version()}.
Load average when it began: {busy}. The guest was up after {boot:.0f} s. The programs are those of the distribution, the
clients run on the host. `tests` in the last column: `pytest` tries this too; `command`: only this command does.

{summary(outcomes)}

{table(outcomes)}"""


def main() -> int:
    """Try and write; exit status 1 when something did not work."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description="Try real programs in the guest.")
    parser.add_argument("--only", default="", metavar="WORDS", help="only cases whose program or name contains this")
    parser.add_argument("--quick", action="store_true", help="only what the tests try as well")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes (default: %(default)s)")
    arguments = parser.parse_args()
    load = os.getloadavg()
    command = shlex.join(["python", "-m", "tests.programs", *sys.argv[1:]])
    outcomes: list[Outcome] = []
    with programs_guest() as guest:
        boot = sum(guest.vm.phases[phase] for phase in ("qemu", "hello", "ports"))
        for program in PROGRAMS:
            cases = [
                case
                for case in program.cases
                if (case.quick or not arguments.quick)
                and arguments.only.casefold() in f"{program.name}, {case.name}".casefold()
            ]
            for outcome in try_program(program, cases, guest) if cases else ():
                # The table is written each time, so that a run that is cut short leaves what it found.
                outcomes.append(outcome)
                arguments.output.write_text(document(outcomes, command, load, boot), encoding="utf-8")
                print(f"{outcome.seconds:6.1f} s  {outcome.program}: {outcome.case}:"
                      f" {outcome.failure or 'yes'} {'; '.join(outcome.notes)}", flush=True)  # fmt: skip
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
