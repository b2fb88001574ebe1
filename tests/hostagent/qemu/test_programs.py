"""Where QEMU is, and how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.qemu.programs import find_program


def put(folder: Path, name: str) -> Path:
    program = folder / name
    program.touch(0o755)
    return program


@pytest.fixture
def only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_it_is_found_on_the_path(only_folder: Path) -> None:
    program = put(only_folder, "qemu-img")
    assert find_program("qemu-img") == program


@pytest.mark.parametrize(
    ("installer", "platform", "hint"),
    [
        ("apt-get", "linux", "sudo apt-get install qemu-system-arm"),
        ("dnf", "linux", "sudo dnf install qemu-system-aarch64-core"),
        (None, "linux", "qemu-system-arm on Debian and Ubuntu, qemu-system-aarch64-core on Fedora"),
        (None, "darwin", "brew install qemu"),
    ],
)
def test_the_hint_fits_the_distribution(
    installer: str | None, platform: str, hint: str, only_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    if installer:
        put(only_folder, installer)
    with pytest.raises(UserError, match="qemu-system-aarch64 is not installed") as caught:
        find_program("qemu-system-aarch64")
    assert hint in caught.value.hint
