"""Every branch of protocol/ is taken by its own tests, without luck: with few examples, and without the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(300)
def test_every_branch_of_the_protocol_is_taken(tmp_path: Path) -> None:
    environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "coverage")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    tests = run(
        "coverage", "run", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "few examples",
        "--ignore", "tests/protocol/test_connection_machine.py", "tests/protocol",
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout
    combined = run("coverage", "combine", "-q")
    assert combined.returncode == 0, combined.stdout
    report = run("coverage", "report", "--fail-under=100", "--show-missing", "--skip-covered")
    assert report.returncode == 0, report.stdout
