"""A Debian 12 root as a tar archive: where the guest agent is frozen, on every machine.

A frozen program carries the Python that froze it and asks for about its glibc. This machine's Python may be anything:
one that pyenv compiled without profile-guided and link-time optimization makes an agent that needs nearly twice as long
for a round trip under software emulation (4.6 ms, against 2.6 with Debian 12's), and one that was linked with a newer
glibc than Debian 12's does not start in Debian 12 or Red Hat 9 guests. From this root the same comes out everywhere.

Its packages are only unpacked (mmdebstrap's variant `extract`): no maintainer script runs, nothing comes along that
freezing does not need, and it takes two thirds of the time and half the room of a root with the essential packages.

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
    "libc-bin", "bash", "coreutils",  # ldd, which is a script; env
)  # fmt: skip
"""What is in the root, with what it depends on."""

_OPTIONS = (
    "--variant=extract",
    "--format=tar",
    f"--include={','.join(PACKAGES)}",
    '--aptopt=Acquire::Languages "none"',
    "--aptopt=Acquire::Retries 3",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "info", "locale", "doc", "zoneinfo")),
)

WITHOUT_MMDEBSTRAP = (
    "on Debian or Ubuntu: sudo apt-get install mmdebstrap uidmap; on Fedora and its kin, where they are packaged:"
    " sudo dnf install mmdebstrap debian-keyring; anywhere else: run `make -C build guestagent` on a machine that has"
    " mmdebstrap, copy the folder it names here, and set HOSTAGENT_GUESTAGENT to its path"
)
"""What a user does who has no mmdebstrap."""

KEY = f"debian-12-{hashlib.sha256(' '.join(_OPTIONS).encode()).hexdigest()[:12]}"
"""Stands for what is in the root, except the state of the package mirror."""


async def obtain_debian_root(cache: Path, progress: Progress) -> Path:
    """The archive of the root, from the cache or built now (20 seconds, 90 MB).

    Raises `UserError` when a tool, packages, rights or room are missing to build it or to use it.
    """
    if shutil.which("mmdebstrap") is None:
        raise UserError(
            "the guest agent is frozen in a Debian 12 root, so that it is the same and quick wherever that happens,"
            " and mmdebstrap, which makes that root, is not installed",
            WITHOUT_MMDEBSTRAP,
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
