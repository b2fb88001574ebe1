"""The gates: that the real frozen agent passes each of them, and that each of them can fail."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import msgpack
import pytest
import trio

from hostagent import paths
from hostagent.guest_payload import GuestPayload, obtain_guest_agent
from tests.build.scripts import load

check_frozen = load("check_frozen")


@pytest.fixture
async def payload() -> GuestPayload:
    """The frozen agent of this checkout; frozen now when it is not in the cache."""
    return await obtain_guest_agent(platform.machine(), paths.cache(), print)


@pytest.mark.timeout(600)  # the first run installs PyInstaller and freezes
@pytest.mark.parametrize("gate", ["self-test", "size", "glibc", "modules", "start"])
async def test_the_frozen_agent_passes(payload: GuestPayload, gate: str) -> None:
    verdict = check_frozen.gates(payload.directory)[gate]()
    assert verdict.passed, verdict.text


@pytest.mark.timeout(600)
async def test_the_frozen_agent_says_the_version_that_the_host_compares(payload: GuestPayload) -> None:
    done = await trio.run_process([payload.directory / "guestagent", "--version"], capture_stdout=True)
    assert done.stdout.decode() == payload.version + "\n"


@pytest.mark.timeout(600)
async def test_the_frozen_agent_is_too_much_for_tighter_gates(payload: GuestPayload) -> None:
    executable = payload.directory / "guestagent"
    assert not check_frozen.check_size(payload.directory, max_megabytes=1).passed
    assert not check_frozen.check_glibc(payload.directory, "2.2").passed
    assert not check_frozen.check_start(executable, max_ms=1).passed
    verdict = check_frozen.check_modules(executable, frozenset({"trio", "msgpack", "zipfile"}))
    assert not verdict.passed
    assert "msgpack, trio" in verdict.text


def test_size_counts_every_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(1_500_000))
    (tmp_path / "link").symlink_to("deep/file")
    assert check_frozen.check_size(tmp_path, max_megabytes=1.6).passed
    assert not check_frozen.check_size(tmp_path, max_megabytes=1.4).passed


def test_glibc_is_the_highest_version_that_an_elf_file_insists_on(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"GLIBC_9.99")
    assert check_frozen.glibc_needed(tmp_path) == ((0, 0), "nothing")
    (tmp_path / "library.so").write_bytes(Path(sys.modules[msgpack.Packer.__module__].__file__ or "").read_bytes())
    assert check_frozen.glibc_needed(tmp_path) == ((2, 14), "library.so")
    assert check_frozen.check_glibc(tmp_path, "2.14").passed
    assert not check_frozen.check_glibc(tmp_path, "2.13").passed


def test_a_self_test_that_fails_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "guestagent"
    program.write_text("#!/bin/sh\necho 'no trio here' >&2\nexit 3\n")
    program.chmod(0o755)
    verdict = check_frozen.check_self_test(program)
    assert not verdict.passed
    assert "exit status 3: no trio here" in verdict.text
