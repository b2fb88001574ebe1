"""Seeds with a stand-in for the frozen agent, and what a guest would see of them."""

from __future__ import annotations

import io
from pathlib import Path

from pycdlib import PyCdlib
from pycdlib.dr import DirectoryRecord

from hostagent.cidata import Account, Seed, seed_iso


def agent_tree(folder: Path, text: str = "agent") -> Path:
    """A onedir tree as PyInstaller makes it: an executable, a deep folder, a link, a file without x bit."""
    deep = folder / "_internal" / "package-1.0.dist-info" / "a" / "b" / "c" / "d" / "e" / "f" / "g"
    deep.mkdir(parents=True)
    (deep / "a file with a long name, and more than one dot.so.1.2.3").write_text(text)
    (folder / "_internal" / "library.so.1").write_text(f"library of {text}")
    (folder / "_internal" / "library.so").symlink_to("library.so.1")
    (folder / "_internal" / "empty").touch()
    (folder / "guestagent").write_text(f"#!/bin/sh\necho {text}\n")
    (folder / "guestagent").chmod(0o755)
    (folder / "VERSION").write_text("what the freezer wrote\n")
    return folder


def make_seed(folder: Path, version: str = "1.0", account: Account | None = None, mac: str | None = None) -> Seed:
    """A seed whose agent lies in the new folder `folder`."""
    return Seed("guest", account or Account("alice", 1234), agent_tree(folder, f"agent {version}"), version, mac)


def unpack(seed: Seed, folder: Path) -> Path:
    """The seed's files below `folder`, with their modes, as Linux would mount it (Rock Ridge)."""
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(seed_iso(seed)))
    try:
        for path, folders, files in iso.walk(rr_path="/"):
            here = folder / path.strip("/")
            here.mkdir(parents=True, exist_ok=True)
            for name in files:
                rock_ridge = f"{path.rstrip('/')}/{name}"
                with (here / name).open("wb") as file:
                    iso.get_file_from_iso_fp(file, rr_path=rock_ridge)
                record = iso.get_record(rr_path=rock_ridge)
                assert isinstance(record, DirectoryRecord)
                assert record.rock_ridge is not None
                (here / name).chmod(record.rock_ridge.get_file_mode() & 0o777)
            assert all(isinstance(name, str) for name in folders)
    finally:
        iso.close()
    return folder
