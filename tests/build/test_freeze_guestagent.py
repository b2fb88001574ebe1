"""The frozen agent's demands on glibc, with a real library and the real dynamic loader."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build.scripts import load

LIBRARY = Path(sys.modules[msgpack.Packer.__module__].__file__ or "")
"""A locked wheel's library: it asks for GLIBC_2.14 because of memcpy, and for nothing else of that version."""


freeze_guestagent = load("freeze_guestagent")


def elf_hash(name: bytes) -> int:
    """The hash of a version's name (System V ABI, Hash Table)."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high
    return value


def from_the_future(elf: bytes) -> bytes:
    """`elf` asking for a glibc that nobody has: GLIBC_9.14 where it asked for GLIBC_2.14."""
    old, new = b"GLIBC_2.14", b"GLIBC_9.14"
    old_hash, new_hash = (struct.pack("<I", elf_hash(name)) for name in (old, new))
    assert elf.count(old_hash) == 1
    return elf.replace(old, new).replace(old_hash, new_hash)


COPY = "import msgpack._cmsgpack as m; assert m.unpackb(m.Packer().pack(bytes(99999))) == bytes(99999)"
"""A program that calls memcpy."""


def run_with(elf: bytes, folder: Path, program: str = COPY) -> subprocess.CompletedProcess[str]:
    """How `program` fares with these bytes as msgpack's extension module, every symbol looked up at once (ld.so(8))."""
    package = folder / "msgpack"
    package.mkdir()
    for source in LIBRARY.parent.glob("*.py"):
        (package / source.name).write_bytes(source.read_bytes())
    (package / LIBRARY.name).write_bytes(elf)
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env={"LD_BIND_NOW": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip


def test_a_missing_version_stops_the_loader(tmp_path: Path) -> None:
    done = run_with(from_the_future(LIBRARY.read_bytes()), tmp_path)
    assert "GLIBC_9.14' not found" in done.stderr


def test_a_relaxed_version_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_guestagent, "RELAXED", {b"GLIBC_9.14": {b"memcpy"}})
    done = run_with(freeze_guestagent.relax_versions(from_the_future(LIBRARY.read_bytes())), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_symbol_that_nobody_calls_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_guestagent, "RELAXED", {b"GLIBC_9.14": {b"memcpz"}})
    elf = from_the_future(LIBRARY.read_bytes()).replace(b"\0memcpy\0", b"\0memcpz\0")
    (tmp_path / "before").mkdir()
    done = run_with(freeze_guestagent.relax_versions(elf), tmp_path / "before", "import msgpack._cmsgpack")
    assert "undefined symbol: memcpz" in done.stderr

    monkeypatch.setattr(freeze_guestagent, "NEVER_CALLED", {b"memcpz"})
    (tmp_path / "after").mkdir()
    done = run_with(freeze_guestagent.relax_versions(elf), tmp_path / "after", "import msgpack._cmsgpack")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_version_with_other_symbols_too_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_guestagent, "RELAXED", {b"GLIBC_2.14": {b"hypot"}, b"GLIBC_2.2.5": {b"memcmp"}})
    elf = LIBRARY.read_bytes()
    assert freeze_guestagent.relax_versions(elf) == elf


@given(st.binary().filter(lambda data: not data.startswith(b"\x7fELF")))
def test_what_is_no_elf_file_stays(data: bytes) -> None:
    assert freeze_guestagent.relax_versions(data) == data
