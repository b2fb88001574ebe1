"""Freezes the guest agent with PyInstaller: a folder with the executable, `_internal/` and VERSION.

Works from a checkout and from an installed wheel, on the standard library alone. What is frozen is Python and libraries
of a Debian 12 root (--root, made by hostagent/debian_root.py), never this machine's: the same comes out everywhere,
Debian's Python is built with profile-guided and link-time optimization, and its glibc is the oldest with a Python that
is new enough for us.

The packages are those of requirements-guestagent.txt and nothing else, because PyInstaller follows whatever it finds
installed. pip fetches them here, where its configuration, certificates and proxies work, for the root's Python; they
are kept in the cache folder until the lock file changes. Rejected: pip in the chroot (each of those would have to be
carried in, folders of wheels too).

PyInstaller runs in a chroot on a tmpfs, in namespaces that end with it, so nothing is left behind or mounted on the
host, with root's rights or without, and it needs no network. Only archives go in and out, because a normal user's files
belong to nobody in there.

Promises: the output folder appears whole or not at all (one rename), was started once and passed its own self-test,
and a second run at the same time waits for the first, whose result it takes when it was to make the same. Lines on
stdout are progress for people; all else is in the log.

The frozen agent needs about the root's glibc (2.36), or a newer one; check_frozen.py says which. Where a newer glibc is
asked for by nothing but a function that older ones have too, `relax_versions` drops that demand: Debian 12's Python
asks for 2.35 because of `hypot` alone, and so runs on Red Hat 9 and its kin (2.34).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent

RELAXED = {b"GLIBC_2.35": {b"hypot"}, b"GLIBC_2.36": {b"arc4random_buf"}}
"""Symbols by version that an older glibc may as well bind to its own definition, or that nobody calls.

hypot has the same signature and results in all versions; the new one only left out the SVID error handling (glibc's
NEWS for 2.35)."""

NEVER_CALLED = {b"arc4random_buf"}
"""Symbols that may be missing altogether. Debian links libexpat into libpython, and an XML parser salts its hashes with
this; the agent has no `xml` (check_frozen.py sees to that)."""

PIP_OPTIONS = (
    "--only-binary=:all:", "--no-deps", "--no-compile", "--python-version=3.11", "--implementation=cp",
    f"--platform=manylinux2014_{platform.machine()}",
    *(f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in range(17, 35)),
)  # fmt: skip
"""Options with which pip takes the packages for Debian 12's Python whatever runs pip, for glibc 2.34 at most."""

IN_ROOT = """
PATH=$PATH:/usr/sbin:/sbin
mount --make-rprivate /
mount -t tmpfs -o mode=755 root /mnt
tar --extract --file=- --directory=/mnt --exclude='./dev/*'
mkdir /mnt/freeze
tar --extract --file=- --directory=/mnt/freeze --no-same-owner <&"$1"
mount --rbind /dev /mnt/dev
mount --rbind /proc /mnt/proc
chroot /mnt env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \\
    PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 PYTHONPATH=/freeze/packages \\
    GUESTAGENT_SOURCE=/freeze/source PYINSTALLER_CONFIG_DIR=/freeze/config \\
    python3 -m PyInstaller --noconfirm --log-level WARN \\
    --workpath /freeze/work --distpath /freeze/dist "/freeze/specification/$2.spec" </dev/null >&2
tar --create --file=- --directory=/mnt/freeze/dist "$2"
"""
"""Freezes $2.spec in the root on stdin, with the archive on file descriptor $1 as /freeze; the result goes to stdout.

Runs in namespaces of its own, in bash because dash has no file descriptors above 9. What the root has in /dev cannot
be made in a user namespace (mknod(2)), hence the bind.
"""

# Numbers of elf.h.
SHT_DYNSYM, SHT_VERNEED, SHT_VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF
VER_FLG_WEAK, VER_NDX_GLOBAL, STB_WEAK = 2, 1, 2


