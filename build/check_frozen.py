"""Gates for a frozen guest agent: size, start time, glibc, forbidden modules, self-test.

Prints one line per gate and exits 1 if one is missed. Without a folder it checks the agent of this checkout, frozen
first when it is not in the cache, and prints its folder.

The start is measured as the best of several runs of the self-test, which imports the whole agent and runs trio's loop
once. The bound is meant for a machine that imports trio in 80 ms; on a slower or loaded one both take longer alike, so
the plain interpreter's import of trio is measured in turns with the start, and scales the bound (never below 1).
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_MEGABYTES = 25.0
MAX_START_MS = 150.0
NOMINAL_IMPORT_MS = 80.0
"""What the plain interpreter takes to start, import trio and end, on the machine that MAX_START_MS is meant for."""

LEAST_TURNS, MOST_TURNS = 8, 32
"""How often both are measured, in turns, so that load hits them alike; the best of each counts."""

MAX_GLIBC = "2.34"
"""Red Hat 9's, the oldest of the guests that we have templates for."""

FORBIDDEN = frozenset(
    {"asyncio", "click", "dnslib", "httpx2", "hypothesis", "multiprocessing", "pip", "pkg_resources", "psutil",
     "pycdlib", "pydantic", "pytest", "rich", "setuptools", "sqlite3", "starlette", "tkinter", "unittest", "xml",
     "yaml"}
)  # fmt: skip
"""Top-level modules that a guest agent has no use for; one of them in the tree means that an import went astray."""

_REQUIRED = re.compile(r"^ +0x\w+ (0x\w+) \d+ GLIBC_(\d+)\.(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate found."""

    passed: bool
    text: str


def check_size(tree: Path, max_megabytes: float = MAX_MEGABYTES) -> Verdict:
    """All files of the tree, in MB of 1,000,000 bytes."""
    megabytes = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir()) / 1e6
    return Verdict(megabytes <= max_megabytes, f"size {megabytes:.1f} MB, at most {max_megabytes:g}")


def _milliseconds(command: list[str]) -> float:
    """From start to exit."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - begin) * 1000


def check_start(executable: Path, max_ms: float = MAX_START_MS) -> Verdict:
    """Start to exit of the self-test, against the bound that the module's docstring explains."""
    frozen = plain = bound = math.inf
    with tempfile.TemporaryDirectory(prefix="bytecode-") as bytecode:
        # Compiled modules, as in the frozen agent, wherever they are not beside their sources.
        plain_import = [sys.executable, "-X", f"pycache_prefix={bytecode}", "-c", "import trio, msgpack"]
        for turn in range(MOST_TURNS):
            frozen = min(frozen, _milliseconds([str(executable), "--self-test"]))
            plain = min(plain, _milliseconds(plain_import))
            bound = max_ms * max(1.0, plain / NOMINAL_IMPORT_MS)
            if frozen <= bound and turn >= LEAST_TURNS - 1:
                break
    return Verdict(frozen <= bound, f"start {frozen:.0f} ms, at most {bound:.0f} (plain import of trio: {plain:.0f})")


def glibc_needed(tree: Path) -> tuple[tuple[int, int], str]:
    """The highest GLIBC symbol version that an ELF file of the tree insists on, and the name of that file.

    `objdump -p` lists them as "required from": hash, flags, index, name. Those flagged weak (2) are not insisted on.
    """
    highest = ((0, 0), "nothing")
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            listing = subprocess.run(["objdump", "-p", path], check=True, capture_output=True, text=True).stdout
            found = [(int(major), int(minor)) for flags, major, minor in _REQUIRED.findall(listing) if flags == "0x00"]
            highest = max(highest, (max(found, default=(0, 0)), path.name), key=lambda entry: entry[0])
    return highest


def check_glibc(tree: Path, maximum: str = MAX_GLIBC) -> Verdict:
    """The glibc that a guest must at least have."""
    (major, minor), name = glibc_needed(tree)
    allowed = tuple(int(part) for part in maximum.split("."))
    return Verdict((major, minor) <= allowed, f"glibc {major}.{minor} needed by {name}, at most {maximum}")


def frozen_modules(executable: Path) -> Iterator[str]:
    """Names of the Python modules in the executable's archive and the base library, and of extension modules."""
    # Only here: the other gates need nothing but the standard library.
    import zipfile

    from PyInstaller.archive.readers import CArchiveReader  # type: ignore[import-untyped]

    archive = CArchiveReader(str(executable))
    for name in archive.toc:
        if name.endswith(".pyz"):
            yield from archive.open_embedded_archive(name).toc
    internal = executable.parent / "_internal"
    for entry in zipfile.ZipFile(internal / "base_library.zip").namelist():
        yield entry.removesuffix(".pyc").replace("/", ".")
    for path in internal.rglob("*.so"):
        yield path.name.split(".")[0].lstrip("_")
    for path in internal.iterdir():
        yield path.name


def check_modules(executable: Path, forbidden: frozenset[str] = FORBIDDEN) -> Verdict:
    """No forbidden module was collected."""
    modules = set(frozen_modules(executable))
    astray = sorted({name.split(".")[0] for name in modules} & forbidden)
    found = f"forbidden: {', '.join(astray)}" if astray else "none of them forbidden"
    return Verdict(not astray, f"{len(modules)} modules, {found}")


def check_self_test(executable: Path) -> Verdict:
    """The self-test passes in an empty environment."""
    result = subprocess.run(
        [str(executable), "--self-test"], env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    detail = f": {result.stderr.strip()}" if result.returncode else ""
    return Verdict(result.returncode == 0, f"self-test exit status {result.returncode}{detail}")


def gates(tree: Path, max_glibc: str = MAX_GLIBC) -> dict[str, Callable[[], Verdict]]:
    """Every gate for the frozen guest agent in `tree`, by name."""
    executable = tree / "guestagent"
    return {
        "self-test": lambda: check_self_test(executable),
        "size": lambda: check_size(tree),
        "glibc": lambda: check_glibc(tree, max_glibc),
        "modules": lambda: check_modules(executable),
        "start": lambda: check_start(executable),
    }


def own_tree() -> Path:
    """The frozen agent of this checkout, from the cache or frozen now."""
    import trio

    from hostagent import guest_payload, paths

    payload = trio.run(guest_payload.obtain_guest_agent, platform.machine(), paths.cache(), print)
    return payload.directory


def main() -> int:
    """Check the tree that the command line names; 0 when every gate passes."""
    parser = argparse.ArgumentParser(description="Check a frozen guest agent against its gates.")
    parser.add_argument("tree", type=Path, nargs="?", help="folder of the frozen agent (default: this checkout's)")
    parser.add_argument("--max-glibc", default=MAX_GLIBC, help=f"highest glibc version allowed (default {MAX_GLIBC})")
    arguments = parser.parse_args()
    tree: Path = arguments.tree or own_tree()
    verdicts = [gate() for gate in gates(tree, arguments.max_glibc).values()]
    for verdict in verdicts:
        print("ok  " if verdict.passed else "FAIL", verdict.text)
    print(tree)
    return 0 if all(verdict.passed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
