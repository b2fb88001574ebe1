"""`python -m tests.fuzz --cases 1000000 --seed N` fuzzes every parser, and prints a table of what came of it.

`--target NAME` takes one of them (again: more of them), `--write` puts the table into tests/fuzz/RESULTS.md. The exit
code is 1 when there was a finding; each is printed with the input that led to it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutation import Corpus
from tests.fuzz.targets import TARGETS, Target

RESULTS = Path(__file__).with_name("RESULTS.md")

SLOW = 2.0
"""Seconds of CPU time that no input may take. The usual one takes some microseconds."""

MOST_FINDINGS = 10
"""Findings of one target after which it is left."""


@dataclass(slots=True)
class Result:
    """What came of one target."""

    target: Target
    cases: int = 0
    refused: int = 0
    outcomes: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def row(self) -> str:
        """A line of the table."""
        cells = (
            *(self.target.name, f"{self.cases:,}", f"{self.refused:,}", self.outcomes),
            *(f"{1_000 * self.slowest:.0f} ms", f"{self.seconds:.0f} s", len(self.findings)),
        )
        return f"| {' | '.join(map(str, cells))} |"


def fuzz(target: Target, cases: int, seed: int) -> Result:
    """Give `target` so many inputs."""
    result, corpus, began = Result(target), Corpus(target.seeds, f"{seed} {target.name}"), time.thread_time()
    for _ in range(cases):
        data = corpus.next()
        before = time.thread_time()
        try:
            outcome = target.run(data)
        except Exception:
            outcome = "finding"
            result.findings.append(f"{target.name}: {data!r}\n{traceback.format_exc()}")
        taken = time.thread_time() - before
        if taken > SLOW:
            result.findings.append(f"{target.name}: {data!r}\ntook {taken:.1f} s")
        result.cases += 1
        result.refused += outcome.startswith("refused")
        result.slowest = max(result.slowest, taken)
        corpus.learn(data, outcome)
        if len(result.findings) >= MOST_FINDINGS:
            break
    result.outcomes, result.seconds = corpus.outcomes, time.thread_time() - began
    return result


def table(results: Sequence[Result], seed: int) -> str:
    """The results as a page."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    cases, findings = sum(result.cases for result in results), sum(len(result.findings) for result in results)
    command = f"python -m tests.fuzz --cases {cases} --seed {seed} --write"
    return f"""# Fuzzing

`{command}`: {cases:,} inputs, {findings} findings, at most {memory} MiB.

A finding is anything but a result or the documented error, an input that takes more than {SLOW:.0f} s of CPU time, and
a result that breaks what targets.py asserts of it. Outcomes are the kinds of results and of errors that were seen.

| parser | inputs | refused | outcomes | slowest | CPU | findings |
|---|---|---|---|---|---|---|
""" + "".join(f"{result.row()}\n" for result in results)


def main() -> int:
    """Fuzz, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="inputs in total")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    targets = [target for target in TARGETS if not options.target or target.name in options.target]
    share = -(-options.cases // len(targets))
    results: list[Result] = []
    for target in targets:
        result = fuzz(target, min(share, options.cases - sum(done.cases for done in results)), options.seed)
        results.append(result)
        print(result.row(), flush=True)
        for finding in result.findings:
            print(finding, flush=True)
    if options.write:
        RESULTS.write_text(table(results, options.seed), encoding="utf-8")
    return 1 if any(result.findings for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