def base_interpreter() -> str:
    """The interpreter that made the venv we run in: a venv made from a venv would inherit its paths."""
    return getattr(sys, "_base_executable", None) or sys.executable


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel drops it with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another freeze to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None, *,
        stdin: IO[bytes] | int = subprocess.DEVNULL, stdout: IO[bytes] | None = None, inherited: tuple[int, ...] = (),
        ) -> None:  # fmt: skip
    """Run `command` with its output appended to `log`, unless it goes to `stdout`; raises `CalledProcessError`.

    When something else is raised meanwhile, by a signal, all that the command has started is killed.
    """
    # PYTHON* would lead the clean venv to packages of another one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("ab") as output:
        with subprocess.Popen(command, stdin=stdin, stdout=stdout or output, stderr=output, pass_fds=inherited,
                              env=clean | (environment or {}), start_new_session=True) as process:  # fmt: skip
            try:
                status = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def locked_packages(cache: Path, log: Path) -> Path:
    """A folder with the locked packages for the root's Python and nothing else, filled when it is not there yet."""
    requirements = HERE / "requirements-guestagent.txt"
    key = hashlib.sha256(requirements.read_bytes() + "\0".join(PIP_OPTIONS).encode()).hexdigest()
    packages = cache / f"packages-{key[:16]}"
    if not packages.exists():
        for stale in (*cache.glob("packages-*"), *cache.glob("unfinished-*")):
            shutil.rmtree(stale)
        print("fetching the packages to freeze", flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as folder:
            venv, unfinished = Path(folder) / "venv", Path(folder) / "packages"
            run([base_interpreter(), "-m", "venv", venv], log)
            run([venv / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
                 "--require-hashes", "--requirement", requirements, "--target", unfinished, *PIP_OPTIONS],
                log)  # fmt: skip
            unfinished.rename(packages)
    return packages


def relax_versions(elf: bytes) -> bytes:
    """`elf` (64 bit, little endian) without the demand for versions of which it uses nothing but `RELAXED` symbols.

    Such a version's requirement is marked weak, so that the dynamic loader does not insist on it, and the symbols lose
    their version, so that it takes the definition it has (elf(5); LSB Core, Symbol Versioning; elf/dl-version.c and
    elf/dl-lookup.c of glibc). Anything else comes back as it was.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        return elf
    result = bytearray(elf)
    (table,), (size, count) = struct.unpack_from("<Q", elf, 0x28), struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + index * size) for index in range(count)]
    sections = {header[1]: header for header in headers}
    if not {SHT_DYNSYM, SHT_VERNEED, SHT_VERSYM} <= sections.keys():
        return elf
    strings = headers[sections[SHT_DYNSYM][6]][4]
    symbol_at, version_at = sections[SHT_DYNSYM][4], sections[SHT_VERSYM][4]
    users: dict[int, list[int]] = {}
    for number in range(sections[SHT_VERSYM][5] // 2):
        users.setdefault(struct.unpack_from("<H", elf, version_at + 2 * number)[0], []).append(number)

    def name(offset: int) -> bytes:
        return elf[strings + offset : elf.index(b"\0", strings + offset)]

    for entry in version_requirements(elf, sections[SHT_VERNEED]):
        _, flags, version, name_offset, _ = struct.unpack_from("<IHHII", elf, entry)
        symbols = {number: name(struct.unpack_from("<I", elf, symbol_at + 24 * number)[0])
                   for number in users.get(version, [])}  # fmt: skip
        if symbols and set(symbols.values()) <= RELAXED.get(name(name_offset), set()):
            struct.pack_into("<H", result, entry + 4, flags | VER_FLG_WEAK)
            for number, symbol in symbols.items():
                struct.pack_into("<H", result, version_at + 2 * number, VER_NDX_GLOBAL)
                if symbol in NEVER_CALLED:
                    info = symbol_at + 24 * number + 4
                    result[info] = STB_WEAK << 4 | result[info] & 0xF
    return bytes(result)


def version_requirements(elf: bytes, section: tuple[int, ...]) -> Iterator[int]:
    """Where each Elf64_Vernaux of the section .gnu.version_r begins."""
    library = section[4]
    for _ in range(section[7]):
        _, count, _, first, following = struct.unpack_from("<HHIII", elf, library)
        entry = library + first
        for _ in range(count):
            yield entry
            entry += struct.unpack_from("<IHHII", elf, entry)[4]
        library += following


def run_in_root(root: Path, packages: Path, source: Path, spec: Path, scratch: Path, log: Path) -> None:
    """Fill scratch/dist with the Python in the archive `root`, and `packages`."""
    inputs, result = scratch / "inputs.tar", scratch / "result.tar"
    with tarfile.open(inputs, "w") as archive:
        archive.add(packages, "packages")
        for file in spec.parent.glob(f"{spec.stem}.*"):  # the program too, where it is beside its specification
            archive.add(file, f"specification/{file.name}")
        for package in ("guestagent", "protocol"):
            archive.add(source / package, f"source/{package}")
    with root.open("rb") as root_file, inputs.open("rb") as inputs_file, result.open("wb") as result_file:
        descriptor = inputs_file.fileno()
        run(["mmdebstrap", "--unshare-helper", "bash", "-euc", IN_ROOT, "bash", str(descriptor), spec.stem],
            log, stdin=root_file, stdout=result_file, inherited=(descriptor,))  # fmt: skip
    (scratch / "dist").mkdir()
    run(["tar", "--extract", "--no-same-owner", "--directory", scratch / "dist", "--file", result], log)


def freeze(source: Path, spec: Path, version: str, output: Path, cache: Path, log: Path, root: Path) -> None:
    """Freeze what `spec` names from the packages below `source` into the folder `output`."""
    for stale in output.parent.glob("scratch-*"):  # of a run that was killed: we hold the lock, so nobody uses it
        shutil.rmtree(stale)
    packages = locked_packages(cache, log)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix="scratch-") as scratch_name:
        scratch = Path(scratch_name)
        print(f"freezing {spec.stem} {version}", flush=True)
        run_in_root(root, packages, source, spec, scratch, log)
        frozen = scratch / "dist" / spec.stem
        for library in frozen.rglob("*.so*"):
            library.write_bytes(relax_versions(library.read_bytes()))
        (frozen / "VERSION").write_text(version + "\n", encoding="utf-8")
        print("checking that it starts", flush=True)
        run([frozen / spec.stem, "--self-test"], log)
        if output.exists():
            shutil.rmtree(output)
        frozen.rename(output)


def holds(output: Path, version: str) -> bool:
    """Whether `output` is a whole frozen tree of that version."""
    try:
        return (output / "VERSION").read_text(encoding="utf-8") == version + "\n"
    except FileNotFoundError:
        return False


def main() -> int:
    """Freeze as the command line says; 0 on success, 1 when a step failed (its output is shown)."""
    parser = argparse.ArgumentParser(description="Freeze the guest agent.")
    parser.add_argument("--source", type=Path, default=HERE.parent, help="folder that holds guestagent/ and protocol/")
    parser.add_argument("--spec", type=Path, default=HERE / "guestagent.spec", help="PyInstaller specification")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages, lock and log")
    parser.add_argument("--output", type=Path, required=True, help="folder to make (a whole one stays)")
    parser.add_argument("--version", required=True, help="what the frozen agent says its version is")
    parser.add_argument("--root", type=Path, required=True, help="archive of the Debian 12 root to freeze in")
    arguments = parser.parse_args()
    # As an exception, a signal ends the running step too and removes the scratch folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cache: Path = arguments.cache.absolute()
    log = cache / "freeze.log"
    output: Path = arguments.output.absolute()
    with locked(cache / "freeze.lock"):
        if holds(output, arguments.version):
            return 0
        log.write_bytes(b"")
        try:
            freeze(arguments.source.absolute(), arguments.spec.absolute(), arguments.version,
                   output, cache, log, arguments.root.absolute())  # fmt: skip
        except subprocess.CalledProcessError as error:
            last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            print(*last_lines, f"{error.cmd[0]} failed with exit status {error.returncode}; whole log: {log}",
                  sep="\n", file=sys.stderr)  # fmt: skip
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
