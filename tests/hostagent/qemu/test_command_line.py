"""Every command line in words, and accepted by the real QEMU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.qemu.command_line import (
    MIB,
    AcceleratorName,
    Architecture,
    Disk,
    HostForward,
    Listeners,
    MachineSpec,
    arguments,
    escape,
    mac_address,
    processor_arguments,
    program_name,
)

X86_64, AARCH64 = Architecture.X86_64, Architecture.AARCH64
KVM, HVF, TCG = AcceleratorName.KVM, AcceleratorName.HVF, AcceleratorName.TCG


def full_spec(folder: Path = Path("/vm")) -> MachineSpec:
    return MachineSpec(
        name="box",
        architecture=X86_64,
        accelerator=TCG,
        cpus=2,
        memory=512 * MIB,
        serial_log=folder / "serial.log",
        disk=Disk(folder / "disk.qcow2"),
        seed=folder / "seed.iso",
    )


FULL = """\
-name guest=box
-nodefaults
-no-user-config
-display none
-machine q35,sata=off,hpet=off
-accel tcg,thread=multi
-cpu max,-erms
-smp 2
-m 512M
-rtc base=utc
-no-reboot
-object iothread,id=disk-thread
-blockdev {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "detect-zeroes": "unmap", \
"file": {"driver": "file", "filename": "/vm/disk.qcow2"}}
-device {"driver": "virtio-blk-pci", "drive": "disk", "iothread": "disk-thread", "bootindex": 1}
-blockdev {"driver": "raw", "node-name": "seed", "read-only": true, \
"file": {"driver": "file", "filename": "/vm/seed.iso", "read-only": true}}
-device {"driver": "virtio-blk-pci", "drive": "seed"}
-netdev user,id=net,ipv4=on,ipv6=on
-device {"driver": "virtio-net-pci", "netdev": "net", "mac": "52:54:00:26:f8:56", "romfile": ""}
-device {"driver": "virtio-rng-pci"}
-chardev file,id=serial,path=/vm/serial.log,append=on
-serial chardev:serial
-device {"driver": "virtio-serial-pci", "id": "ports"}
-chardev socket,id=channel,fd=7,server=on,wait=off
-device {"driver": "virtserialport", "bus": "ports.0", "nr": 1, "chardev": "channel", "name": "hostagent.0"}
-chardev socket,id=monitor,fd=8,server=on,wait=off
-mon chardev=monitor,mode=control
"""

PROCESSORS = {
    (X86_64, KVM): "-machine q35,sata=off,hpet=off -accel kvm -cpu host",
    (X86_64, HVF): "-machine q35,sata=off,hpet=off -accel hvf -cpu host",
    (X86_64, TCG): "-machine q35,sata=off,hpet=off -accel tcg,thread=multi -cpu max,-erms",
    (AARCH64, KVM): "-machine virt,gic-version=max -accel kvm -cpu host",
    (AARCH64, HVF): "-machine virt -accel hvf -cpu host",
    (AARCH64, TCG): "-machine virt,gic-version=max -accel tcg,thread=multi -cpu max,pauth-impdef=on",
}


def written(found: list[str]) -> str:
    """One option a line, with its value."""
    return "".join(f"\n{word}" if word.startswith("-") else f" {word}" for word in found).lstrip("\n") + "\n"


def test_a_whole_machine() -> None:
    assert written(arguments(full_spec(), Listeners(channel=7, monitor=8))) == FULL


@pytest.mark.parametrize(("architecture", "accelerator"), PROCESSORS, ids=lambda value: str(value))
def test_processor_of_each_accelerator_and_architecture(
    architecture: Architecture, accelerator: AcceleratorName
) -> None:
    found = processor_arguments(architecture, accelerator)
    assert " ".join(found) == "-nodefaults -no-user-config -display none " + PROCESSORS[architecture, accelerator]
    spec = dataclasses.replace(full_spec(), architecture=architecture, accelerator=accelerator)
    others = arguments(full_spec(), Listeners(7, 8))
    whole = arguments(spec, Listeners(7, 8))
    assert whole[2 : 2 + len(found)] == found
    assert whole[2 + len(found) :] == others[2 + len(processor_arguments(X86_64, TCG)) :], "the rest is the same"


def test_program_names() -> None:
    assert [program_name(each) for each in Architecture] == ["qemu-system-x86_64", "qemu-system-aarch64"]


def test_direct_kernel_boot_and_firmware() -> None:
    spec = dataclasses.replace(
        full_spec(),
        disk=None,
        seed=None,
        kernel=Path("/k"),
        initrd=Path("/i"),
        kernel_command_line="console=ttyS0 quiet",
        firmware=Path("/f"),
    )
    text = written(arguments(dataclasses.replace(spec, accelerator=KVM), Listeners(7, 8)))
    assert "-bios /f\n-kernel /k\n-initrd /i\n-append console=ttyS0 quiet\n" in text
    emulated = written(arguments(dataclasses.replace(spec, accelerator=TCG), Listeners(7, 8)))
    assert "\n-append mitigations=off console=ttyS0 quiet\n" in emulated, "the image's own options have the last word"
    assert "blk" not in text
    assert "iothread" not in text


def test_host_forwards_listen_on_loopback_only() -> None:
    spec = dataclasses.replace(full_spec(), host_forwards=(HostForward(2222, 22), HostForward(5353, 53, "udp")))
    text = written(arguments(spec, Listeners(7, 8)))
    assert ",hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:127.0.0.1:5353-:53\n" in text


def test_memory_is_rounded_up() -> None:
    found = arguments(dataclasses.replace(full_spec(), memory=512 * MIB + 1), Listeners(7, 8))
    assert found[found.index("-m") + 1] == "513M"


def test_commas_are_doubled_where_they_separate() -> None:
    assert escape("a,b,,c") == "a,,b,,,,c"


def test_mac_addresses_are_stable_local_and_unicast() -> None:
    assert mac_address("default") == mac_address("default") != mac_address("other")
    first = int(mac_address("default").split(":")[0], 16)
    assert first & 0b11 == 0b10


@pytest.mark.parametrize(
    "wrong", [{"cpus": 0}, {"memory": 0}, {"initrd": Path("/i")}, {"kernel_command_line": "quiet"}]
)
def test_impossible_machines_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(full_spec(), **wrong)  # type: ignore[arg-type]


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def greeting_of_real_qemu(spec: MachineSpec, folder: Path) -> dict[str, object]:
    """What the real QEMU says on its monitor when started, halted, with the command line of `spec`."""
    with (
        listening(folder / "c") as channel,
        listening(folder / "m") as monitor,
        socket.socket(socket.AF_UNIX) as client,
    ):
        command = [program_name(spec.architecture), "-S"]
        command += arguments(spec, Listeners(channel.fileno(), monitor.fileno()))
        with subprocess.Popen(command, pass_fds=(channel.fileno(), monitor.fileno()), stderr=subprocess.PIPE) as qemu:
            monitor.close()
            client.connect(str(folder / "m"))
            with client.makefile("rwb") as lines:
                greeting = lines.readline()
                if greeting:
                    lines.write(b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n')
                    lines.flush()
                _, said = qemu.communicate()
    assert (qemu.returncode, said) == (0, b"")
    found = json.loads(greeting)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("case", ["full", "raw with commas", "forwards", "firmware", "no disks"])
def test_the_real_qemu_accepts_it(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "a, b" if case == "raw with commas" else tmp_path
    folder.mkdir(exist_ok=True)
    spec = full_spec(folder)
    spec.serial_log.write_text("earlier\n")
    assert spec.seed is not None
    spec.seed.write_bytes(bytes(2048))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "10M"], check=True)
    match case:
        case "raw with commas":
            (folder / "disk,raw").write_bytes(bytes(MIB))
            spec = dataclasses.replace(spec, disk=Disk(folder / "disk,raw", "raw"))
        case "forwards":
            spec = dataclasses.replace(spec, host_forwards=(HostForward(0, 22), HostForward(0, 53, "udp")))
        case "firmware":
            (folder / "f,w").write_bytes(bytes(65536))
            spec = dataclasses.replace(spec, firmware=folder / "f,w", cpus=4)
        case "no disks":
            spec = dataclasses.replace(spec, disk=None, seed=None)
    assert "QMP" in greeting_of_real_qemu(spec, tmp_path)
    assert spec.serial_log.read_text().startswith("earlier\n"), "the serial log is appended to"
