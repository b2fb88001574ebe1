"""The instance's disk: a qcow2 overlay on an image that is shared and never written to.

An overlay grows with what the guest writes; the size it promises costs nothing. It is made once and afterwards only
ever enlarged: making it smaller would cut off data, and its image stays the one it was made from, whatever the
configuration says later.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trio

from hostagent.errors import UserError
from hostagent.image_cache import Image
from hostagent.qemu.programs import find_program

ROOM_TO_START = 256 * 2**20
"""Bytes that must be free where the disk is: less than a first boot writes, and a full disk stops the guest."""

GONE_HINT = "bring it back as it was, or delete the instance: a disk on another image would be damaged"
"""What to do when a file of the image that a disk is made from has gone."""

_LEAKS_ONLY = 3
"""Of `qemu-img check` (qemu-img(1)): clusters are leaked, no data is affected."""


async def prepare_disk(disk: Path, image: Image, size: int) -> tuple[int, str]:
    """Make the overlay `disk` on `image`, or enlarge the one there is to `size` bytes.

    Returns its size in bytes, and in words what was done.

    Raises `UserError` when there is no room, the image that the disk needs has gone or is damaged, or qemu-img is
    missing or fails.
    """
    _check_room(disk.parent)
    if not disk.exists():
        if not await _is_whole(image.disk, image.format):
            raise _damaged(image.disk, image.again)
        size = await _create(disk, image, size)
        return size, f"new, {_gib(size)}"
    found = await _info(disk)
    backing = found.get("full-backing-filename")
    if isinstance(backing, str) and not Path(backing).exists():
        raise UserError(
            f"the image that {disk} is made from has gone: {backing}",
            GONE_HINT,
        )
    if isinstance(backing, str) and not await _is_whole(Path(backing), str(found.get("backing-filename-format"))):
        again = image.again if Path(backing) == image.disk else f"delete {backing}"
        raise _damaged(Path(backing), f"{again}; and delete the instance, whose disk is made from what it was")
    present = found["virtual-size"]
    assert isinstance(present, int)
    if present < size:
        await _run("resize", "-f", "qcow2", str(disk), str(size))
        return size, f"enlarged from {_gib(present)} to {_gib(size)}"
    if present > size:
        return present, f"kept at {_gib(present)}: a disk is never made smaller"
    return present, _gib(present)


async def _create(disk: Path, image: Image, size: int) -> int:
    fresh = disk.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    image_size = (await _info(image.disk))["virtual-size"]
    assert isinstance(image_size, int)
    await _run(
        "create", "-q", "-f", "qcow2",
        "-F", image.format, "-b", str(image.disk),
        str(fresh), str(max(size, image_size)),
    )  # fmt: skip
    fresh.replace(disk)
    return max(size, image_size)


async def _is_whole(path: Path, image_format: str) -> bool:
    """Whether all that the image says it has is there, which takes 30 ms. A raw one says nothing of itself."""
    if image_format != "qcow2":
        return True
    command = [str(find_program("qemu-img")), "check", "-q", "-U", "-f", "qcow2", str(path)]
    done = await trio.run_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode in (0, _LEAKS_ONLY)


def _damaged(path: Path, hint: str) -> UserError:
    return UserError(f"the image {path} is damaged or not complete", hint)


async def _info(path: Path) -> dict[str, object]:
    # -U: a running QEMU holds the lock of an instance's disk, and nothing is written here.
    found: dict[str, object] = json.loads(await _run("info", "-U", "--output=json", str(path)))
    return found


async def _run(*arguments: str) -> bytes:
    """Run qemu-img; its standard output."""
    command: Sequence[str] = [str(find_program("qemu-img")), *arguments]
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise UserError(f"qemu-img {arguments[0]} failed: {words}", "mend what it says, then try again")
    return done.stdout


def _check_room(folder: Path) -> None:
    if (free := shutil.disk_usage(folder).free) < ROOM_TO_START:
        raise UserError(
            f"only {free // 2**20} MiB are free in {folder}, and an instance needs at least {ROOM_TO_START // 2**20}",
            "make room, or set HOSTAGENT_HOME to another disk",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.4g} GiB"
