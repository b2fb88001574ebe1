"""Who can execute a guest here: probed by letting a short-lived QEMU execute one.

That /dev/kvm can be opened says little: in nested virtual machines the ioctls succeed and QEMU aborts, or the guest
never gets anywhere. So the candidate runs a firmware of a few instructions, with the machine type and the CPU model of
the real start, and the guest itself ends QEMU, with an exit status that nothing else has:

- x86_64: real mode, then long mode with paging, 64 KiB of memory written, `lock cmpxchg16b` on a page table, and 0x2a
  to the isa-debug-exit port: QEMU exits with 2 * 0x2a + 1. Where KVM has no nested paging to use (in some virtual
  machines), writes to page tables are emulated, and KVM's emulator does not know that instruction
  (arch/x86/kvm/emulate.c): every Linux guest with SLUB then ends in an internal error, early in its boot.
- aarch64: one PSCI SYSTEM_OFF call; QEMU exits with 0, and everything else hangs or fails.

A hang is ended after `PROBE_BOUND`, an internal error of the accelerator, behind which QEMU waits for a debugger, at
once. What came out is cached below `paths.cache()` and holds while QEMU's program file, the boot of the host, the
rights on /dev/kvm and our own groups stay what they are. tcg is the last resort and not probed: it needs nothing from
the host. What a probe cannot see is a guest that fails later: where the accelerator says so itself,
`remember_failure` keeps the next start from it.

`HOSTAGENT_ACCELERATOR` (kvm, hvf or tcg) is taken at its word: no probe, no warning, and QEMU's own error if it fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

from hostagent import paths
from hostagent.errors import UserError
from hostagent.qemu.command_line import AcceleratorName, Architecture, processor_arguments, program_name
from hostagent.qemu.last_words import internal_error, words_of
from hostagent.qemu.programs import find_program

VARIABLE = "HOSTAGENT_ACCELERATOR"

PROBE_BOUND = 3.0
"""Seconds for a probe: 0.1 is usual, and a healthy accelerator needs milliseconds for the guest's part."""

_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_FIRMWARE_SIZE = 65536  # -bios takes multiples of 64 KiB, and puts the end of the file at the end of 4 GiB and of 1 MiB

_X86_64_PROBE = bytes.fromhex(
    "31c08ec0"  # xor %ax,%ax; mov %ax,%es
    "2666c706001003200000"  # movl $0x2003,%es:0x1000   level 4: the first entry points to 0x2000, writable, present
    "2666c706002003300000"  # movl $0x3003,%es:0x2000   level 3: likewise to 0x3000
    "2666c706003083000000"  # movl $0x0083,%es:0x3000   level 2: the first 2 MiB are mapped onto themselves
    "2e660f01169800"  # lgdtl %cs:0x98
    "66b8200000000f22e0"  # mov $0x20,%eax; mov %eax,%cr4         physical address extension
    "66b8001000000f22d8"  # mov $0x1000,%eax; mov %eax,%cr3
    "66b9800000c00f320d00010f30"  # mov $0xc0000080,%ecx; rdmsr; or $0x100,%ax; wrmsr      EFER: long mode enable
    "66b8110000800f22c0"  # mov $0x80000011,%eax; mov %eax,%cr0   paging and protection
    "66ea59000f000800"  # ljmpl $8,$0xf0059   from here on 64-bit code
    "bf00400000b900000100b02af3aa"  # mov $0x4000,%edi; mov $0x10000,%ecx; mov $0x2a,%al; rep stosb
    "31c09931db31c9"  # xor %eax,%eax; cltd; xor %ebx,%ebx; xor %ecx,%ecx
    "f0480fc70c25f03f0000"  # lock cmpxchg16b 0x3ff0   the end of the level 2 table
    "b02abaf4000000eef4ebfd0000000000"  # mov $0x2a,%al; mov $0xf4,%edx; out %al,(%dx); 1: hlt; jmp 1b; padding
    "0000000000000000"  # 0x88: descriptors: none,
    "00000000009b2000"  # and 64-bit code
    "0f0088000f00"  # 0x98: their limit and address
)
_X86_64_RESET = bytes.fromhex("ea000000f0")  # ljmp $0xf000,$0   at the reset vector, 16 bytes before the end
_X86_64_STATUS = 2 * 0x2A + 1

_AARCH64_PROBE = bytes.fromhex(
    "00018052"  # mov  w0, #0x0008
    "0080b072"  # movk w0, #0x8400, lsl #16   PSCI SYSTEM_OFF (Arm DEN0022)
    "020000d4"  # hvc  #0
    "00000014"  # b    .
)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What will execute the guest; `warning` is there when it is not what one would wish for, and says why."""

    name: AcceleratorName
    warning: str | None = None


def forced_accelerator(environment: Mapping[str, str]) -> Accelerator | None:
    """The accelerator that the environment demands, if it does; raises `UserError` for an unknown one."""
    if not (value := environment.get(VARIABLE)):
        return None
    try:
        return Accelerator(AcceleratorName(value))
    except ValueError as exc:
        raise UserError(
            f"{VARIABLE}={value} is not an accelerator", f"use one of {', '.join(AcceleratorName)}"
        ) from exc


def candidate(architecture: Architecture, system: str, machine: str) -> tuple[AcceleratorName, str]:
    """What to try on a host with this `sys.platform` and `uname -m`; when that is tcg, also why nothing better."""
    if {"arm64": "aarch64", "amd64": "x86_64"}.get(machine.lower(), machine) != architecture:
        return AcceleratorName.TCG, f"this host is {machine} and cannot execute {architecture} itself"
    match system:
        case "linux":
            return AcceleratorName.KVM, ""
        case "darwin":
            return AcceleratorName.HVF, ""
        case _:
            return AcceleratorName.TCG, f"no accelerator is known for {system}"


def probe_firmware(architecture: Architecture) -> bytes:
    """The guest of a probe, to be given to -bios."""
    if architecture is Architecture.AARCH64:
        return _AARCH64_PROBE.ljust(_FIRMWARE_SIZE, b"\0")
    return _X86_64_PROBE.ljust(_FIRMWARE_SIZE - 16, b"\0") + _X86_64_RESET.ljust(16, b"\0")


def probe_arguments(architecture: Architecture, name: AcceleratorName, firmware: Path) -> list[str]:
    """QEMU's arguments for a probe of `name`, without the program itself."""
    found = [*processor_arguments(architecture, name), "-m", "64M", "-bios", str(firmware)]
    if architecture is Architecture.X86_64:
        # a crash (triple fault) resets the machine: let it end QEMU at once, with another status
        found += ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    return found


