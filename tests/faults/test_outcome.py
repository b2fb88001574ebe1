"""The table says what was found."""

from __future__ import annotations

from collections import Counter

from tests.faults.outcome import Outcome, document, percentile, row


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 1.0) == 3.0
    assert percentile([5.0], 0.5) == 5.0


def test_a_row_counts_what_came_late_and_what_was_wrong() -> None:
    outcome = Outcome("cut", 2.0, [0.1, 2.5, 0.3], ["a stale listener"])
    assert row(outcome) == "| cut | 3 | 0.30 | 2.50 | 2 | 1 | **1** |"
    assert row(Outcome("never done", 2.0)) == "| never done | 0 | - | - | 2 | 0 | 0 |"


def test_the_document_names_the_command_each_fault_and_each_problem() -> None:
    outcomes = [
        Outcome("cut", 2.0, [0.1], [], Counter(exchanges=1_200, downloaded=3_000_000)),
        Outcome("kill", 2.0, [0.1], ["a stale listener"], Counter(exchanges=34)),
    ]
    text = document(outcomes, "python -m tests.faults --seed 7", (1.0, 2.0, 3.0))
    for part in ("--seed 7", "| cut |", "- kill: a stale listener", "1,234 exchanges", "3 MB to the host"):
        assert part in text
