"""Overlays are made once, only ever enlarged, and never lose their image without a word. With the real qemu-img."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.image_cache import Image
from hostagent.qemu import disks
from hostagent.qemu.disks import prepare_disk

GIB = 2**30


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path, raw = tmp_path / "image.qcow2", tmp_path / "image.raw"
    raw.write_bytes(os.urandom(2**20))
    os.truncate(raw, GIB)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    return Image(path, "qcow2", None, None, "", "made for the test", again="make it again")


def virtual_size(disk: Path) -> int:
    shown = subprocess.run(["qemu-img", "info", "--output=json", disk], check=True, capture_output=True).stdout
    size: int = json.loads(shown)["virtual-size"]
    return size


async def test_a_new_disk_has_the_size_asked_for_and_costs_nothing(tmp_path: Path, image: Image) -> None:
    disk = tmp_path / "disk.qcow2"
    assert await prepare_disk(disk, image, 20 * GIB) == (20 * GIB, "new, 20 GiB")
    assert virtual_size(disk) == 20 * GIB
    assert disk.stat().st_size < 2**20


async def test_a_disk_is_never_smaller_than_its_image(tmp_path: Path, image: Image) -> None:
    disk = tmp_path / "disk.qcow2"
    assert await prepare_disk(disk, image, 1024) == (GIB, "new, 1 GiB")
    assert virtual_size(disk) == GIB


async def test_an_existing_disk_grows_and_never_shrinks(tmp_path: Path, image: Image) -> None:
    disk = tmp_path / "disk.qcow2"
    await prepare_disk(disk, image, 2 * GIB)
    assert await prepare_disk(disk, image, 3 * GIB) == (3 * GIB, "enlarged from 2 GiB to 3 GiB")
    assert virtual_size(disk) == 3 * GIB
    assert await prepare_disk(disk, image, 2 * GIB) == (3 * GIB, "kept at 3 GiB: a disk is never made smaller")
    assert virtual_size(disk) == 3 * GIB


async def test_an_image_that_has_gone_is_named(tmp_path: Path, image: Image) -> None:
    disk = tmp_path / "disk.qcow2"
    await prepare_disk(disk, image, 2 * GIB)
    image.disk.unlink()
    with pytest.raises(UserError, match=r"image\.qcow2"):
        await prepare_disk(disk, image, 2 * GIB)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_header(content: bytes) -> bytes:
    return b"QFI\xfb no image at all" + content[22:]


@pytest.mark.parametrize("damage", [truncated, without_header])
async def test_a_damaged_image_is_said_before_anything_boots_from_it(
    tmp_path: Path, image: Image, damage: Callable[[bytes], bytes]
) -> None:
    used, disk = tmp_path / "used.qcow2", tmp_path / "disk.qcow2"
    await prepare_disk(used, image, 2 * GIB)
    image.disk.write_bytes(damage(image.disk.read_bytes()))
    with pytest.raises(UserError, match=r"image\.qcow2 is damaged or not complete") as caught:
        await prepare_disk(disk, image, 2 * GIB)
    assert caught.value.hint == "make it again"
    assert not disk.exists()
    with pytest.raises(UserError, match=r"image\.qcow2 is damaged or not complete") as caught:
        await prepare_disk(used, image, 2 * GIB)
    assert caught.value.hint == "make it again; and delete the instance, whose disk is made from what it was"


async def test_qemu_img_s_own_words_reach_the_user(tmp_path: Path, image: Image) -> None:
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"QFI\xfb no image at all")
    with pytest.raises(UserError, match="qemu-img info failed: "):
        await prepare_disk(disk, image, 2 * GIB)


async def test_without_qemu_img_the_user_hears_how_to_get_it(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(UserError, match="qemu-img"):
        await prepare_disk(tmp_path / "disk.qcow2", image, GIB)


async def test_a_full_disk_is_said_before_anything_is_made(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "ROOM_TO_START", 2**60)
    with pytest.raises(UserError, match="MiB are free"):
        await prepare_disk(tmp_path / "disk.qcow2", image, GIB)
    assert not (tmp_path / "disk.qcow2").exists()
