"""The results as Markdown: one line for each case."""

from __future__ import annotations

from collections.abc import Sequence

from tests.programs.case import Outcome


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(outcome: Outcome) -> str:
    """One line of the table."""
    result = f"**no**: {outcome.failure}" if outcome.failure else "; ".join(("yes", *outcome.notes))
    where = "tests" if outcome.quick else "command"
    return f"| {_escaped(outcome.case)} | {_escaped(result)} | {outcome.seconds:.1f} | {where} |"


def table(outcomes: Sequence[Outcome]) -> str:
    """The table, with a line for each program above its cases."""
    lines = ["| what was tried | result | seconds | in |", "|---|---|---|---|"]
    program = ""
    for outcome in outcomes:
        if outcome.program != program:
            program = outcome.program
            lines.append(f"| **{_escaped(program)}** | | | |")
        lines.append(row(outcome))
    return "\n".join(lines) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How much worked, and what it took."""
    worked = sum(1 for one in outcomes if not one.failure)
    quick = sum(one.seconds for one in outcomes if one.quick)
    every = sum(one.seconds for one in outcomes)
    return f"{worked} of {len(outcomes)} worked, in {every:.0f} s, of which {quick:.0f} s are the tests'."
