"""Debian images built from packages: what `build: debian-12` gives when no official image can be fetched.

One mmdebstrap run makes the root, and its customize hook (cloud-init/image/customize) turns the root into a disk
before the root is thrown away: raw ext4 written by `mke2fs -d`, converted to qcow2, with the kernel and a small initrd
beside it. All of it happens as root or inside the user namespace that mmdebstrap makes for a normal user; there is no
loop device, no mount on the host and no boot loader.

Promises: the image boots without cloud images' detours (no firmware, no GRUB, no udev in the initrd), installs the
guest agent from the seed at once, and is cached under a key of everything that went into it and of the month, so that
it is at most a month behind with its updates. A failed or cancelled build leaves a log and nothing else; what a killed
one leaves is removed by the next.

When this month's image cannot be built, last month's of the same recipe is taken and that is said.

Rejected: debootstrap (needs root and mknod), a partition table and a boot loader (need loop devices, and firmware plus
GRUB cost seconds), initramfs-tools in the image (2-3 s of each boot under software emulation).
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import trio

from hostagent.cidata import guest_files
from hostagent.debian_sources import CODENAMES, KEYRING, debian_sources, proxy_environment
from hostagent.errors import UserError
from hostagent.image_cache import Image, disk_errors, entry_lock
from hostagent.instance_lock import try_lock
from hostagent.mmdebstrap import run_mmdebstrap, usable_mode
from hostagent.progress import Progress

Release = Literal["debian-12", "debian-13"]

PACKAGES = (
    "systemd", "systemd-sysv", "systemd-resolved", "libpam-systemd", "udev", "kmod", "dbus", "dbus-user-session",
    # cloud-init stays unconfigured without the cffi backend: python3-cryptography fails to import
    "cloud-init", "python3", "python3-cffi-backend",
    "ca-certificates", "curl", "iproute2", "iptables", "iputils-ping", "less", "nano-tiny", "netbase", "nftables",
    "procps", "sudo", "uidmap",
    "busybox-static",  # the initrd's only program
)  # fmt: skip
"""What is in the image besides Debian's minimal set and the kernel."""

COMMAND_LINE = "root=LABEL=hostagent-root rw console={console} quiet no_timer_check cryptomgr.notests 8250.nr_uarts=1"
"""Kernel command line of built images.

Without `no_timer_check` the kernel tests the timer interrupt with a loop that is too short when the host is busy, and
hangs ("8254 timer not connected to IO-APIC"); under KVM it leaves the test out by itself. The crypto self-tests cost a
second or two under software emulation, and each serial port that is not there a probe.
`tsc=reliable` would save the slow emulated clocks, but was measured to make the guest's clock run six times too fast:
the kernel calibrates the TSC wrongly while the host is busy, and this option turns off the watchdog that notices.
"""

_EXCLUDED = (
    "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*",
    # would make an initrd that nothing boots, for half a minute, at each kernel update
    "/etc/kernel/postinst.d/initramfs-tools",
)  # fmt: skip

_FILES = ("disk.qcow2", "vmlinuz", "initrd.img")
"""What is in an entry of the cache."""

_STAGING = ".build-"
"""What the folder of a build that goes on is called, before the recipe's key: whose lock is held as long."""

_DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
"""Where the kernel lists the interpreters of other architectures' programs (Documentation/admin-guide/binfmt-misc)."""

ROOM_FOR_WORK = 3 * 2**30
"""Bytes that the root, the raw disk and the compressed one need while the image is built."""

