from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostagent import doctor
from hostagent.doctor import CheckState


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOSTAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOSTAGENT_ACCELERATOR", "tcg")  # the probe has its own tests


def test_a_host_that_runs_these_tests_has_no_problem(tmp_path: Path) -> None:
    checks = doctor.examine()
    assert [check for check in checks if check.state is CheckState.PROBLEM] == []
    assert len({check.name for check in checks}) == len(checks)
    assert list(tmp_path.iterdir()) == []


def test_every_finding_that_is_not_fine_has_a_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOSTAGENT_ACCELERATOR", "warp")
    monkeypatch.setenv("HOSTAGENT_HOME", "/proc/" + "x" * 120)
    monkeypatch.setenv("HOSTAGENT_CACHE", "/proc/cache")
    monkeypatch.setattr(doctor, "_LEAST_DISK", 1 << 80)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(doctor, "_SUBORDINATE_IDS", (Path("/nowhere"),))
    monkeypatch.setattr(doctor, "_UNPRIVILEGED_START", Path("/nowhere"))
    checks = doctor.examine()
    assert {check.name: check.state for check in checks} == {
        "QEMU": "problem",
        "qemu-img": "problem",
        "image builder": "warning",
        "accelerator": "problem",
        "home": "problem",
        "cache": "problem",
        "disk space": "problem",
        "socket paths": "problem",
        "user namespaces": "warning",
        "ports below 1024": "warning",
    }
    assert all(check.next_step for check in checks)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_folder("home", tmp_path / "file" / "below", "X").state is CheckState.PROBLEM


def test_a_folder_that_the_rights_allow_and_the_file_system_refuses() -> None:
    check = doctor.check_folder("cache", Path("/proc/no-such"), "HOSTAGENT_CACHE")
    assert (check.state, check.next_step) == (CheckState.PROBLEM, "set HOSTAGENT_CACHE to a folder of yours")
    assert check.reason.startswith("/proc/no-such cannot be written to, because of /proc: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann:100000:65536\n", True),
        ("1000:100000:65536\n", True),
        ("bob:100000:65536\nann:1:70000", True),
        ("ann:100000:1000\n", False),
        ("annika:100000:65536\n", False),
        ("ann:100000:many\nann\n::\n", False),
        ("", False),
    ],
)
def test_ranges_of_subordinate_ids(tmp_path: Path, text: str, expected: bool) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    assert doctor.has_range(file, "ann", 1000) is expected


@pytest.mark.parametrize(("first", "state"), [("0", "ok"), ("80", "ok"), ("1024", "warning"), ("?", "warning")])
def test_privileged_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, state: str) -> None:
    file = tmp_path / "start"
    file.write_text(first + "\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "_UNPRIVILEGED_START", file)
    assert doctor.check_privileged_ports().state == state
