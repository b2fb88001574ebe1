from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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


def test_bash_takes_words_folders_and_names_with_blanks(tmp_path: Path) -> None:
    home, files, programs = tmp_path / "home", tmp_path / "files", tmp_path / "programs"
    for folder in (home / "box", files / "folder", programs):
        folder.mkdir(parents=True)
    (home / "box" / "config.yaml").touch()
    (files / "my vm.yaml").touch()
    (programs / "hostagent").write_text(f"#!/bin/sh\nexec {sys.executable} -m hostagent\n")
    (programs / "hostagent").chmod(0o700)
    asked = """
        compopt() { echo compopt "$@"; }  # only a shell that is typed into has it
        COMP_WORDS=(hostagent up "$1") COMP_CWORD=2
        _hostagent_completion hostagent
        printf '%s\n' "${COMPREPLY[@]}"
    """
    script = run("completion", "bash", home=home).stdout.decode() + asked
    environment = {**os.environ, "HOSTAGENT_HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}

    def candidates(word: str) -> list[str]:
        words = ["bash", "-c", script, "bash", word]
        done = subprocess.run(words, env=environment, cwd=files, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert candidates("b") == ["box"]
    assert candidates("my") == ["my\\ vm.yaml"]
    assert candidates("fol") == ["compopt -o nospace", "folder/"]
