"""The run's own rules, tried on a small run of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import pytest

@pytest.mark.full_guest
def test_full(): pass

@pytest.mark.tiny_guest
def test_tiny(): pass

def test_quick(): pass
"""

SKIPPING = {
    "by call": "import pytest\ndef test_it(): pytest.skip('no wish')\n",
    "by mark": "import pytest\n@pytest.mark.skip\ndef test_it(): pass\n",
    "whole module": "import pytest\npytest.skip('no wish', allow_module_level=True)\n",
}


def run(folder: Path, content: str, *options: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """pytest's verdict on one test module under our conftest.py."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_sample.py").write_text(content)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n tiny_guest\n full_guest\n")
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
            *options, str(folder),
        ],
        cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_quick_tests_come_first(tmp_path: Path) -> None:
    done = run(tmp_path, SAMPLE)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"::(test_\w+) PASSED", done.stdout) == ["test_quick", "test_tiny", "test_full"]


@pytest.mark.parametrize("way", SKIPPING)
def test_a_test_that_skips_itself_has_failed(tmp_path: Path, way: str) -> None:
    done = run(tmp_path, SKIPPING[way])
    assert done.returncode != 0
    assert "skipped itself" in done.stdout


@pytest.mark.parametrize("options", [(), ("--numprocesses", "2")], ids=["alone", "workers"])
def test_a_missing_program_ends_the_run_with_the_way_out(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "bin").mkdir()
    done = run(tmp_path, SAMPLE, *options, path=str(tmp_path / "bin"))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "qemu-system-x86_64" in done.stderr
    assert "make -C build test" in done.stderr


def test_workers_take_whole_files_and_the_slowest_first(tmp_path: Path) -> None:
    done = run(tmp_path, SAMPLE, "--numprocesses", "2")
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"\[(gw\d)\] .* PASSED .*::(test_\w+)", done.stdout)
    assert [name for _, name in passed] == ["test_full", "test_tiny", "test_quick"]
    assert len({worker for worker, _ in passed}) == 1
