from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.command_line import run


def test_a_valid_file(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("images: [{build: debian-12}]\nmounts: [{location: /x}]\n")
    done = run("validate", str(file), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"box.yaml is valid\n")
    assert done.stderr.startswith(f"warning: {file}:2:1: mounts".encode())


def test_mistakes_begin_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("cpu: 2\nmemory: lots\n")
    done = run("validate", str(file), home=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"{file}:1:1: ")
    assert any(line.startswith(f"{file}:2:9: ") for line in lines)
    assert lines[-1].startswith("hint: ")


def test_the_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(run("schema", home=tmp_path).stdout)["title"] == "hostagent config.yaml"


def test_doctor_fails_with_a_problem_and_says_what_to_do(tmp_path: Path) -> None:
    long_home = tmp_path / ("x" * 120)
    done = run("doctor", "--json", home=long_home, env={"HOSTAGENT_ACCELERATOR": "tcg"})
    states = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert states["socket paths"]["state"] == "problem"
    assert "HOSTAGENT_HOME" in states["socket paths"]["next_step"]
    assert done.returncode == 1
    assert b"1 of 10 checks found a problem" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_for_our_command(tmp_path: Path, shell: str) -> None:
    script = run("completion", shell, home=tmp_path).stdout
    assert b"_HOSTAGENT_COMPLETE=" in script
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n"], input=script, check=True)
