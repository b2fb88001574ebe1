"""Building an image: the recipe, the command, the cache and the ways in which it fails.

mmdebstrap is a stand-in here, because the real one takes a minute; the tests in the full guest boot what it makes.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from hostagent import image_build
from hostagent.cidata import guest_files
from hostagent.errors import UserError
from hostagent.image_build import Recipe, build_image, check_host, image_of, mmdebstrap_command, recipe_for
from hostagent.image_cache import Image, entry_lock
from tests.fakes.silent_progress import SilentProgress

RECIPE = Recipe("debian-12", "amd64", b"overlay")
WORKS = """
for word in "$@"; do
    case $word in
        *"download /hostagent-build/"*) eval "set -- ${word#*=}"; echo built >"$3" ;;
    esac
done
echo "$PATH" >"$HOSTAGENT_TEST/path"
echo run >>"$HOSTAGENT_TEST/runs"
"""


class Builder:
    """A host on which mmdebstrap does what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.notes = folder / "notes"
        self._programs = folder / "programs"
        for new in (self.notes, self._programs, folder / "work"):
            new.mkdir()
        monkeypatch.setenv("PATH", f"{self._programs}:{os.environ['PATH']}")
        monkeypatch.setenv("HOSTAGENT_TEST", str(self.notes))
        monkeypatch.setenv("TMPDIR", str(folder / "work"))
        monkeypatch.setattr(image_build, "usable_mode", self._root)
        monkeypatch.setattr(image_build, "debian_sources", self._no_sources)

    async def _root(self) -> str:
        return "root"

    async def _no_sources(self, codename: str) -> list[str]:
        return []

    def mmdebstrap(self, script: str) -> None:
        program = self._programs / "mmdebstrap"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    async def build(self) -> Image:
        return await build_image("debian-12", "x86_64", self.cache, SilentProgress())

    @property
    def runs(self) -> int:
        runs = self.notes / "runs"
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    @property
    def entries(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "images").iterdir() if path.is_dir())


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder(tmp_path, monkeypatch)
    made.mmdebstrap(WORKS)
    return made


async def test_an_image_is_built_once(builder: Builder) -> None:
    image = await builder.build()
    assert await builder.build() == image
    assert builder.runs == 1
    for path in (image.disk, image.kernel, image.initrd):
        assert path is not None
        assert path.read_text() == "built\n"
    assert image.origin.startswith("debian-12 built from packages in 2")
    assert image.notes == ()
    assert builder.entries == [image.disk.parent.name]


async def test_two_at_once_build_one_image(builder: Builder) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(builder.build)
    assert builder.runs == 1


async def test_a_recipe_with_more_packages_has_an_entry_of_its_own(builder: Builder) -> None:
    recipe = Recipe("debian-12", "amd64", b"overlay", more_packages=("redis-server", "nginx-light"))
    for wanted in (recipe, RECIPE):
        image = await image_of(wanted, builder.cache, SilentProgress())
        assert image.disk.parent.name.startswith(wanted.key)
    assert len(builder.entries) == builder.runs == 2
    (asked_for,) = [word for word in mmdebstrap_command(recipe, "root", [], Path("/x")) if word.startswith("--include")]
    assert asked_for.endswith(",linux-image-cloud-amd64,redis-server,nginx-light")


async def test_tools_in_sbin_are_found(builder: Builder) -> None:
    await builder.build()
    assert "/usr/sbin" in (builder.notes / "path").read_text().strip().split(":")


async def test_a_failed_build_leaves_only_its_log(builder: Builder) -> None:
    builder.mmdebstrap("echo 'E: Unable to locate package cloud-init'; exit 25")
    with pytest.raises(UserError, match="does not have all packages") as caught:
        await builder.build()
    assert builder.entries == []
    [log] = (builder.cache / "images").glob("*.log")
    assert str(log) in caught.value.hint
    assert "Unable to locate" in log.read_text()


async def test_last_months_image_serves_when_this_months_cannot_be_built(builder: Builder) -> None:
    image = await builder.build()
    entry = image.disk.parent
    older = entry.with_name(entry.name.rpartition("-")[0] + "-202001")
    entry.rename(older)
    builder.mmdebstrap("echo 'Temporary failure resolving'; exit 25")
    image = await builder.build()
    assert image.disk.parent == older
    assert "2020-01" in image.origin
    [note] = image.notes
    assert "cannot be reached" in note


