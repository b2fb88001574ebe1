"""The project's rules as tests: linters, types, import directions, spelling, sizes, names and places of files.

They look at the files that git tracks or would track, so a new file is checked before it is committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAX_LINES = 450
"""Where a module must be divided. 400 is where to begin thinking about it."""

TOP_LEVEL_FOLDERS = {"hostagent", "guestagent", "protocol", "cloud-init", "tests", "build"}
TOP_LEVEL_FILES = {"pyproject.toml", "LICENSE"}

NOT_NAMES = {"common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}
"""Words that say nothing about what a module holds."""

UNMIRRORED = {"e2e", "conformance", "perf", "faults", "programs", "fakes", "build"}
"""Folders of tests that follow what is tested end to end, not the tree of sources."""

# Written in two halves, so that this file is not its own find.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"), ("crates", "io"), ("proxy", "golang", "org"), ("maven", "org"),
    )
)  # fmt: skip
MACHINE_PATHS = tuple("/".join(parts) for parts in (("", "work", "main"), ("", "work", "shared"), ("", "opt", "wheels"),
                                                    ("", "root", ".pyenv")))  # fmt: skip


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that git tracks or would track, relative to the root."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    return tuple(sorted({Path(name) for name in listing.split("\0") if name and (ROOT / name).is_file()}))


def python_files() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py"]


@cache
def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


SPELLED = [path for path in project_files() if not path.name.startswith(("requirements-", ".codespell"))]

TOOLS = {
    "ruff check": ["ruff", "check", "--quiet", "."],
    "ruff format": ["ruff", "format", "--check", "--quiet", "."],
    "mypy": ["mypy", "--explicit-package-bases", "protocol", "hostagent", "guestagent", "build", "tests"],
    "import-linter": ["lint-imports"],
    "codespell": ["codespell", *map(str, SPELLED)],
}


@pytest.mark.timeout(600)  # mypy from an empty cache on a slow machine
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_has_nothing_to_say(tool: str) -> None:
    program, *arguments = TOOLS[tool]
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{tool}:\n{done.stdout}"


def test_no_module_is_too_long() -> None:
    lengths = {str(path): text_of(path).count("\n") for path in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_module_names_say_what_is_inside() -> None:
    assert [str(path) for path in python_files() if NOT_NAMES & set(path.stem.split("_"))] == []


def test_every_test_module_mirrors_a_source_module() -> None:
    """tests/a/test_b.py tests a/b.py; so may tests/a/test_b_some_aspect.py."""
    sources = {path.with_suffix("") for path in python_files() if path.parts[0] != "tests"}
    astray = []
    for path in python_files():
        inside = path.relative_to("tests") if path.parts[0] == "tests" else Path()
        if len(inside.parts) < 2 or inside.parts[0] in UNMIRRORED or not inside.name.startswith("test_"):
            continue
        words = inside.stem.removeprefix("test_").split("_")
        candidates = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        names = [*candidates, *(f"__{name}__" for name in candidates)]
        if not any(inside.with_name(name) in sources for name in names):
            astray.append(str(path))
    assert astray == []


def test_top_level_holds_only_what_belongs_there() -> None:
    astray = []
    for path in project_files():
        first = path.parts[0]
        is_file = len(path.parts) == 1
        allowed = first in TOP_LEVEL_FILES or path.suffix == ".md" if is_file else first in TOP_LEVEL_FOLDERS
        if not (allowed or first.startswith(".")):
            astray.append(str(path))
    assert astray == []


@pytest.mark.parametrize("words", [REGISTRY_HOSTS, MACHINE_PATHS], ids=["registry hosts", "paths of one machine"])
def test_no_file_names(words: tuple[str, ...]) -> None:
    found = [
        f"{path}:{number}: {word}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        for word in words
        if word in line
    ]
    assert found == []


def test_every_dependency_says_why_it_is_there() -> None:
    """A comment beside each name, in one of the lists that have it."""
    declared = tomllib.loads(text_of(Path("pyproject.toml")))
    groups = [declared["project"]["dependencies"], *declared["dependency-groups"].values()]
    names = {re.split(r"[\[<>=~!; ]", requirement)[0] for group in groups for requirement in group}
    explained = set(re.findall(r'^ *"([\w.-]+)[^"]*",.*# *\S', text_of(Path("pyproject.toml")), re.MULTILINE))
    assert names
    assert sorted(names - explained) == []


def test_packages_open_with_a_docstring() -> None:
    missing = [
        str(path)
        for path in python_files()
        if path.parts[0] in {"hostagent", "guestagent", "protocol", "build"} and not text_of(path).startswith('"""')
    ]
    assert missing == []
