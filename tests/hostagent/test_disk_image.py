"""An instance keeps the image of its disk, with the kernel that goes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hostagent import disk_image
from hostagent.disk_image import image_of_disk
from hostagent.errors import UserError
from hostagent.image_cache import Image
from hostagent.images import ImageSource
from hostagent.paths import InstancePaths
from hostagent.phases import ShownPhases

BOOKWORM = ImageSource(build="debian-12", architecture="x86_64")
TRIXIE = ImageSource(build="debian-13", architecture="x86_64")


class Images:
    """Gives each source an image of its own, and counts how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0

    async def obtain(self, sources: list[ImageSource], *_: object) -> Image:
        self.asked += 1
        name = str(sources[0].build)
        kernel = self.folder / f"{name}.vmlinuz"
        kernel.touch()
        disk = self.folder / f"{name}.qcow2"
        return Image(disk, "qcow2", kernel, None, "quiet", name, notes=("the better one is away",))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    images = Images(tmp_path)
    monkeypatch.setattr(disk_image, "obtain_image", images.obtain)
    return images


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    folder = tmp_path / "box"
    folder.mkdir()
    return InstancePaths(folder)


async def asked(paths: InstancePaths, *sources: ImageSource) -> tuple[Image, list[str]]:
    """The image, and what was warned of."""
    told: list[str] = []
    image = await image_of_disk(paths, sources, paths.directory, ShownPhases(lambda event: told.append(str(event))))
    return image, told


async def test_the_disks_image_stays_and_is_not_asked_for_again(paths: InstancePaths, images: Images) -> None:
    first, told = await asked(paths, BOOKWORM)
    assert "the better one is away" in told[0]
    paths.disk.touch()
    again, told = await asked(paths, BOOKWORM)
    assert (again, told) == (replace(first, notes=()), [])
    assert images.asked == 1


async def test_other_images_in_the_configuration_are_for_a_new_instance(paths: InstancePaths, images: Images) -> None:
    await asked(paths, BOOKWORM)
    paths.disk.touch()
    image, (told,) = await asked(paths, TRIXIE, BOOKWORM)
    assert (image.origin, images.asked) == ("debian-12", 1)
    assert "box keeps the image that its disk was made from (debian-12)" in told
    assert "hostagent delete box" in told


async def test_without_a_disk_the_choice_is_free(paths: InstancePaths, images: Images) -> None:
    await asked(paths, BOOKWORM)
    image, _ = await asked(paths, TRIXIE)
    assert image.origin == "debian-13"
    paths.disk.touch()
    image, _ = await asked(paths, TRIXIE)
    assert (image.origin, images.asked) == ("debian-13", 2)


async def test_a_kernel_that_has_gone_is_named(paths: InstancePaths, images: Images) -> None:
    image, _ = await asked(paths, BOOKWORM)
    paths.disk.touch()
    assert image.kernel is not None
    image.kernel.unlink()
    with pytest.raises(UserError, match=r"what box boots with has gone: .*debian-12\.vmlinuz") as caught:
        await asked(paths, BOOKWORM)
    assert "delete the instance" in caught.value.hint


async def test_a_disk_of_another_architecture_is_refused(paths: InstancePaths, images: Images) -> None:
    await asked(paths, BOOKWORM)
    paths.disk.touch()
    with pytest.raises(UserError, match="of a machine of x86_64, not of aarch64") as caught:
        await asked(paths, replace(BOOKWORM, architecture="aarch64"))
    assert "arch: x86_64" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"image": {}, "sources": []}', b'{"sources": [{}]}'])
async def test_a_record_that_makes_no_sense(paths: InstancePaths, images: Images, content: bytes) -> None:
    paths.disk.touch()
    paths.disk_image.write_bytes(content)
    with pytest.raises(UserError, match=r"image\.json cannot be used"):
        await asked(paths, BOOKWORM)
