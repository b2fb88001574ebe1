"""What a user can get wrong: one clear message with a next step, exit status 1, and nothing is created."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.vm import Installation, installation

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)

pytestmark = pytest.mark.full_guest


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation in which nothing ever comes to be."""
    with installation(cache=tmp_path_factory.mktemp("cache")) as made:
        yield made


def fails(at: Installation, *arguments: str) -> str:
    """The words of a command that fails as it should."""
    done = at.try_run(*arguments, seconds=60)
    words = done.stderr.decode()
    assert done.returncode == 1, (done.stdout, words)
    assert "Traceback" not in words
    assert words.startswith(("error: ", "/"))  # mistakes in a file begin with its place
    assert "hint: " in words
    assert not at.home.exists() or not list(at.home.iterdir())
    return words


def test_five_mistakes_are_five_messages_with_their_places(at: Installation, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("cpu: 2\nmemory: lots\narch: vax\nimages: []\nportForwards:\n- guestPort: 99999\n")
    for command in ("up", "validate"):
        words = fails(at, command, str(file))
        for line in (1, 2, 3, 4, 6):
            assert f"{file}:{line}:" in words, words
        assert "cpus" in words


@pytest.mark.parametrize(
    "content",
    [os.urandom(4096), b"\0" * 100, BOMB.encode(), b"images: [\n", b"x" * 10_000_000, b"- a\n", b""],
    ids=["random", "zeroes", "bomb", "unfinished", "10 MB", "list", "empty"],
)
def test_a_file_that_is_no_configuration(at: Installation, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "strange.yaml"
    file.write_bytes(content)
    assert "strange.yaml" in fails(at, "up", str(file))


def test_a_missing_file_a_folder_and_a_bad_name(at: Installation, tmp_path: Path) -> None:
    for argument in (str(tmp_path / "missing.yaml"), str(tmp_path), "no-such-template"):
        fails(at, "up", argument)
    fails(at, "up", "default", "--name", "../escape")
    fails(at, "shell", "nobody", "--", "true")
    fails(at, "down")


def test_a_home_whose_sockets_would_have_too_long_paths(at: Installation, tmp_path: Path) -> None:
    long = Installation(tmp_path / ("x" * 100), {**at.environment, "HOSTAGENT_HOME": str(tmp_path / ("x" * 100))})
    assert "HOSTAGENT_HOME" in fails(long, "up", "default")


def test_no_qemu_on_the_path(at: Installation, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("env", "sh", "python3"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    configuration = tmp_path / "vm.yaml"
    configuration.write_text(f"images:\n- location: {_empty_image(tmp_path)}\n")
    without = Installation(at.home, {**at.environment, "PATH": str(tools)})
    words = fails(without, "up", str(configuration))
    assert "qemu" in words
    assert "package" in words


def _empty_image(folder: Path) -> Path:
    image = folder / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    return image


def test_an_image_that_is_none(at: Installation, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(os.urandom(100_000))
    configuration = tmp_path / "vm.yaml"
    configuration.write_text(f"images:\n- location: {image}\n")
    assert str(image) in fails(at, "up", str(configuration))


def test_wrong_usage_is_status_2(at: Installation) -> None:
    for arguments in (("portz",), ("ports", "--no-such-option"), ("shell", "vm", "ls")):
        done = at.try_run(*arguments)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