async def test_a_cancelled_build_is_stopped_and_leaves_nothing(builder: Builder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    builder.mmdebstrap(
        f'trap "echo stopped >{tmp_path}/stopped; exit 1" TERM\necho >{tmp_path}/started\nsleep 60 & wait'
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(builder.build)
        async with await trio.open_file(tmp_path / "started") as started:
            await started.read()
        nursery.cancel_scope.cancel()
    assert (tmp_path / "stopped").read_text() == "stopped\n"
    assert builder.entries == []


@pytest.mark.parametrize("name", ["disk.qcow2", "vmlinuz", "initrd.img"])
async def test_an_image_that_lost_a_file_says_what_to_delete(builder: Builder, name: str) -> None:
    entry = (await builder.build()).disk.parent
    (entry / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing or empty") as caught:
        await builder.build()
    assert str(entry) in caught.value.hint
    shutil.rmtree(entry)
    assert (await builder.build()).disk.parent == entry


async def test_what_a_killed_build_left_goes_with_the_next_one(builder: Builder) -> None:
    entry = (await builder.build()).disk.parent
    shutil.rmtree(entry)
    key = entry.name.rpartition("-")[0]
    for left in (f".build-{key}-abc", ".build-debian-13-amd64-0123-abc", ".build-debian-13-amd64-4567-abc"):
        (entry.parent / left).mkdir()
        (entry.parent / left / "vmlinuz").touch()
    async with entry_lock(entry.parent / ".debian-13-amd64-4567.lock", "the other image", SilentProgress()):
        await builder.build()
    assert builder.entries == [".build-debian-13-amd64-4567-abc", entry.name], "that one is being built"


def test_equal_recipes_have_equal_keys() -> None:
    assert recipe_for("debian-12", "x86_64", guest_files()) == recipe_for("debian-12", "amd64", guest_files())
    assert recipe_for("debian-12", "x86_64", guest_files()).key.startswith("debian-12-amd64-")


@pytest.mark.parametrize(
    "other",
    [
        Recipe("debian-13", "amd64", b"overlay"),
        Recipe("debian-12", "arm64", b"overlay"),
        Recipe("debian-12", "amd64", b""),
        Recipe("debian-12", "amd64", b"overlay", more_packages=("redis-server",)),
    ],
    ids=["release", "architecture", "overlay", "packages"],
)
def test_what_goes_into_the_image_decides_the_key(other: Recipe) -> None:
    assert other.key != RECIPE.key


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="'riscv64'") as caught:
        recipe_for("debian-12", "riscv64", guest_files())
    assert "x86_64" in caught.value.hint


def test_the_overlay_holds_what_starts_the_agent() -> None:
    with tarfile.open(fileobj=io.BytesIO(recipe_for("debian-12", "x86_64", guest_files()).overlay)) as overlay:
        members = {member.name: member for member in overlay}
    script = members["usr/local/lib/hostagent/update-from-seed"]
    assert (script.mode, script.uid, script.gid) == (0o755, 0, 0)
    assert members["etc/systemd/system/hostagent-guestagent.service"].mode == 0o644
    assert members["etc/systemd/system-generators/cloud-init-generator"].mode == 0o755
    assert {"hostagent-build/customize", "hostagent-build/init"} < members.keys()


def test_the_command_names_sources_or_the_keyring() -> None:
    with_sources = mmdebstrap_command(RECIPE, "root", ["deb https://mirror.example bookworm main"], Path("/staging"))
    assert with_sources[-3:] == ["bookworm", "-", "deb https://mirror.example bookworm main"]
    assert not any(word.startswith("--keyring") for word in with_sources)
    without = mmdebstrap_command(RECIPE, "unshare", [], Path("/staging"))
    assert without[-2:] == ["bookworm", "-"]
    assert "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg" in without
    assert "--mode=unshare" in without


def test_the_kernel_fits_the_architecture() -> None:
    for architecture, console in (("amd64", "ttyS0"), ("arm64", "ttyAMA0")):
        recipe = Recipe("debian-13", architecture, b"")
        assert f"linux-image-cloud-{architecture}" in recipe.packages
        assert f"console={console} " in recipe.command_line


def without_mmdebstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: None if name == "mmdebstrap" else which(name, path=path)
    )


def with_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize(
    ("change", "architecture", "message", "hint"),
    [
        (without_mmdebstrap, "amd64", "not installed", "sudo apt-get install mmdebstrap"),
        (with_a_full_disk, "amd64", "3072 MiB", "TMPDIR"),
        (lambda _: None, "arm64", "cannot run arm64 programs", "qemu-user-static"),
    ],
    ids=["tool", "room", "architecture"],
)
def test_a_host_that_cannot_build_says_what_is_missing(
    change: Callable[[pytest.MonkeyPatch], None],
    architecture: str,
    message: str,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(image_build, "_BINFMT", tmp_path)
    change(monkeypatch)
    with pytest.raises(UserError, match=message) as caught:
        check_host(Recipe("debian-12", architecture, b""), tmp_path, tmp_path)
    assert hint in caught.value.hint
