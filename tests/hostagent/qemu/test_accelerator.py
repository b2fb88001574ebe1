"""What executes a guest here: probed with the real QEMU, and with programs that behave like broken ones."""

from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path

import pytest
import trio

from hostagent.errors import UserError
from hostagent.qemu import accelerator as accelerator_module
from hostagent.qemu.accelerator import (
    Accelerator,
    candidate,
    choose_accelerator,
    forced_accelerator,
    probe_arguments,
    probe_firmware,
    remember_failure,
    why_unusable,
)
from hostagent.qemu.command_line import AcceleratorName, Architecture, processor_arguments
from hostagent.qemu.programs import find_program

X86_64, AARCH64 = Architecture.X86_64, Architecture.AARCH64
KVM, HVF, TCG = AcceleratorName.KVM, AcceleratorName.HVF, AcceleratorName.TCG


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOSTAGENT_ACCELERATOR", raising=False)


@pytest.fixture
def linux_on_x86_64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has a /dev/kvm to which we have the rights."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator_module, "_KVM", device)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


class FakeQemu:
    """A qemu-system-x86_64 on the PATH that runs a shell script and counts its runs."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qemu-system-x86_64"
        self._runs = folder / "runs"

    def does(self, script: str) -> None:
        self.path.write_text(f'#!/bin/sh\necho "$@" >> "{self._runs}"\n{script}\n')
        self.path.chmod(0o755)

    @property
    def runs(self) -> list[str]:
        return self._runs.read_text().splitlines() if self._runs.exists() else []


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return FakeQemu(folder)


async def test_the_real_qemu_executes_the_probe() -> None:
    assert await why_unusable(find_program("qemu-system-x86_64"), X86_64, TCG) == ""


async def test_a_guest_that_hangs_is_told_from_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real QEMU with a guest that does nothing: what a broken accelerator looks like."""
    idle = bytes(65520) + bytes.fromhex("f4ebfd").ljust(16, b"\0")
    monkeypatch.setattr(accelerator_module, "probe_firmware", lambda _: idle)
    monkeypatch.setattr(accelerator_module, "PROBE_BOUND", 0.3)
    with trio.fail_after(5):
        assert await why_unusable(find_program("qemu-system-x86_64"), X86_64, TCG) == "a guest hung for 0.3 s"


