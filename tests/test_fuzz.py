"""The short form of `python -m tests.fuzz`: every parser takes some thousand inputs that nobody meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.codec import MESSAGES
from tests.fuzz import seeds
from tests.fuzz.__main__ import RESULTS, fuzz, table
from tests.fuzz.mutation import MAX_SIZE, Corpus
from tests.fuzz.targets import TARGETS, Target

CASES = 1_000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_leads_to_anything_but_a_result_or_the_documented_error(target: Target) -> None:
    result = fuzz(target, CASES, seed=20_261_123)
    assert result.findings == []
    assert result.cases == CASES
    assert result.outcomes > 3, "the inputs do not get past the first check"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_honest_peers_say_is_understood(target: Target) -> None:
    outcomes = [target.run(data) for data in target.seeds]
    assert any(not outcome.startswith("refused") for outcome in outcomes), outcomes


def test_every_message_is_among_the_seeds() -> None:
    assert {type(message) for message in (*seeds.FROM_GUEST, *seeds.FROM_HOST)} == set(MESSAGES.values())


def test_a_parser_with_a_bug_is_found() -> None:
    def parse(data: bytes) -> str:
        if data[1:2] == b"\0":
            raise IndexError("the bug")
        return f"begins with {data[:1]!r}"

    result = fuzz(Target("buggy", [b"some text"], parse), 5_000, seed=1)
    assert "IndexError: the bug" in result.findings[0]
    assert result.cases < 5_000, "it is left after some findings"


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: str) -> list[bytes]:
        corpus = Corpus([b"one", b"another"], seed)
        made = []
        for _ in range(200):
            made.append(corpus.next())
            corpus.learn(made[-1], str(len(made[-1])))
        return made

    assert inputs("1") == inputs("1") != inputs("2")
    assert len(set(inputs("1"))) > 150
    assert all(len(data) <= MAX_SIZE for data in inputs("1"))


def test_the_checked_in_table_names_every_parser() -> None:
    page = RESULTS.read_text()
    assert [target.name for target in TARGETS if f"| {target.name} |" not in page] == []
    assert "0 findings" in page


def test_the_command_says_what_it_did() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--cases", "50", "--target", "audit"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("| audit | 50 | ")
    assert table([], 1).startswith("# Fuzzing")
