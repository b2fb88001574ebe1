"""The lock files: complete, hashed, and silent about where packages come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())

LOCKS = {
    "requirements-host.txt": [
        *DECLARED["project"]["dependencies"],
        *DECLARED["dependency-groups"]["dev"],
        *DECLARED["build-system"]["requires"],
    ],
    "requirements-guestagent.txt": DECLARED["dependency-groups"]["guestagent"],
}


def entries(lock: str) -> dict[str, str]:
    """The text of each locked package, by its normalised name."""
    text = (ROOT / "build" / lock).read_text()
    return {match[1]: match[0] for match in re.finditer(r"^([a-z0-9.-]+)==(?:.*\\\n)+.*\n", text, re.MULTILINE)}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_declared_package_is_locked(lock: str) -> None:
    declared = {re.split(r"[\[<>=~!; ]", requirement)[0].lower() for requirement in LOCKS[lock]}
    assert declared - set(entries(lock)) == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_has_hashes(lock: str) -> None:
    assert [name for name, text in entries(lock).items() if "--hash=sha256:" not in text] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_is_named(lock: str) -> None:
    lines = (ROOT / "build" / lock).read_text().splitlines()
    assert [line for line in lines if "://" in line or "index" in line or "find-links" in line] == []


def test_the_agent_is_frozen_with_the_versions_that_the_tests_use() -> None:
    def versions(lock: str) -> dict[str, str]:
        return {name: re.split(r"[= ;]+", text, maxsplit=2)[1] for name, text in entries(lock).items()}

    host, guest = (versions(lock) for lock in LOCKS)
    shared = host.keys() & guest.keys()
    assert {"trio", "msgpack"} <= shared
    assert {name: host[name] for name in shared} == {name: guest[name] for name in shared}
