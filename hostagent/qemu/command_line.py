"""The QEMU command line of one machine, as a pure function of its description.

What a machine is made of, and why:

- No default devices and no user configuration: the list below is all there is, whatever a distribution's QEMU adds.
- `q35` and `virt` boot every generic cloud image. `microvm` starts sooner but has no PCI by default and no firmware
  that reads a partition table, so only images that are made for it boot. The AHCI controller of q35 is left out:
  nothing hangs on it, and a guest kernel waits for its empty ports.
- The CPU model is the host's under kvm and hvf. Under tcg it is `max`: measured with Python in a Debian 12 guest (QEMU
  7.2) it equals `qemu64`, which Alma Linux 9 and newer refuse to run on (x86-64-v2), and is 1.3 to 1.7 times as fast
  as named Intel models, whose guests turn on page-table isolation. Without ERMS, because a guest that believes in
  fast string moves copies with `rep movsb`, which TCG executes byte by byte: with it, a forwarded stream had 13 MB/s
  to the host and 9 MB/s to the guest, without it 30 and 19. On aarch64, `pauth-impdef` replaces the pointer
  authentication cipher of the architecture, which costs most of the time when emulated, by a cheap one.
- A kernel that is started directly is told `mitigations=off` under TCG, before its own options, which may say
  otherwise. What it would do against speculative execution is translated like all else: it protects nothing, and
  retpolines and barriers cost a sixth of a round trip (QEMU's own forward: 0.41 instead of 0.49 ms).
- The HPET is left out: an emulated guest that finds its TSC unusable would take it for its clock, and each look at the
  time would cost 3.9 instead of 2.4 microseconds (acpi_pm).
- The disk has an I/O thread, so that its work does not delay the main loop, which also moves the bytes of the channel.
  The guest's trim reaches the image file, and runs of zeroes are not stored.
- The seed is a second virtio disk, read-only: Debian's cloud kernel has no AHCI driver and so sees no CD-ROM drive,
  and cloud-init finds the file system by its label on any block device (NoCloud data source).
- The disk is second in the boot order: QEMU gives the first place to a kernel of its own (`-kernel`).
- The network card has no boot ROM: one file fewer to depend on, and no attempt to boot from the network.
- The channel and the monitor are *inherited listening sockets* (`fd=`). They accept connections before QEMU runs at
  all, so nobody ever waits for a socket file to appear, and when QEMU dies its clients see the end at once.
- The serial log is opened with O_APPEND (`append=on`): whoever watches its size may truncate it while QEMU writes.
- A guest that resets ends its QEMU (`-no-reboot`), and a new one is started: under TCG a reset QEMU needs six times as
  long for a boot as a new one (power_cycle.py).
- No `-daemonize` and no `-pidfile`: the first loses everything that QEMU says later, the second names a process only
  after QEMU has initialised. `machine.py` detaches and records the process by itself.

Options in JSON form (-blockdev, -device) need no escaping; in the others a comma is doubled (qemu(1), "-drive file").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

MIB = 1024 * 1024

CHANNEL_PORT = "hostagent.0"
"""Name of the virtio-serial port; the guest finds it as /dev/virtio-ports/hostagent.0."""


class Architecture(StrEnum):
    """What the guest runs on, in the words of `uname -m` and of QEMU's program names."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class AcceleratorName(StrEnum):
    """Who executes the guest's instructions: the host's CPU through Linux or macOS, or QEMU's translator."""

    KVM = "kvm"
    HVF = "hvf"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Disk:
    """An image file and its format; never guessed, because a raw guest disk could pretend to be qcow2."""

    path: Path
    format: Literal["qcow2", "raw"] = "qcow2"


@dataclass(frozen=True, slots=True)
class HostForward:
    """QEMU's own port forward on 127.0.0.1, for the benchmark that compares ours with it."""

    host_port: int
    guest_port: int
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True, slots=True)
class Listeners:
    """File descriptors, inherited by QEMU, of bound unix stream sockets."""

    channel: int
    monitor: int


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything about a machine that its command line says; memory in bytes, rounded up to a MiB."""

    name: str
    architecture: Architecture
    accelerator: AcceleratorName
    cpus: int
    memory: int
    serial_log: Path
    disk: Disk | None = None
    seed: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_command_line: str | None = None
    firmware: Path | None = None
    host_forwards: tuple[HostForward, ...] = ()

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.memory < MIB:
            raise ValueError(f"a machine needs a CPU and a MiB of memory, not {self.cpus} and {self.memory} bytes")
        if self.kernel is None and (self.initrd is not None or self.kernel_command_line is not None):
            raise ValueError("an initrd or a kernel command line needs a kernel")


def program_name(architecture: Architecture) -> str:
    """The system emulator's name on the PATH."""
    return f"qemu-system-{architecture}"


