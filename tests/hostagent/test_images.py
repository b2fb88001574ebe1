"""Candidates are tried in order, verified, and passed over with a reason."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import trio

from hostagent import images
from hostagent.errors import UserError
from hostagent.image_cache import Image
from hostagent.images import ImageSource, obtain_image
from hostagent.progress import Progress
from tests.fakes.file_server import Behaviour, file_server
from tests.fakes.silent_progress import SilentProgress

RAW = b"\0" * 510 + b"\x55\xaa" + b"\0" * 4096
NOWHERE = "http://127.0.0.1:9/image.qcow2"
"""An address where nothing listens: port 9 is reserved for discarding."""


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    raw = tmp_path / "image.raw"
    raw.write_bytes(RAW + bytes(range(256)) * 1024)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    return path


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Building takes minutes; that it is asked for is what matters here."""

    async def build(release: str, architecture: str, cache: Path, progress: Progress) -> Image:
        return Image(tmp_path / "built", "qcow2", None, None, "", f"{release} for {architecture}", ("an old one",))

    monkeypatch.setattr(images, "build_image", build)


async def obtain(cache: Path, *candidates: ImageSource) -> Image:
    return await obtain_image(candidates, cache, SilentProgress())


async def test_a_local_file_is_used_where_it_is(tmp_path: Path, qcow2: Path) -> None:
    for location in (str(qcow2), f"file://{qcow2}"):
        image = await obtain(tmp_path, ImageSource(location, digest(qcow2.read_bytes())))
        assert (image.disk, image.format, image.origin, image.notes) == (qcow2, "qcow2", location, ())


async def test_a_home_folder_is_understood(tmp_path: Path, qcow2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await obtain(tmp_path, ImageSource("~/image.qcow2"))).disk == qcow2


async def test_a_raw_disk_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(RAW)
    assert (await obtain(tmp_path, ImageSource(str(tmp_path / "disk.img")))).format == "raw"


async def test_kernel_and_initrd_come_with_the_image(tmp_path: Path, qcow2: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    async with file_server([Behaviour(b"initrd")]) as server:
        source = ImageSource(
            str(qcow2), kernel=str(kernel), command_line="root=/dev/vda1", initrd=server.address,
            initrd_digest=digest(b"initrd"),
        )  # fmt: skip
        image = await obtain(tmp_path / "cache", source)
    assert image.kernel == kernel
    assert image.initrd is not None
    assert image.initrd.read_bytes() == b"initrd"
    assert image.command_line == "root=/dev/vda1"


async def test_a_fetched_image_is_checked(tmp_path: Path, qcow2: Path) -> None:
    content = qcow2.read_bytes()
    async with file_server([Behaviour(content)]) as server:
        image = await obtain(tmp_path / "cache", ImageSource(server.address))
    assert image.disk.read_bytes() == content
    assert image.origin == server.address


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>Please log in</html>" * 100, "neither qcow2 nor a raw disk"),
        (b"", "neither qcow2 nor a raw disk"),
        (b"QFI\xfb", "header is damaged"),
        (b"QFI\xfb" + b"\xff" * 4096, "header is damaged"),
    ],
)
async def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "disk").write_bytes(content)
    with pytest.raises(UserError, match=words):
        await obtain(tmp_path, ImageSource(str(tmp_path / "disk")))


async def test_a_truncated_image_is_refused(tmp_path: Path, qcow2: Path) -> None:
    whole = qcow2.read_bytes()
    qcow2.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="damaged"):
        await obtain(tmp_path, ImageSource(str(qcow2)))


async def test_a_fetched_image_that_was_damaged_since_can_be_had_again(tmp_path: Path, qcow2: Path) -> None:
    content = qcow2.read_bytes()
    async with file_server([Behaviour(content), Behaviour(content)]) as server:
        source = ImageSource(server.address, digest(content))
        image = await obtain(tmp_path / "cache", source)
        image.disk.write_bytes(content[: len(content) // 3])
        with pytest.raises(UserError, match="damaged or not complete") as caught:
            await obtain(tmp_path / "cache", source)
        assert caught.value.hint.startswith(f"delete {image.disk}, so that it is downloaded again")
        image.disk.unlink()
        assert (await obtain(tmp_path / "cache", source)).disk.read_bytes() == content


async def test_an_image_that_names_another_file_is_refused(tmp_path: Path, qcow2: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    await trio.run_process(["qemu-img", "create", "-q", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", overlay])
    with pytest.raises(UserError, match="needs another file"):
        await obtain(tmp_path, ImageSource(str(overlay)))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/nowhere/image.qcow2", "No such file"),
        ("/etc", "Is a directory"),
        ("ftp://127.0.0.1/image.qcow2", "ftp is not supported"),
    ],
)
async def test_a_location_without_a_file(tmp_path: Path, location: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        await obtain(tmp_path, ImageSource(location))
    assert caught.value.hint


async def test_a_local_file_with_a_wrong_digest_is_refused(tmp_path: Path, qcow2: Path) -> None:
    with pytest.raises(UserError, match="does not have the digest"):
        await obtain(tmp_path, ImageSource(str(qcow2), digest(b"another")))
    assert qcow2.exists()  # it is the user's


async def test_the_next_candidate_is_taken_and_it_is_said_why(tmp_path: Path) -> None:
    image = await obtain(tmp_path, ImageSource(NOWHERE), ImageSource(build="debian-12", architecture="aarch64"))
    assert image.origin == "debian-12 for aarch64"
    first, last = image.notes
    assert "127.0.0.1 cannot be reached" in first
    assert "taking debian-12" in first
    assert last == "an old one"


async def test_a_host_that_did_not_answer_is_not_asked_again(tmp_path: Path) -> None:
    sources = [ImageSource(f"{NOWHERE}?{number}") for number in range(3)]
    with pytest.raises(UserError, match="cannot be reached") as caught:
        await obtain(tmp_path, *sources)
    assert caught.value.message.count("cannot be reached") == 1


async def test_all_reasons_are_said_when_nothing_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        await obtain(tmp_path, ImageSource(NOWHERE), ImageSource("/nowhere/image.qcow2"))
    assert "cannot be reached" in caught.value.message
    assert "No such file" in caught.value.message
    assert "correct the location" in caught.value.hint
