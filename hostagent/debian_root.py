"""A Debian 12 root as a tar archive: where the guest agent is frozen when this machine's own glibc is too new.

A frozen program asks for about the glibc of the machine that froze it. On Debian 13 or Ubuntu 24.04 that is more than
Debian 12 or Red Hat 9 guests have, so freeze_guestagent.py takes this root instead, which is the same everywhere.

An archive and not a folder, because mmdebstrap's user namespace owns a folder's files under ids that its user may not
delete; with an archive root and normal users are alike, and the cache can be deleted by hand. It stays cached until
its recipe changes: it is no guest, so a month without updates does not hurt.

Rejected: Debian 11, whose Python (3.9) is too old for us.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hostagent.debian_sources import CODENAMES, KEYRING, debian_sources, proxy_environment
from hostagent.errors import UserError
from hostagent.image_cache import disk_errors, entry_lock
from hostagent.mmdebstrap import run_mmdebstrap, usable_mode
from hostagent.progress import Progress

PACKAGES = (
    "python3",
    "libpython3.11",  # PyInstaller freezes the shared library; Debian's python3 has it linked in
    "binutils",  # objdump finds the libraries, strip makes them smaller
)
"""What is in the root besides Debian's essential packages."""

_OPTIONS = (
    "--variant=essential",
    "--format=tar",
    f"--include={','.join(PACKAGES)}",
    '--aptopt=Acquire::Languages "none"',
    "--aptopt=Acquire::Retries 3",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "info", "locale", "doc", "zoneinfo")),
)

KEY = f"debian-12-{hashlib.sha256(' '.join(_OPTIONS).encode()).hexdigest()[:12]}"
"""Stands for what is in the root, except the state of the package mirror."""


async def obtain_debian_root(cache: Path, progress: Progress) -> Path:
    """The archive of the root, from the cache or built now (half a minute, 150 MB).

    Raises `UserError` when a tool, packages, rights or room are missing to build it or to use it.
    """
    if shutil.which("mmdebstrap") is None:
        raise UserError(
            "the guest agent must be frozen in a Debian 12 root, because this machine's glibc is newer than the"
            " guests', and mmdebstrap, which makes that root, is not installed",
            "on Debian or Ubuntu: sudo apt-get install mmdebstrap uidmap",
        )
    mode = await usable_mode()
    folder = cache / "debian-root"
    archive = folder / f"{KEY}.tar"
    async with entry_lock(folder / ".lock", "the Debian root to freeze in", progress):
        if not archive.exists():
            await _build(archive, mode, progress)
    return archive


async def _build(archive: Path, mode: str, progress: Progress) -> None:
    for stale in archive.parent.glob("*.tar"):
        stale.unlink()
    sources = await debian_sources(CODENAMES["debian-12"])
    environment = {**await proxy_environment(), "LC_ALL": "C.UTF-8"}
    environment.setdefault("TMPDIR", "/var/tmp")  # noqa: S108 (mmdebstrap makes a folder of its own in it)
    with disk_errors(archive.parent), tempfile.TemporaryDirectory(prefix=".build-", dir=archive.parent) as staging:
        unfinished = Path(staging) / archive.name
        command = mmdebstrap_command(mode, sources, unfinished)
        try:
            await run_mmdebstrap(command, environment, archive.with_suffix(".log"), progress)
        except UserError as error:
            raise UserError(f"no Debian root to freeze the guest agent in: {error.message}", error.hint) from error
        # What is renamed must be on the disk first: a power cut must not leave a complete-looking archive.
        os.sync()
        unfinished.rename(archive)


def mmdebstrap_command(mode: str, sources: Sequence[str], target: Path) -> list[str]:
    """The mmdebstrap command line that writes the root to the archive `target`."""
    keyring = [] if sources else [f"--keyring={KEYRING}"]
    return ["mmdebstrap", "--verbose", f"--mode={mode}", *_OPTIONS, *keyring,
            CODENAMES["debian-12"], str(target), *sources]  # fmt: skip