def escape(value: str) -> str:
    """`value` as it must stand in a `key=value,...` option, where a comma separates."""
    return value.replace(",", ",,")


def mac_address(name: str) -> str:
    """The network card's address: derived from the instance's name, so that it is the same at every boot.

    52:54:00 is locally administered and QEMU's habit. Two instances may collide: each is alone in its network.
    """
    return "52:54:00:" + hashlib.sha256(name.encode()).digest()[:3].hex(":")


def processor_arguments(architecture: Architecture, accelerator: AcceleratorName) -> list[str]:
    """Machine type, accelerator and CPU model: the part that the accelerator probe must share with the real start."""
    machine = "q35,sata=off,hpet=off"
    emulated = "max,-erms"
    if architecture is Architecture.AARCH64:
        # Without GICv3 a virt machine has at most 8 CPUs; hvf has not been tried with it.
        machine = "virt" if accelerator is AcceleratorName.HVF else "virt,gic-version=max"
        emulated = "max,pauth-impdef=on"
    is_emulated = accelerator is AcceleratorName.TCG
    return [
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-machine", machine,
        "-accel", "tcg,thread=multi" if is_emulated else str(accelerator),
        "-cpu", emulated if is_emulated else "host",
    ]  # fmt: skip


def arguments(spec: MachineSpec, listeners: Listeners) -> list[str]:
    """QEMU's arguments, without the program itself, for the machine `spec` with the inherited sockets `listeners`."""
    return [
        "-name", f"guest={escape(spec.name)}",
        *processor_arguments(spec.architecture, spec.accelerator),
        "-smp", str(spec.cpus),
        "-m", f"{-(-spec.memory // MIB)}M",
        "-rtc", "base=utc",
        "-no-reboot",
        *_boot_arguments(spec),
        *_disk_arguments(spec),
        *_network_arguments(spec),
        "-device", _json(driver="virtio-rng-pci"),
        "-chardev", f"file,id=serial,path={escape(str(spec.serial_log))},append=on",
        "-serial", "chardev:serial",
        "-device", _json(driver="virtio-serial-pci", id="ports"),
        "-chardev", f"socket,id=channel,fd={listeners.channel},server=on,wait=off",
        "-device", _json(driver="virtserialport", bus="ports.0", nr=1, chardev="channel", name=CHANNEL_PORT),
        "-chardev", f"socket,id=monitor,fd={listeners.monitor},server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
    ]  # fmt: skip


def _json(**members: object) -> str:
    return json.dumps(members)


def _boot_arguments(spec: MachineSpec) -> list[str]:
    found: list[str] = []
    command_line = spec.kernel_command_line
    if spec.kernel is not None and spec.accelerator is AcceleratorName.TCG:
        command_line = f"mitigations=off {command_line or ''}".rstrip()
    for option, value in (
        ("-bios", spec.firmware),
        ("-kernel", spec.kernel),
        ("-initrd", spec.initrd),
        ("-append", command_line),
    ):
        if value is not None:
            found += [option, str(value)]
    return found


def _disk_arguments(spec: MachineSpec) -> list[str]:
    found: list[str] = []
    if spec.disk is not None:
        image: dict[str, object] = {
            "driver": spec.disk.format,
            "node-name": "disk",
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "file": {"driver": "file", "filename": str(spec.disk.path)},
        }
        found += [
            "-object", "iothread,id=disk-thread",
            "-blockdev", json.dumps(image),
            "-device", _json(driver="virtio-blk-pci", drive="disk", iothread="disk-thread", bootindex=1),
        ]  # fmt: skip
    if spec.seed is not None:
        file = {"driver": "file", "filename": str(spec.seed), "read-only": True}
        image = {"driver": "raw", "node-name": "seed", "read-only": True, "file": file}
        found += ["-blockdev", json.dumps(image), "-device", _json(driver="virtio-blk-pci", drive="seed")]
    return found


def _network_arguments(spec: MachineSpec) -> list[str]:
    # ipv6=on alone would turn IPv4 off (net/slirp.c), so both are said.
    network = "user,id=net,ipv4=on,ipv6=on"
    for forward in spec.host_forwards:
        network += f",hostfwd={forward.protocol}:127.0.0.1:{forward.host_port}-:{forward.guest_port}"
    card = _json(driver="virtio-net-pci", netdev="net", mac=mac_address(spec.name), romfile="")
    return ["-netdev", network, "-device", card]
