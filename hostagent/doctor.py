"""What hostagent needs of this host, checked one by one, each with a reason and a next step.

Checks look and leave nothing changed: the accelerator's probe runs a short-lived guest, and folders are tried by making
one in them that is removed at once. Each is bounded in time. A `problem` keeps instances from starting; a `warning`
takes away something that not everybody needs.
"""

from __future__ import annotations

import enum
import getpass
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from hostagent.api_shapes import CheckShape
from hostagent.cli_views import size
from hostagent.config.loader import HostDefaults
from hostagent.debian_root import WITHOUT_MMDEBSTRAP
from hostagent.errors import UserError
from hostagent.paths import MAX_SOCKET_PATH, InstancePaths, cache, home
from hostagent.qemu.accelerator import choose_accelerator
from hostagent.qemu.command_line import Architecture, program_name
from hostagent.qemu.programs import find_program

_LEAST_DISK: Final = 3 * 1024**3
"""Bytes that an image, its build and a first overlay need."""

_EXAMPLE_NAME: Final = "default"
_UNPRIVILEGED_START: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_SUBORDINATE_IDS: Final = (Path("/etc/subuid"), Path("/etc/subgid"))


class CheckState(enum.StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: CheckState
    reason: str
    next_step: str = ""

    def shape(self) -> CheckShape:
        """The finding as JSON."""
        return CheckShape(name=self.name, state=str(self.state), reason=self.reason, next_step=self.next_step)


def examine() -> list[Check]:
    """Every finding, in a fixed order."""
    return [check() for check in CHECKS]


def check_qemu() -> Check:
    """Whether there is a QEMU for this host's own architecture."""
    machine = HostDefaults.of_this_host().arch
    try:
        program = find_program(program_name(Architecture(machine)))
    except ValueError:
        return Check("QEMU", CheckState.PROBLEM, f"{platform.machine()} machines are not supported", "use another one")
    except UserError as exc:
        return Check("QEMU", CheckState.PROBLEM, exc.message, exc.hint)
    return Check("QEMU", CheckState.OK, str(program))


def check_qemu_img() -> Check:
    """Whether disks can be made."""
    try:
        return Check("qemu-img", CheckState.OK, str(find_program("qemu-img")))
    except UserError as exc:
        return Check("qemu-img", CheckState.PROBLEM, exc.message, exc.hint)


def check_image_builder() -> Check:
    """Whether images can be built where none can be downloaded."""
    if found := shutil.which("mmdebstrap"):
        return Check("image builder", CheckState.OK, found)
    return Check(
        "image builder",
        CheckState.WARNING,
        "mmdebstrap is missing: no image can be built, and no guest agent frozen",
        WITHOUT_MMDEBSTRAP,
    )


def check_accelerator() -> Check:
    """What executes guests here, which a guest of a few instructions finds out."""
    try:
        architecture = Architecture(HostDefaults.of_this_host().arch)
        accelerator = trio.run(choose_accelerator, architecture)
    except ValueError:
        return Check("accelerator", CheckState.PROBLEM, f"nothing is known about {platform.machine()}", "use tcg")
    except UserError as exc:
        return Check("accelerator", CheckState.PROBLEM, exc.message, exc.hint)
    if accelerator.warning is None:
        return Check("accelerator", CheckState.OK, str(accelerator.name))
    step = "see that this user may open /dev/kvm, and that virtualisation is on in the firmware or outer hypervisor"
    return Check("accelerator", CheckState.WARNING, accelerator.warning, step)


def check_folder(name: str, folder: Path, variable: str) -> Check:
    """Whether files can be made in a folder, or it can be made itself."""
    at = _nearest_existing(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".hostagent-", dir=at):  # rights alone promise root too much: /proc
            return Check(name, CheckState.OK, f"{folder} can be written to")
    except OSError as exc:
        return Check(
            name,
            CheckState.PROBLEM,
            f"{folder} cannot be written to, because of {at}: {exc.strerror}",
            f"set {variable} to a folder of yours",
        )


def check_home() -> Check:
    """Whether instances can be made."""
    return check_folder("home", home(), "HOSTAGENT_HOME")


def check_cache() -> Check:
    """Whether images can be kept."""
    return check_folder("cache", cache(), "HOSTAGENT_CACHE")


def check_disk_space() -> Check:
    """Whether an image and a disk fit."""
    states = []
    for folder, variable in ((cache(), "HOSTAGENT_CACHE"), (home(), "HOSTAGENT_HOME")):
        free = shutil.disk_usage(_nearest_existing(folder)).free
        if free < _LEAST_DISK:
            return Check(
                "disk space",
                CheckState.PROBLEM,
                f"{size(free)} are free for {folder}, and {size(_LEAST_DISK)} are needed",
                f"free some space, or set {variable} to a folder on another disk",
            )
        states.append(f"{size(free)} free for {folder}")
    return Check("disk space", CheckState.OK, ", ".join(states))


def check_socket_path() -> Check:
    """Whether the sockets of an instance have paths that the kernel takes."""
    try:
        paths = InstancePaths.of(_EXAMPLE_NAME)
    except UserError as exc:
        return Check("socket paths", CheckState.PROBLEM, exc.message, "set HOSTAGENT_HOME to a shorter path")
    room = MAX_SOCKET_PATH - len(os.fsencode(paths.channel_socket)) + len(_EXAMPLE_NAME)
    return Check("socket paths", CheckState.OK, f"names of up to {min(room, 63)} characters fit")


def check_subordinate_ids() -> Check:
    """Whether this user can build images without root (subuid(5))."""
    name = "user namespaces"
    if os.geteuid() == 0:
        return Check(name, CheckState.OK, "not needed by root")
    user = getpass.getuser()
    for file in _SUBORDINATE_IDS:
        if not has_range(file, user, os.getuid()):
            return Check(
                name,
                CheckState.WARNING,
                f"{file} has no range for {user}: images can be downloaded, but not built without root",
                f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    return Check(name, CheckState.OK, f"{user} has subordinate ids")


def has_range(file: Path, user: str, uid: int) -> bool:
    """Whether /etc/subuid or /etc/subgid gives the user at least 65,536 ids, which a distribution's root needs."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        owner, _, ids = line.partition(":")
        count = ids.rpartition(":")[2].strip()
        if owner in (user, str(uid)) and count.isdecimal() and int(count) >= 65_536:
            return True
    return False


def check_privileged_ports() -> Check:
    """Whether guest ports below 1024 can have the same number here (ip(7), ip_unprivileged_port_start)."""
    name = "ports below 1024"
    if sys.platform != "linux" or os.geteuid() == 0:
        return Check(name, CheckState.OK, "can be used")
    try:
        first = int(_UNPRIVILEGED_START.read_text())
    except (OSError, ValueError):
        first = 1024
    if first <= 80:
        return Check(name, CheckState.OK, f"can be used from {first} on")
    return Check(
        name,
        CheckState.WARNING,
        f"this user may use ports from {first} on; forwards of lower ones are denied",
        "sudo sysctl net.ipv4.ip_unprivileged_port_start=80 (in /etc/sysctl.d to keep it), or forward to a higher port",
    )


def _nearest_existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


CHECKS: Final[Iterable[Callable[[], Check]]] = (
    check_qemu,
    check_qemu_img,
    check_image_builder,
    check_accelerator,
    check_home,
    check_cache,
    check_disk_space,
    check_socket_path,
    check_subordinate_ids,
    check_privileged_ports,
)
"""In the order in which one mends them."""
