"""The checked-in description of the API is what the code says, and does not lose anything by accident."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def describe_api(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "build" / "describe_api.py", *arguments], capture_output=True, text=True, check=False
    )


def test_the_checked_in_description_is_current() -> None:
    done = describe_api(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_one_is_named_and_nothing_is_dropped_by_accident(tmp_path: Path) -> None:
    for folder in ("build", "hostagent", "protocol"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "API.md", tmp_path)
    shapes = tmp_path / "hostagent" / "api_shapes.py"
    text = shapes.read_text()
    shapes.write_text(text.replace("    connections_refused: int\n", "    connections_reset: int\n"))
    stale = describe_api(tmp_path, "--check")
    assert stale.returncode == 1
    assert "openapi.json and API.md are stale" in stale.stderr
    refused = describe_api(tmp_path)
    assert refused.returncode == 1
    assert "TrafficShape.connections_refused" in refused.stderr
    assert describe_api(tmp_path, "--drop").returncode == 0
    assert describe_api(tmp_path, "--check").returncode == 0
    description = json.loads((tmp_path / "hostagent" / "openapi.json").read_bytes())
    assert "connections_reset" in description["components"]["schemas"]["TrafficShape"]["properties"]
