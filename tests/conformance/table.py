"""The results as Markdown: one line for each case, one column for each forwarder and address family."""

from __future__ import annotations

from collections.abc import Sequence

from tests.conformance.case import Case, Outcome


def _columns(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((outcome.forwarder, outcome.family.value) for outcome in outcomes))


def _cell(outcomes: Sequence[Outcome], case: Case, column: tuple[str, str]) -> str:
    found = [one for one in outcomes if one.case is case and (one.forwarder, one.family.value) == column]
    if not found:
        return "-"
    failed = sum(1 for one in found if one.failure)
    if len(found) == 1:
        return "**no**" if failed else "yes"
    return f"**{len(found) - failed} of {len(found)}**" if failed else f"{len(found)} of {len(found)}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def table(outcomes: Sequence[Outcome]) -> str:
    """The table, in the order in which the cases ran; a case that was tried more than once says how often it held."""
    columns = _columns(outcomes)
    lines = [
        "| case | " + " | ".join(f"{name}, {family}" for name, family in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    group = ""
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        if case.group != group:
            group = case.group
            lines.append(f"| **{group}** |" + " |" * len(columns))
        cells = [_cell(outcomes, case, column) for column in columns]
        lines.append(f"| {_escaped(case.name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def remarks(outcomes: Sequence[Outcome]) -> str:
    """What was seen instead, and what was measured on the way."""
    lines = []
    for outcome in outcomes:
        where = f"{outcome.case.group}, {outcome.case.name} ({outcome.forwarder}, {outcome.family})"
        if outcome.failure:
            lines.append(f"- **{_escaped(where)}**: {_escaped(outcome.failure)}")
        elif outcome.notes:
            lines.append(f"- {_escaped(where)}: {_escaped('; '.join(outcome.notes))}")
    return "\n".join(lines) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line for each forwarder and family: how much held."""
    lines = []
    for name, family in _columns(outcomes):
        tried = [one for one in outcomes if (one.forwarder, one.family.value) == (name, family)]
        held = sum(1 for one in tried if not one.failure)
        lines.append(f"- {name}, {family}: {held} of {len(tried)}")
    return "\n".join(lines) + "\n"