ROOM_FOR_RESULT = 512 * 2**20
"""Bytes that the finished image needs in the cache."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is in the image, except the month."""

    release: str
    architecture: str
    """Debian's name: amd64 or arm64."""
    overlay: bytes
    """A tar archive that is unpacked over the root."""
    more_packages: tuple[str, ...] = ()
    """What is asked for besides the packages of every image."""

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages that are asked for."""
        return (*PACKAGES, f"linux-image-cloud-{self.architecture}", *self.more_packages)

    @property
    def command_line(self) -> str:
        """The kernel command line the image is meant to be booted with."""
        return COMMAND_LINE.format(console="ttyAMA0" if self.architecture == "arm64" else "ttyS0")

    @property
    def key(self) -> str:
        """The name of the cache entry without its month: equal recipes have equal keys."""
        content = "\0".join((*self.packages, *_EXCLUDED)).encode() + self.overlay
        return f"{self.release}-{self.architecture}-{hashlib.sha256(content).hexdigest()[:12]}"


def recipe_for(release: Release, architecture: str, files: Path) -> Recipe:
    """The recipe for `release` with the guest's files from the folder `files` (cloud-init/)."""
    try:
        return Recipe(release, _DEBIAN_ARCHITECTURES[architecture], _overlay(files))
    except KeyError:
        known = ", ".join(sorted(set(_DEBIAN_ARCHITECTURES)))
        raise UserError(
            f"there is no Debian image for the architecture {architecture!r}", f"use one of {known}"
        ) from None


def _overlay(files: Path) -> bytes:
    """The tar archive of what is laid over the root; equal files give equal bytes."""
    image = files / "image"
    members = {path.relative_to(image / "rootfs").as_posix(): path for path in (image / "rootfs").rglob("*")}
    unit = "hostagent-guestagent.service"
    members[f"etc/systemd/system/{unit}"] = files / unit
    members["usr/local/lib/hostagent/update-from-seed"] = files / "update-from-seed"
    for name in ("customize", "init"):
        members[f"hostagent-build/{name}"] = image / name
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in sorted(members.items()):
            if path.is_dir():
                continue
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


async def build_image(release: Release, architecture: str, cache: Path, progress: Progress) -> Image:
    """The image of `release`, from the cache or built now (about two minutes).

    `architecture` is the machine's name as uname(1) gives it or Debian's. Raises `UserError` when a tool, packages,
    rights or room are missing.
    """
    return await image_of(recipe_for(release, architecture, guest_files()), cache, progress)


async def image_of(recipe: Recipe, cache: Path, progress: Progress) -> Image:
    """The image of a recipe, as `build_image` gives it."""
    folder = cache / "images"
    month = f"{datetime.now(UTC):%Y%m}"
    entry = folder / f"{recipe.key}-{month}"
    async with entry_lock(folder / f".{recipe.key}.lock", f"the {recipe.release} image", progress):
        if not entry.exists():
            try:
                await _build(recipe, entry, progress)
            except UserError as error:
                if older := _older_entry(folder, recipe.key):
                    return _image(recipe, older, f"this month's image could not be built: {error.message}")
                raise
    return _image(recipe, entry)


def _image(recipe: Recipe, entry: Path, *notes: str) -> Image:
    """The image in `entry`; raises `UserError` when somebody has taken a file away."""
    built = entry.name.rpartition("-")[2]
    disk, kernel, initrd = (entry / name for name in _FILES)
    again = f"delete the folder {entry}, and the next `hostagent up` builds the image again"
    for path in (disk, kernel, initrd):
        if not (path.is_file() and path.stat().st_size):
            raise UserError(f"the image {entry.name} is not whole: {path} is missing or empty", again)
    return Image(
        disk=disk,
        format="qcow2",
        kernel=kernel,
        initrd=initrd,
        command_line=recipe.command_line,
        origin=f"{recipe.release} built from packages in {built[:4]}-{built[4:]}",
        notes=notes,
        again=again,
    )


def _older_entry(folder: Path, key: str) -> Path | None:
    return max(folder.glob(f"{key}-??????"), default=None)


