"""The frozen guest agent that an instance's seed carries: found, or frozen here and now.

Its version is the package's version plus a hash of everything that goes into it, so two builds with the same version
string are the same build. The guest compares that string at every boot, and the cache is keyed by it: editing a line of
the guest agent is enough to have it frozen again at the next `up`, and what was frozen once is not frozen twice.

It is frozen in a Debian 12 root (debian_root.py), never with this machine's own Python: that may be slow or unable to
run in an older guest, and would make another agent on every machine.

PyInstaller cannot build for another architecture than the one it runs on, so a foreign guest needs a tree that was
frozen on such a machine; HOSTAGENT_GUESTAGENT names it.

Rejected: shipping the frozen tree inside the wheel. It would tie the wheel to one architecture, while the freezing
takes less than a minute once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
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

_FREEZER = "freeze_guestagent.py"
_SPECIFICATION = "guestagent.spec"
_FREEZER_FILES = (_FREEZER, "requirements-guestagent.txt")

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


async def obtain_guest_agent(architecture: str, cache: Path, progress: Progress) -> GuestPayload:
    """The frozen guest agent for `architecture` (as `uname -m` says it), from the cache or frozen now.

    Freezing takes about 20 seconds the first time and 10 after a change, the root it happens in another 20, once.
    Raises `UserError` when one of them fails, when HOSTAGENT_GUESTAGENT names no frozen tree, or when the architecture
    is not this machine's.
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
    fingerprint = await trio.to_thread.run_sync(lambda: freeze_fingerprint(_inputs(source, build)))
    version = f"{metadata.version('hostagent')}+{fingerprint}"
    directory = cache / "guestagent" / f"{architecture}-{version}"
    await obtain_frozen_tree(build / _SPECIFICATION, directory, version, cache, progress)
    return GuestPayload(directory, version)


async def obtain_frozen_tree(spec: Path, tree: Path, version: str, cache: Path, progress: Progress) -> None:
    """See to it that the folder `tree` holds what the PyInstaller specification `spec` names, frozen for Debian 12.

    Of its siblings only the newest stay. Raises `UserError` when the root or the freezing fails.
    """
    if not (tree / _VERSION_FILE).is_file():
        root = await debian_root.obtain_debian_root(cache, _Lines(progress))
        await _freeze(spec, tree, version, root, cache, progress)
        await trio.to_thread.run_sync(_prune, tree)


def freeze_fingerprint(inputs: Iterable[tuple[str, bytes]]) -> str:
    """Hash of all that decides what a frozen tree is: `inputs` (name and content), what freezes them, and where."""
    _source, build = _sources()
    digest = hashlib.sha256(f"{platform.machine()}\0{debian_root.KEY}".encode())
    for name, content in (*inputs, *((name, (build / name).read_bytes()) for name in _FREEZER_FILES)):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


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
    if all((checkout / name).is_file() for name in (*_FREEZER_FILES, _SPECIFICATION)):
        return source, checkout
    return source, source / "hostagent" / "_build"


def _inputs(source: Path, build: Path) -> Iterator[tuple[str, bytes]]:
    for package in ("guestagent", "protocol"):
        for path in sorted((source / package).rglob("*.py")):
            yield path.relative_to(source).as_posix(), path.read_bytes()
    yield _SPECIFICATION, (build / _SPECIFICATION).read_bytes()


async def _freeze(spec: Path, tree: Path, version: str, root: Path, cache: Path, progress: Progress) -> None:
    """Run the freeze script, showing its lines; it makes `tree` whole or not at all."""
    source, build = _sources()
    scratch = cache / "freeze"
    command = [
        sys.executable, str(build / _FREEZER),
        "--source", str(source),
        "--spec", str(spec),
        "--root", str(root),
        "--cache", str(scratch),
        "--output", str(tree),
        "--version", version,
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
            f"mend what it says (often no access to the package index; see {scratch / 'freeze.log'}) and try again",
        ) from failed


def _prune(current: Path) -> None:
    """Delete all but the newest frozen trees. One that another process reads right now is among the newest."""
    frozen = [path.parent for path in current.parent.glob(f"*/{_VERSION_FILE}")]
    oldest_first = sorted(frozen, key=lambda path: path.stat().st_mtime)
    for stale in oldest_first[:-_KEPT]:
        if stale != current:
            shutil.rmtree(stale)
