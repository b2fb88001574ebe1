"""The frozen guest agent that an instance's seed carries: found, or frozen here and now.

Its version is the package's version plus a hash of everything that goes into it, so two builds with the same version
string are the same build. The guest compares that string at every boot, and the cache is keyed by it: editing a line of
the guest agent is enough to have it frozen again at the next `up`, and what was frozen once is not frozen twice.

What is frozen needs about the glibc of where that happened. So on a machine with a newer one than Debian 12's it
happens in a Debian 12 root (debian_root.py), and the agent runs in the same guests wherever it was frozen.

PyInstaller cannot build for another architecture than the one it runs on, so a foreign guest needs a tree that was
frozen on such a machine; HOSTAGENT_GUESTAGENT names it.

Rejected: shipping the frozen tree inside the wheel. It would tie the wheel to one architecture and glibc, while the
freezing needs nothing but Python and takes half a minute once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import trio

from hostagent import debian_root
from hostagent.errors import UserError

EXECUTABLE = "guestagent"
"""Name of the executable in a frozen tree."""

_VERSION_FILE = "VERSION"
_KEPT = 4
"""Frozen trees of 20 MB each that stay cached: enough to change between two branches without freezing anew."""

NEWEST_GLIBC = (2, 36)
"""Debian 12's. On a machine with a newer one the agent is frozen in a Debian 12 root."""

_BUILD_FILES = ("freeze_guestagent.py", "guestagent.spec", "requirements-guestagent.txt")

Progress = Callable[[str], None]
"""Called with one line for people whenever a step begins."""


@dataclass(frozen=True, slots=True)
class GuestPayload:
    """A frozen guest agent: `directory` holds the executable `guestagent`, `_internal/` and VERSION."""

    directory: Path
    version: str


class _Lines:
    """Shows the steps of work that reports through `hostagent.progress` as lines, each once."""

    def __init__(self, show: Progress) -> None:
        self._show = show
        self._step = ""

    def update(self, step: str, done: int, total: int | None) -> None:
        if step != self._step:
            self._step = step
            self._show(f"Debian 12 root to freeze in: {step}")


async def obtain_guest_agent(
    architecture: str, cache: Path, progress: Progress, *, in_debian_root: bool = False
) -> GuestPayload:
    """The frozen guest agent for `architecture` (as `uname -m` says it), from the cache or frozen now.

    It is frozen in a Debian 12 root when `in_debian_root` says so or this machine's glibc is newer than `NEWEST_GLIBC`.
    Freezing takes about 30 seconds the first time and 10 after a change, the root another minute, once. Raises
    `UserError` when one of them fails, when HOSTAGENT_GUESTAGENT names no frozen tree, or when the architecture is not
    this machine's.
    """
    if chosen := os.environ.get("HOSTAGENT_GUESTAGENT"):
        return await trio.to_thread.run_sync(_given, Path(chosen))
    if architecture != platform.machine():
        raise UserError(
            f"there is no guest agent for {architecture} guests on this {platform.machine()} machine",
            f"run `make -C build guestagent` on a {architecture} machine, copy the folder it names here, "
            "and set HOSTAGENT_GUESTAGENT to its path",
        )
    source, build = _sources()
    in_debian_root = in_debian_root or glibc_is_too_new(platform.libc_ver())
    version = await trio.to_thread.run_sync(_version, source, build, in_debian_root)
    trees = cache / "guestagent"
    directory = trees / f"{architecture}-{version}"
    if not (directory / _VERSION_FILE).is_file():
        root = await debian_root.obtain_debian_root(cache, _Lines(progress)) if in_debian_root else None
        await _freeze(source, build, directory, version, root, progress)
        await trio.to_thread.run_sync(prune, trees, directory)
    return GuestPayload(directory, version)


def glibc_is_too_new(libc: tuple[str, str]) -> bool:
    """Whether what is frozen with this C library (as `platform.libc_ver` says it) starts in newer guests only."""
    name, version = libc
    return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) > NEWEST_GLIBC


def _given(directory: Path) -> GuestPayload:
    """The tree that the user named."""
    directory = directory.absolute()
    try:
        version = (directory / _VERSION_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(
            f"HOSTAGENT_GUESTAGENT names {directory}, which holds no frozen guest agent: {exc}",
            "name the folder that `make -C build guestagent` printed, or unset the variable",
        ) from exc
    if not version or not os.access(directory / EXECUTABLE, os.X_OK):
        raise UserError(
            f"HOSTAGENT_GUESTAGENT names {directory}, which is not a complete frozen guest agent",
            f"it must hold an executable {EXECUTABLE} and a version in {_VERSION_FILE}; freeze it again, "
            "or unset the variable",
        )
    return GuestPayload(directory, version)


def _sources() -> tuple[Path, Path]:
    """The folder with the packages to freeze, and the one with the build files: a checkout's, or a wheel's."""
    source = Path(__file__).resolve().parent.parent
    checkout = source / "build"
    if all((checkout / name).is_file() for name in _BUILD_FILES):
        return source, checkout
    return source, source / "hostagent" / "_build"


def _version(source: Path, build: Path, in_debian_root: bool) -> str:
    """Package version and a hash of all that decides what the frozen tree is."""
    place = debian_root.KEY if in_debian_root else f"{sys.version}\0{platform.libc_ver()}"
    digest = hashlib.sha256(f"{platform.machine()}\0{place}".encode())
    for name, content in _inputs(source, build):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{metadata.version('hostagent')}+{digest.hexdigest()[:12]}"


def _inputs(source: Path, build: Path) -> Iterator[tuple[str, bytes]]:
    for package in ("guestagent", "protocol"):
        for path in sorted((source / package).rglob("*.py")):
            yield path.relative_to(source).as_posix(), path.read_bytes()
    for name in _BUILD_FILES:
        yield name, (build / name).read_bytes()


async def _freeze(
    source: Path, build: Path, directory: Path, version: str, root: Path | None, progress: Progress
) -> None:
    """Run the freeze script, showing its lines; it makes `directory` whole or not at all."""
    trees = directory.parent
    command = [
        sys.executable, str(build / "freeze_guestagent.py"),
        "--source", str(source),
        "--cache", str(trees),
        "--output", str(directory),
        "--version", version,
        *(["--root", str(root)] if root else []),
    ]  # fmt: skip
    start = partial(trio.run_process, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, capture_stderr=True)
    try:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            assert process.stdout is not None
            pending = b""
            async for chunk in process.stdout:
                *whole, pending = (pending + chunk).split(b"\n")
                for line in whole:
                    progress(line.decode(errors="replace"))
    except* subprocess.CalledProcessError as group:
        failed = group.exceptions[0]
        assert isinstance(failed, subprocess.CalledProcessError)  # the nursery has one child
        complaint = failed.stderr.decode(errors="replace").strip()
        raise UserError(
            f"freezing the guest agent failed:\n{complaint}",
            f"mend what it says (often no access to the package index, or no libpython; see {trees / 'freeze.log'}) "
            "and try again",
        ) from failed


def prune(trees: Path, current: Path) -> None:
    """Delete all but the newest frozen trees. One that another process reads right now is among the newest."""
    frozen = [path.parent for path in trees.glob(f"*/{_VERSION_FILE}")]
    oldest_first = sorted(frozen, key=lambda path: path.stat().st_mtime)
    for stale in oldest_first[:-_KEPT]:
        if stale != current:
            shutil.rmtree(stale)
