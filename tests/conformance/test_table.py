"""The table says what was tried, what held, and how often."""

from __future__ import annotations

from tests.conformance.bench import Bench, Family
from tests.conformance.case import Case, Outcome, describe, leaves
from tests.conformance.table import remarks, summary, table


async def _nothing(bench: Bench) -> None:
    """A case that holds."""


ENDS = Case("Ends", "an end | is an end", _nothing, frozenset())
LOAD = Case("Load", "a storm", _nothing, frozenset())


def _outcome(case: Case, forwarder: str, failure: str = "", *notes: str) -> Outcome:
    return Outcome(case, forwarder, Family.IPV4, 1.0, failure, notes)


def test_a_line_for_each_case_and_a_column_for_each_forwarder() -> None:
    outcomes = [_outcome(ENDS, "ours"), _outcome(LOAD, "ours", "EOFError"), _outcome(ENDS, "theirs")]
    assert table(outcomes).splitlines() == [
        "| case | ours, IPv4 | theirs, IPv4 |",
        "|---|---|---|",
        "| **Ends** | | |",
        "| an end \\| is an end | yes | yes |",
        "| **Load** | | |",
        "| a storm | **no** | - |",
    ]


def test_several_rounds_are_counted() -> None:
    outcomes = [
        _outcome(ENDS, "ours"),
        _outcome(ENDS, "ours", "OSError"),
        _outcome(LOAD, "ours"),
        _outcome(LOAD, "ours"),
    ]
    assert "| an end \\| is an end | **1 of 2** |" in table(outcomes)
    assert "| a storm | 2 of 2 |" in table(outcomes)
    assert summary(outcomes) == "- ours, IPv4: 3 of 4\n"


def test_remarks_name_failures_and_figures_only() -> None:
    outcomes = [
        _outcome(ENDS, "ours", "EOFError: 3 bytes"),
        _outcome(LOAD, "ours", "", "5 MB/s"),
        _outcome(LOAD, "ours"),
    ]
    assert remarks(outcomes).splitlines() == [
        "- **Ends, an end \\| is an end (ours, IPv4)**: EOFError: 3 bytes",
        "- Load, a storm (ours, IPv4): 5 MB/s",
    ]


def test_a_failure_in_a_task_is_described_by_its_own_words() -> None:
    error = ExceptionGroup("tasks", [ExceptionGroup("inner", [EOFError("the end came\nearly")]), OSError()])
    assert [describe(one) for one in leaves(error)] == ["EOFError: the end came", "OSError"]
