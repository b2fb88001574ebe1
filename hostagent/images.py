"""The disk image of an instance: the first of its candidates that can be had.

A candidate is a file on this machine, a file behind an http(s) address, or an image that is built here from the
distribution's packages. They are tried in the order in which the configuration lists them; why one was passed over is
told with the image that was taken, or in the error when none could be had.

Local files are used where they are, not copied: whoever moves one away takes the disk of the instances built on it.

Refuses: formats other than qcow2 and raw, and guessing. QEMU is always told the format, because a raw disk that a guest
has written could otherwise pretend to be a qcow2 that names any file of the host as its backing file; for the same
reason an image with a backing file is not taken.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trio

from hostagent.errors import UserError
from hostagent.image_build import Release, build_image
from hostagent.image_cache import Image as Image  # what this module returns
from hostagent.image_download import UnreachableError, fetch, new_hasher
from hostagent.progress import Progress
from hostagent.qemu.programs import find_program

_PIECE = 2**20
_FETCHED = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One candidate: either `build`, or a `location` (http, https, file:// or a path) with what belongs to it."""

    location: str | None = None
    digest: str | None = None
    """`sha256:HEX` or `sha512:HEX`."""
    kernel: str | None = None
    kernel_digest: str | None = None
    command_line: str = ""
    initrd: str | None = None
    initrd_digest: str | None = None
    build: Release | None = None
    architecture: str = field(default_factory=platform.machine)
    """For `build`, as `uname -m` says it."""


async def obtain_image(candidates: Sequence[ImageSource], cache: Path, progress: Progress) -> Image:
    """The first of `candidates` that can be had, complete and verified.

    `Image.notes` says why earlier candidates were not taken. Raises `UserError` with all reasons when none can be had.
    """
    passed_over: list[UserError] = []
    unreachable: set[str | None] = set()
    for candidate in candidates:
        host = urlsplit(candidate.location or "").hostname
        if host and host in unreachable:
            continue
        try:
            image = await _obtain(candidate, cache, progress)
        except UserError as error:
            passed_over.append(error)
            if isinstance(error, UnreachableError):
                unreachable.add(host)
            continue
        notes = tuple(f"{error.message}; taking {image.origin}" for error in passed_over)
        return replace(image, notes=notes + image.notes)
    if len(passed_over) == 1:
        raise passed_over[0]
    reasons = "".join(f"\n- {message}" for message in dict.fromkeys(error.message for error in passed_over))
    hints = dict.fromkeys(error.hint for error in passed_over)
    raise UserError(f"no image can be had:{reasons}", "; or ".join(hints) or "add an entry to images")


async def _obtain(source: ImageSource, cache: Path, progress: Progress) -> Image:
    if source.build:
        return await build_image(source.build, source.architecture, cache, progress)
    if source.location is None:
        raise ValueError("an image source needs a location or a build")
    disk = await _file(source.location, source.digest, cache, progress)
    again = _location_hint(source.location, disk)
    image_format = await _check_image(disk, source.location, again)
    kernel = await _file(source.kernel, source.kernel_digest, cache, progress) if source.kernel else None
    initrd = await _file(source.initrd, source.initrd_digest, cache, progress) if source.initrd else None
    return Image(disk, image_format, kernel, initrd, source.command_line, source.location, again=again)


def _location_hint(location: str, disk: Path) -> str:
    """What to do when `disk` cannot be used."""
    if location.startswith(_FETCHED):
        return f"delete {disk}, so that it is downloaded again, or correct the location of the image"
    return "correct the location of the image"


async def _file(location: str, digest: str | None, cache: Path, progress: Progress) -> Path:
    """A complete and verified file on this machine."""
    if location.startswith(_FETCHED):
        return await fetch(location, digest, cache, progress)
    scheme, separator, _ = location.partition("://")
    if separator and scheme != "file":
        raise UserError(f"{location} cannot be fetched: {scheme} is not supported", "use http, https or a local file")
    path = Path(unquote(urlsplit(location).path) if separator else location).expanduser().absolute()
    await trio.to_thread.run_sync(_check_local, path, digest, progress, abandon_on_cancel=True)
    return path


def _check_local(path: Path, digest: str | None, progress: Progress) -> None:
    try:
        with path.open("rb") as file:
            if digest is None:
                return
            size, done, hasher = path.stat().st_size, 0, new_hasher(digest)
            while piece := file.read(_PIECE):
                hasher.update(piece)
                done += len(piece)
                trio.from_thread.run_sync(progress.update, f"verifying {path.name}", done, size)
    except OSError as exc:
        raise UserError(f"{path} cannot be read: {exc.strerror}", "correct the location of the image") from exc
    if hasher.hexdigest() != digest.partition(":")[2].lower():
        raise UserError(f"{path} does not have the digest {digest}", "fetch the file again, or correct the digest")


async def _check_image(disk: Path, location: str, again: str) -> str:
    """The format of the image, which must be whole and stand alone."""
    with disk.open("rb") as file:
        head = file.read(4)
    if head != b"QFI\xfb":
        if await trio.to_thread.run_sync(_looks_like_a_disk, disk):
            return "raw"
        raise _not_an_image(location, again, "it is neither qcow2 nor a raw disk")
    facts = await _qemu_img("info", "--output=json", disk)
    if facts is None:
        raise _not_an_image(location, again, "its header is damaged")
    if "backing-filename" in json.loads(facts):
        raise _not_an_image(location, again, "it needs another file as its backing file")
    if await _qemu_img("check", "-q", disk) is None:
        raise _not_an_image(location, again, "it is damaged or not complete")
    return "qcow2"


def _not_an_image(location: str, again: str, why: str) -> UserError:
    return UserError(f"{location} cannot be used as a disk image: {why}", again)


def _looks_like_a_disk(disk: Path) -> bool:
    """Whether there is a partition table or a file system of the ext family at the start."""
    with disk.open("rb") as file:
        start = file.read(2048)
    return start[510:512] == b"\x55\xaa" or start[0x438:0x43A] == b"\x53\xef"


async def _qemu_img(verb: str, option: str, disk: Path) -> bytes | None:
    """Standard output of qemu-img, or None when it found the image unusable."""
    command = [str(find_program("qemu-img")), verb, option, "-f", "qcow2", str(disk)]
    done = await trio.run_process(
        command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
    )
    leaks_only = verb == "check" and done.returncode == 3  # qemu-img(1): clusters are leaked, no data is affected
    return done.stdout if done.returncode == 0 or leaks_only else None
