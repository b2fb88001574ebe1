from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest
import trio

from hostagent import debian_root, guest_payload
from hostagent.errors import UserError
from hostagent.guest_payload import GuestPayload, obtain_guest_agent
from hostagent.progress import Progress

HERE = platform.machine()

FAKE_FREEZER = """
import argparse, pathlib, sys
parser = argparse.ArgumentParser()
for name in ("source", "spec", "cache", "output", "version", "root"):
    parser.add_argument("--" + name)
arguments = parser.parse_args()
{body}
"""

MAKES_A_TREE = """
print("freezing", flush=True)
output = pathlib.Path(arguments.output)
output.mkdir(parents=True)
(output / "guestagent").write_text("#!/bin/sh\\n")
(output / "guestagent").chmod(0o755)
(output / "VERSION").write_text(arguments.version + "\\n")
(output / "root").write_text(arguments.root)
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def _no_given_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTAGENT_GUESTAGENT", raising=False)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Debian root that is obtained; making a real one takes half a minute."""

    async def obtain_debian_root(cache: Path, progress: Progress) -> Path:
        for done in range(2):
            progress.update("installing packages", done, 2)
        return tmp_path / "root.tar"

    monkeypatch.setattr(debian_root, "obtain_debian_root", obtain_debian_root)
    return tmp_path / "root.tar"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkout as far as freezing looks at it, with a freezer that needs no PyInstaller."""
    source = tmp_path / "checkout"
    for package in ("guestagent", "protocol"):
        (source / package).mkdir(parents=True)
        (source / package / "__init__.py").write_text("")
    (source / "build").mkdir()
    (source / "build" / "guestagent.spec").write_text("spec")
    (source / "build" / "requirements-guestagent.txt").write_text("trio==1")
    (source / "build" / "freeze_guestagent.py").write_text(FAKE_FREEZER.format(body=MAKES_A_TREE))
    (source / "hostagent").mkdir()
    monkeypatch.setattr(guest_payload, "__file__", str(source / "hostagent" / "guest_payload.py"))
    return source


async def obtain(cache: Path, lines: list[str] | None = None) -> GuestPayload:
    return await obtain_guest_agent(HERE, cache, (lines if lines is not None else []).append)


async def test_freezes_once_and_shows_its_progress(checkout: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    shown = ["Debian 12 root to freeze in: installing packages", "freezing", "done"]
    first = await obtain(tmp_path / "cache", lines)
    assert lines == shown
    assert (first.directory / "VERSION").read_text().strip() == first.version
    assert (first.directory / "guestagent").is_file()
    assert await obtain(tmp_path / "cache", lines) == first
    assert lines == shown


@pytest.mark.parametrize(
    "changed", ["guestagent/__init__.py", "protocol/__init__.py", "protocol/new.py", "build/guestagent.spec",
                "build/requirements-guestagent.txt"]
)  # fmt: skip
async def test_every_input_changes_the_version(checkout: Path, tmp_path: Path, changed: str) -> None:
    before = await obtain(tmp_path / "cache")
    await trio.Path(checkout / changed).write_text("something else")
    after = await obtain(tmp_path / "cache")
    assert before.version != after.version
    assert before.directory != after.directory


async def test_a_file_that_is_not_frozen_changes_nothing(checkout: Path, tmp_path: Path) -> None:
    before = await obtain(tmp_path / "cache")
    await trio.Path(checkout / "protocol" / "SPEC.md").write_text("words")
    assert await obtain(tmp_path / "cache") == before


async def test_a_wheel_keeps_the_build_files_inside_the_package(checkout: Path, tmp_path: Path) -> None:
    before = await obtain(tmp_path / "cache")
    shutil.move(checkout / "build", checkout / "hostagent" / "_build")
    assert (await obtain(tmp_path / "other-cache")).version == before.version


async def test_a_failed_freeze_is_an_error_with_the_reason(checkout: Path, tmp_path: Path) -> None:
    freezer = FAKE_FREEZER.format(body="print('no libpython here', file=sys.stderr); sys.exit(1)")
    await trio.Path(checkout / "build" / "freeze_guestagent.py").write_text(freezer)
    with pytest.raises(UserError, match="no libpython here") as caught:
        await obtain(tmp_path / "cache")
    assert "freeze.log" in caught.value.hint


async def test_only_the_newest_trees_are_kept(checkout: Path, tmp_path: Path) -> None:
    made = []
    for number in range(6):
        await trio.Path(checkout / "guestagent" / "__init__.py").write_text(f"NUMBER = {number}")
        made.append((await obtain(tmp_path / "cache")).directory)
    assert [path.exists() for path in made] == [False, False, True, True, True, True]


async def test_a_foreign_architecture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="riscv64") as caught:
        await obtain_guest_agent("riscv64", tmp_path, print)
    assert "HOSTAGENT_GUESTAGENT" in caught.value.hint


async def test_a_given_tree_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "VERSION").write_text("9.9+feed\n")
    (tmp_path / "guestagent").write_text("#!/bin/sh\n")
    (tmp_path / "guestagent").chmod(0o755)
    monkeypatch.setenv("HOSTAGENT_GUESTAGENT", str(tmp_path))
    assert await obtain_guest_agent("riscv64", tmp_path / "cache", print) == GuestPayload(tmp_path, "9.9+feed")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("present", [(), ("guestagent",), ("VERSION",)])
async def test_an_incomplete_given_tree_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]
) -> None:
    for name in present:
        (tmp_path / name).write_text("1.0\n")
    monkeypatch.setenv("HOSTAGENT_GUESTAGENT", str(tmp_path))
    with pytest.raises(UserError, match="HOSTAGENT_GUESTAGENT") as caught:
        await obtain(tmp_path / "cache")
    assert "unset" in caught.value.hint


async def test_every_machine_freezes_the_same_in_the_root(
    checkout: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await obtain(tmp_path / "cache")
    assert (here.directory / "root").read_text() == str(root)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.99"))
    monkeypatch.setattr(sys, "version", "4.0.0 (main) [another compiler]")
    assert (await obtain(tmp_path / "other-cache")).version == here.version


async def test_another_recipe_of_the_root_is_another_version(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await obtain(tmp_path / "cache")
    monkeypatch.setattr(debian_root, "KEY", "debian-12-other")
    assert (await obtain(tmp_path / "cache")).version != before.version