async def choose_accelerator(architecture: Architecture) -> Accelerator:
    """The best accelerator that works here; from the cache where nothing has changed since the last probe.

    Raises `UserError` when QEMU is missing or `HOSTAGENT_ACCELERATOR` is wrong.
    """
    if forced := forced_accelerator(os.environ):
        return forced
    program = find_program(program_name(architecture))
    name, reason = candidate(architecture, sys.platform, platform.machine())
    if name is AcceleratorName.TCG:
        return _fallback(reason)
    key = _cache_key(program, name)
    cache = paths.cache() / f"accelerator-{architecture}.json"
    if (failure := _cached_failure(cache, key)) is None:
        failure = await why_unusable(program, architecture, name)
        _store(cache, key, failure)
    return _fallback(f"{name} does not work here: {failure}") if failure else Accelerator(name)


def remember_failure(architecture: Architecture, name: AcceleratorName, reason: str) -> None:
    """Let the next start do without the accelerator `name`, which failed for `reason` although its probe went well.

    Raises `UserError` when QEMU is not installed any more.
    """
    cache = paths.cache() / f"accelerator-{architecture}.json"
    _store(cache, _cache_key(find_program(program_name(architecture)), name), reason)


async def why_unusable(program: Path, architecture: Architecture, name: AcceleratorName) -> str:
    """Empty when a guest was executed with the accelerator `name`; otherwise why not, in words."""
    if name is AcceleratorName.KVM and (reason := _why_no_kvm_device(_KVM)):
        return reason
    with tempfile.TemporaryDirectory(prefix="hostagent-probe-") as folder:
        firmware = Path(folder) / "firmware"
        firmware.write_bytes(probe_firmware(architecture))
        with trio.move_on_after(PROBE_BOUND):
            return await _probe(architecture, [str(program), *probe_arguments(architecture, name, firmware)])
    return f"a guest hung for {PROBE_BOUND:g} s"


async def _probe(architecture: Architecture, command: Sequence[str]) -> str:
    """Run the probe to its end, or to the accelerator's."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = b""
    try:
        async with process.stdout:
            async for data in process.stdout:
                said += data
                if failure := internal_error(said.decode("utf-8", "replace")):
                    return failure
        return _verdict(architecture, await process.wait(), said.decode("utf-8", "replace"))
    finally:
        process.kill()  # it may be stuck in an ioctl or spin: nothing in it is worth a polite end
        with trio.CancelScope(shield=True):
            await process.wait()


def _verdict(architecture: Architecture, status: int, output: str) -> str:
    if status == (_X86_64_STATUS if architecture is Architecture.X86_64 else 0):
        return ""
    return words_of(output) or f"the guest crashed, and QEMU ended with status {status}"


def _why_no_kvm_device(device: Path) -> str:
    if not device.exists():
        return f"{device} does not exist (no virtualisation in this machine's firmware settings, or in its hypervisor)"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no right to open {device} (join its group: sudo usermod -aG kvm $USER, then log in again)"
    return ""


def _fallback(reason: str) -> Accelerator:
    warning = f"the guest runs in software emulation, many times slower: {reason}"
    return Accelerator(AcceleratorName.TCG, warning)


def _cache_key(program: Path, name: AcceleratorName) -> str:
    """Changes with everything that a probe's outcome depends on."""
    file = program.resolve().stat()
    facts: list[object] = [str(program.resolve()), file.st_mtime_ns, file.st_size, name, _boot(), os.geteuid()]
    facts.append(sorted(os.getgroups()))
    with contextlib.suppress(FileNotFoundError):
        device = _KVM.stat()
        facts += [device.st_mode, device.st_uid, device.st_gid]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _boot() -> str:
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text().strip()
    return str(psutil.boot_time())  # macOS


def _cached_failure(cache: Path, key: str) -> str | None:
    """What was found out before: empty for "it works", None for nothing that still holds."""
    try:
        stored = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return None
    if isinstance(stored, dict) and stored.get("key") == key and isinstance(failure := stored.get("failure"), str):
        return failure
    return None


def _store(cache: Path, key: str, failure: str) -> None:
    # A cache that cannot be written costs a tenth of a second at the next start, and is nobody's business.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f"{cache.name}.{os.getpid()}")
        partial.write_text(json.dumps({"key": key, "failure": failure}))
        partial.replace(cache)