async def _build(recipe: Recipe, entry: Path, progress: Progress) -> None:
    progress.update("preparing the image build", 0, None)
    work = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 (mmdebstrap makes a folder of its own in it)
    check_host(recipe, work, entry.parent)
    mode = await usable_mode()
    sources = await debian_sources(CODENAMES[recipe.release])
    environment = {**await proxy_environment(), "TMPDIR": str(work), "LC_ALL": "C.UTF-8"}
    with disk_errors(entry.parent), ExitStack() as stack:
        await trio.to_thread.run_sync(_remove_leftovers, entry.parent, recipe.key)
        prefix = f"{_STAGING}{recipe.key}-"
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=entry.parent)))
        (staging / "overlay.tar").write_bytes(recipe.overlay)
        log = entry.parent / f"{recipe.key}.log"
        await run_mmdebstrap(mmdebstrap_command(recipe, mode, sources, staging), environment, log, progress)
        await trio.to_thread.run_sync(_publish, staging, entry)


def _remove_leftovers(folder: Path, held: str) -> None:
    """Remove what is left of builds that were killed: those of the recipe `held`, which we have the lock of, and those
    of which nobody has it.
    """
    for leftover in folder.glob(f"{_STAGING}*-*"):
        key = leftover.name.removeprefix(_STAGING).rpartition("-")[0]
        if key == held:
            shutil.rmtree(leftover)
            continue
        with try_lock(folder / f".{key}.lock") as free:
            if free:
                shutil.rmtree(leftover)


def _publish(staging: Path, entry: Path) -> None:
    (staging / "overlay.tar").unlink()
    staging.chmod(0o755)
    # What is renamed must be on the disk first: a power cut must not leave a complete-looking entry.
    os.sync()
    staging.rename(entry)
    staging.mkdir()  # for TemporaryDirectory to remove


def check_host(recipe: Recipe, work: Path, cache: Path) -> None:
    """Raise `UserError` when this host cannot build: tools, room, or another architecture's programs."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    tools = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils", "cpio": "cpio"}
    if missing := [package for tool, package in tools.items() if shutil.which(tool, path=path) is None]:
        raise UserError(
            "the programs that build an image are not installed",
            f"on Debian or Ubuntu: sudo apt-get install {' '.join(missing)}",
        )
    for place, room, variable in ((work, ROOM_FOR_WORK, "TMPDIR"), (cache, ROOM_FOR_RESULT, "HOSTAGENT_CACHE")):
        if (free := shutil.disk_usage(place).free) < room:
            raise UserError(
                f"building the image needs {room >> 20} MiB in {place}, and {free >> 20} MiB are free",
                f"free some space, or set {variable} to a folder on a larger disk",
            )
    native = _DEBIAN_ARCHITECTURES.get(platform.machine())
    if recipe.architecture != native and not (_BINFMT / f"qemu-{_machine(recipe)}").exists():
        raise UserError(
            f"this machine cannot run {recipe.architecture} programs, which building the image needs",
            "on Debian or Ubuntu: sudo apt-get install qemu-user-static binfmt-support",
        )


def _machine(recipe: Recipe) -> str:
    return "aarch64" if recipe.architecture == "arm64" else "x86_64"


def mmdebstrap_command(recipe: Recipe, mode: str, sources: Sequence[str], staging: Path) -> list[str]:
    """The mmdebstrap command line that leaves disk.qcow2, vmlinuz and initrd.img in `staging`."""
    hooks = [
        f'--essential-hook=tar-in "{staging}/overlay.tar" /',
        '--customize-hook=sh "$1/hostagent-build/customize" "$1"',
        *(f'--customize-hook=download /hostagent-build/{name} "{staging}/{name}"' for name in _FILES),
    ]
    return [
        "mmdebstrap", "--verbose",
        f"--mode={mode}", "--variant=minbase", "--format=null",
        f"--architectures={recipe.architecture}",
        f"--include={','.join(recipe.packages)}",
        *([] if sources else [f"--keyring={KEYRING}"]),
        '--aptopt=Acquire::Languages "none"',
        "--aptopt=Acquire::Retries 3",
        "--aptopt=Acquire::http::Timeout 20",
        "--dpkgopt=force-confold",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-include=/usr/share/locale/locale.alias",
        *hooks,
        CODENAMES[recipe.release], "-", *sources,
    ]  # fmt: skip