async def test_a_guest_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real QEMU with a guest whose first page table says "not present": a triple fault."""
    faulting = probe_firmware(X86_64).replace(bytes.fromhex("03200000"), bytes.fromhex("00200000"), 1)
    monkeypatch.setattr(accelerator_module, "probe_firmware", lambda _: faulting)
    found = await why_unusable(find_program("qemu-system-x86_64"), X86_64, TCG)
    assert found == "the guest crashed, and QEMU ended with status 0"


def test_the_choice_by_host() -> None:
    assert candidate(X86_64, "linux", "x86_64") == (KVM, "")
    assert candidate(AARCH64, "linux", "aarch64") == (KVM, "")
    assert candidate(AARCH64, "darwin", "arm64") == (HVF, "")
    assert candidate(X86_64, "linux", "aarch64") == (TCG, "this host is aarch64 and cannot execute x86_64 itself")
    assert candidate(X86_64, "freebsd14", "amd64") == (TCG, "no accelerator is known for freebsd14")


@pytest.mark.parametrize("architecture", Architecture)
@pytest.mark.parametrize("name", AcceleratorName)
def test_the_probe_has_the_processor_of_the_real_start(architecture: Architecture, name: AcceleratorName) -> None:
    real = processor_arguments(architecture, name)
    assert probe_arguments(architecture, name, Path("/fw"))[: len(real)] == real
    assert len(probe_firmware(architecture)) == 65536


async def test_what_works_is_taken_without_a_warning_and_probed_once(
    fake_qemu: FakeQemu, linux_on_x86_64: None
) -> None:
    fake_qemu.does("exit 85")
    assert await choose_accelerator(X86_64) == Accelerator(KVM)
    assert await choose_accelerator(X86_64) == Accelerator(KVM)
    assert len(fake_qemu.runs) == 1
    assert "-accel kvm -cpu host" in fake_qemu.runs[0]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; kill -ABRT $$",
            "failed to set MSR 0x10a",
        ),
        ("exit 0", "the guest crashed, and QEMU ended with status 0"),
        (
            "printf 'KVM internal error. Suberror: 1\\nextra data[0]: 0x1\\n'; exec sleep 60",
            "KVM internal error. Suberror: 1",
        ),
        ("exec sleep 60", "a guest hung for 0.2 s"),
    ],
)
async def test_what_does_not_work_is_said_once_found_out(
    script: str, why: str, fake_qemu: FakeQemu, linux_on_x86_64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "hung" in why
    monkeypatch.setattr(accelerator_module, "PROBE_BOUND", 0.2 if hangs else 60.0)
    fake_qemu.does(script)
    found = await choose_accelerator(X86_64)
    assert found.name is TCG
    assert found.warning is not None
    assert f"software emulation, many times slower: kvm does not work here: {why}" in found.warning
    assert await choose_accelerator(X86_64) == found
    assert len(fake_qemu.runs) == 1


async def test_what_fails_after_its_probe_is_not_tried_again(fake_qemu: FakeQemu, linux_on_x86_64: None) -> None:
    fake_qemu.does("exit 85")
    assert (await choose_accelerator(X86_64)).name is KVM
    remember_failure(X86_64, KVM, "KVM internal error. Suberror: 1")
    found = await choose_accelerator(X86_64)
    assert found.name is TCG
    assert "kvm does not work here: KVM internal error. Suberror: 1" in str(found.warning)
    assert len(fake_qemu.runs) == 1


@pytest.mark.parametrize("change", ["another QEMU", "rights on the device", "a reboot", "a spoilt cache"])
async def test_a_change_makes_it_probe_again(
    change: str, fake_qemu: FakeQemu, linux_on_x86_64: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.does("exit 1")
    assert (await choose_accelerator(X86_64)).name is TCG
    fake_qemu.path.write_text(fake_qemu.path.read_text().replace("exit 1", "exit 85"))
    os.utime(fake_qemu.path, ns=(1, 1))
    if change != "another QEMU":
        assert (await choose_accelerator(X86_64)).name is KVM
    match change:
        case "rights on the device":
            (tmp_path / "kvm").chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        case "a reboot":
            (tmp_path / "boot").write_text("another\n")
            monkeypatch.setattr(accelerator_module, "_BOOT_ID", tmp_path / "boot")
        case "a spoilt cache":
            (tmp_path / "cache" / "accelerator-x86_64.json").write_text("[]")
    before = len(fake_qemu.runs)
    assert (await choose_accelerator(X86_64)).name is KVM
    assert len(fake_qemu.runs) == before + 1


async def test_no_device(fake_qemu: FakeQemu, linux_on_x86_64: None, tmp_path: Path) -> None:
    fake_qemu.does("exit 85")
    (tmp_path / "kvm").unlink()
    found = await choose_accelerator(X86_64)
    assert found.name is TCG
    assert "does not exist" in str(found.warning)
    assert fake_qemu.runs == []


async def test_no_rights(
    fake_qemu: FakeQemu, linux_on_x86_64: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_qemu.does("exit 85")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "kvm" and allowed(path, mode))
    found = await choose_accelerator(X86_64)
    assert found.name is TCG
    assert "usermod -aG kvm" in str(found.warning)


async def test_a_cache_that_cannot_be_written_does_not_matter(
    fake_qemu: FakeQemu, linux_on_x86_64: None, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    fake_qemu.does("exit 85")
    assert await choose_accelerator(X86_64) == Accelerator(KVM)
    assert await choose_accelerator(X86_64) == Accelerator(KVM)
    assert len(fake_qemu.runs) == 2


async def test_another_architecture_is_emulated_with_the_reason(
    fake_qemu: FakeQemu, linux_on_x86_64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.does("exit 85")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    found = await choose_accelerator(X86_64)
    assert found.name is TCG
    assert "this host is riscv64" in str(found.warning)


async def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_ACCELERATOR", "hvf")
    assert await choose_accelerator(X86_64) == Accelerator(HVF)
    assert forced_accelerator({}) is None
    with pytest.raises(UserError, match="HOSTAGENT_ACCELERATOR=turbo") as caught:
        forced_accelerator({"HOSTAGENT_ACCELERATOR": "turbo"})
    assert caught.value.hint == "use one of kvm, hvf, tcg"


async def test_without_qemu_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="qemu-system-x86_64 is not installed"):
        await choose_accelerator(X86_64)
