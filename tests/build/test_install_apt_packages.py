"""The package set-up, with a PATH on which dpkg-query, apt-get, sudo and id are ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build"
WANTED = re.findall(r"^[\w.+-]+", (BUILD / "apt-packages.txt").read_text(), re.MULTILINE)
PLAIN_TOOLS = ("sh", "sed", "cat", "env", "mkdir", "tail", "dirname")


class Machine:
    """A machine with a few programs on its PATH and a record of what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "build").mkdir()
        for name in ("install_apt_packages.sh", "apt-packages.txt"):
            shutil.copy(BUILD / name, folder / "build")
        for tool in PLAIN_TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.folder}/calls"\n{body}\n')
        (self.bin / name).chmod(0o755)

    def installed(self, *packages: str) -> None:
        """Only `packages` are; dpkg-query is asked with the package's name last."""
        cases = "|".join(packages) or "none"
        self.program("dpkg-query", f"eval last=\\${{$#}}\ncase $last in {cases}) printf installed;; *) exit 1;; esac")

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.folder / "build" / "install_apt_packages.sh"], env={"PATH": str(self.bin)},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # fmt: skip

    def calls(self, program: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] == program]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.program("apt-get", "exit 0")
    made.program("id", "echo 1000")
    made.installed("qemu-utils")
    return made


def test_nothing_to_do_is_silent(machine: Machine) -> None:
    machine.installed(*WANTED)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls("apt-get") == []


def test_root_installs_what_is_missing(machine: Machine) -> None:
    machine.program("id", "echo 0")
    done = machine.run()
    assert done.returncode == 0, done.stderr
    update, install = machine.calls("apt-get")
    assert update == "apt-get update"
    assert set(install.split()[2:]) == {"--yes", "--no-install-recommends", *WANTED} - {"qemu-utils"}


def test_a_user_installs_through_sudo(machine: Machine) -> None:
    machine.program("sudo", 'exec "$@"')
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert len(machine.calls("sudo")) == len(machine.calls("apt-get")) == 2


def test_a_user_without_sudo_is_told_the_command(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 1
    assert re.search(r"apt-get install .* mmdebstrap", done.stderr)
    assert "qemu-utils" not in done.stderr
    assert machine.calls("apt-get") == []


def test_a_failed_installation_shows_its_reason(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.program("apt-get", "echo 'E: no space left'; exit 100")
    done = machine.run()
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert ".cache/apt.log" in done.stderr


def test_another_distribution_is_told_what_it_needs(machine: Machine) -> None:
    (machine.bin / "apt-get").unlink()
    done = machine.run()
    assert done.returncode == 1
    assert "SKIP_PACKAGES=1" in done.stderr
    assert "mmdebstrap" in done.stderr
