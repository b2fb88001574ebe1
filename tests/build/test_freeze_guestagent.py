"""The frozen agent's demands on glibc, with a real library and the real dynamic loader; freezing in a root, with real
namespaces and a root that holds busybox and a stand-in for PyInstaller. test_check_frozen.py has the real ones."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build.scripts import BUILD, load

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


STAND_IN = """#!/bin/sh
set -eu
grep -q '^VmPeak' /proc/self/status
mkdir -p /freeze/dist/agent/_internal
ln -s _internal /freeze/dist/agent/link
{ echo "$*"; pwd; cat "$GUESTAGENT_SOURCE"/*/__init__.py "$PYTHONPATH/package.py" /freeze/specification/agent.*; } \\
    >/freeze/dist/agent/agent
chmod 755 /freeze/dist/agent/agent
echo "some warning"
"""
"""What the root has as /usr/bin/python3; what it prints must not get into the archive on its stdout."""


def root_archive(path: Path, python: str = STAND_IN) -> Path:
    """A root as mmdebstrap writes it, with a device that a normal user cannot make."""
    with tarfile.open(path, "w") as archive:
        for name in ("./bin", "./usr/bin", "./dev", "./proc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        device = tarfile.TarInfo("./dev/null")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(device)
        archive.add("/bin/busybox", "./bin/busybox")
        for name in ("sh", "env", "mkdir", "ln", "cat", "chmod", "grep"):
            link = tarfile.TarInfo(f"./bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        program = tarfile.TarInfo("./usr/bin/python3")
        program.mode, program.size = 0o755, len(python)
        archive.addfile(program, io.BytesIO(python.encode()))
    return path


def put_sources(folder: Path) -> None:
    """Tiny sources, packages and a specification with a program beside it."""
    for name in ("guestagent", "protocol"):
        (folder / "source" / name).mkdir(parents=True)
        (folder / "source" / name / "__init__.py").write_text(f"{name} ")
    (folder / "packages").mkdir()
    (folder / "packages" / "package.py").write_text("package ")
    (folder / "agent.py").write_text("program ")
    (folder / "agent.spec").write_text("spec")


def freeze_in(root: Path, folder: Path) -> str:
    """Freeze tiny sources in `root` into `folder`/scratch/dist; the log."""
    put_sources(folder)
    (folder / "scratch").mkdir()
    log = folder / "log"
    try:
        freeze_guestagent.run_in_root(root, folder / "packages", folder / "source", folder / "agent.spec",
                                      folder / "scratch", log)  # fmt: skip
    finally:
        assert not Path("/mnt/freeze").exists()
    return log.read_text()


def test_freezes_in_a_root_and_leaves_no_mount(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    log = freeze_in(root_archive(tmp_path / "root.tar"), tmp_path)
    frozen = tmp_path / "scratch" / "dist" / "agent"
    command, folder, read = (frozen / "agent").read_text().splitlines()
    assert command.startswith("-m PyInstaller ")
    assert command.endswith(" --distpath /freeze/dist /freeze/specification/agent.spec")
    assert (folder, read) == ("/", "guestagent protocol package program spec")
    assert (frozen / "agent").stat().st_mode & 0o777 == 0o755
    assert (frozen / "link").readlink() == Path("_internal")
    assert "some warning" in log
    assert Path("/proc/self/mounts").read_text() == mounts


def test_a_failure_in_the_root_is_told_with_its_words(tmp_path: Path) -> None:
    root = root_archive(tmp_path / "root.tar", "#!/bin/sh\necho no libpython here >&2\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        freeze_in(root, tmp_path)
    assert "no libpython here" in (tmp_path / "log").read_text()


def test_a_signal_ends_all_that_a_step_has_started(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
    try:
        with pytest.raises(SystemExit):
            freeze_guestagent.run(["sh", "-c", "sleep 100 & kill -USR1 $PPID; wait"], tmp_path / "log",
                                  inherited=(writer,))  # fmt: skip
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b""  # comes when nobody is left who could write


INTERPRETER = """#!/bin/sh
echo "$@" >>{calls}
case $2 in
    venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    pip) while [ "$1" != --target ]; do shift; done; mkdir "$2" ;;
esac
"""
"""Notes how it was called, puts itself into the venv that it makes, and makes the folder that it installs in."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the calls of the interpreter, which fetches no packages."""
    interpreter, calls = tmp_path / "python", tmp_path / "calls"
    interpreter.write_text(INTERPRETER.format(calls=calls))
    interpreter.chmod(0o755)
    monkeypatch.setattr(freeze_guestagent, "base_interpreter", lambda: str(interpreter))
    return calls


def test_packages_are_fetched_for_the_roots_python_and_kept(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "unfinished-killed").mkdir(parents=True)
    log = cache / "log"
    packages = freeze_guestagent.locked_packages(cache, log)
    assert freeze_guestagent.locked_packages(cache, log) == packages
    assert [path for path in cache.iterdir() if path != log] == [packages]
    _venv, install = calls.read_text().splitlines()
    assert install.startswith("-m pip install ")
    for option in ("--require-hashes", "--no-deps", "--only-binary=:all:", "--python-version=3.11"):
        assert option in install.split()
    monkeypatch.setattr(freeze_guestagent, "PIP_OPTIONS", ("--python-version=3.12",))
    assert freeze_guestagent.locked_packages(cache, log).exists()
    assert not packages.exists()


MAKES_A_PROGRAM = """#!/bin/sh
set -eu
mkdir -p /freeze/dist/agent
{ echo '#!/bin/sh'; echo 'exit 0'; } >/freeze/dist/agent/agent
chmod 755 /freeze/dist/agent/agent
"""


@pytest.fixture
def command(calls: Path, tmp_path: Path) -> list[str | Path]:
    """The script's command line to freeze tiny sources, whose packages were fetched, as 1.0 into trees/new."""
    put_sources(tmp_path)
    root_archive(tmp_path / "root.tar", MAKES_A_PROGRAM)
    cache = tmp_path / "cache"
    cache.mkdir()
    freeze_guestagent.locked_packages(cache, cache / "log")
    return [sys.executable, BUILD / "freeze_guestagent.py", "--source", tmp_path / "source", "--spec",
            tmp_path / "agent.spec", "--root", tmp_path / "root.tar", "--cache", cache, "--output",
            tmp_path / "trees" / "new", "--version", "1.0"]  # fmt: skip


def test_two_freezes_at_once_wait_for_each_other_and_share_the_result(
    command: list[str | Path], tmp_path: Path
) -> None:
    output = tmp_path / "trees" / "new"
    with freeze_guestagent.locked(tmp_path / "cache" / "freeze.lock"):
        freezes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for freeze in freezes:
            assert freeze.stdout is not None
            assert freeze.stdout.readline() == "waiting for another freeze to end\n"
    said = [freeze.communicate()[0] for freeze in freezes]
    assert [freeze.returncode for freeze in freezes] == [0, 0]
    assert sorted(said) == ["", "freezing agent 1.0\nchecking that it starts\n"]
    assert sorted(path.name for path in output.iterdir()) == ["VERSION", "agent"]
    assert list(output.parent.iterdir()) == [output]


def test_a_tree_of_another_version_is_replaced(command: list[str | Path], tmp_path: Path) -> None:
    output = tmp_path / "trees" / "new"
    output.mkdir(parents=True)
    (output / "VERSION").write_text("0.9\n")
    (output / "old").touch()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert (output / "VERSION").read_text() == "1.0\n"
    assert not (output / "old").exists()
