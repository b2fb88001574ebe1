"""mmdebstrap's words as progress, and its failures as advice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.build_output import BuildOutput, explain_failure
from tests.fakes.silent_progress import SilentProgress

# Shortened from a real build.
OUTPUT = b"""\
I: running apt-get update...
Get:1 https://mirror.example/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 https://mirror.example/debian bookworm/main amd64 base-files [70 kB]
I: extracting archives...
Setting up gcc-12-base:amd64 (12.2.0-14) ...
Setting up libc6:amd64 (2.36-9) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Unpacking curl (7.88) ...
Setting up curl (7.88) ...
hostagent-stage: initrd
hostagent-stage: disk
I: success in 72.1 seconds
"""


class Seen:
    """Keeps every report."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int | None]] = []

    def update(self, step: str, done: int, total: int | None) -> None:
        self.reports.append((step, done, total))


def reports(*pieces: bytes) -> list[tuple[str, int, int | None]]:
    seen = Seen()
    output = BuildOutput(seen)
    for piece in pieces:
        output.feed(piece)
    return seen.reports


def test_stages_and_counts_are_reported() -> None:
    assert reports(OUTPUT) == [
        ("reading the package lists", 0, None),
        ("downloading packages", 1, None),
        ("downloading packages", 2, 2),
        ("unpacking the base", 0, None),
        ("installing packages", 1, 2),
        ("installing packages", 2, 2),
        ("installing packages", 3, 3),
        ("making the initrd", 0, None),
        ("writing the disk", 0, None),
    ]


def test_a_step_that_was_interrupted_goes_on_counting() -> None:
    text = b"Setting up a\nGet:1 b\nSetting up c\n"
    assert [done for step, done, _ in reports(text) if step == "installing packages"] == [1, 2]


@given(st.lists(st.integers(0, len(OUTPUT))))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(OUTPUT)]
    assert reports(*(OUTPUT[a:b] for a, b in pairwise(edges))) == reports(OUTPUT)


@given(st.binary())
def test_any_bytes_are_survived(data: bytes) -> None:
    output = BuildOutput(SilentProgress())
    output.feed(data)
    assert isinstance(explain_failure(output.tail, Path("/log")).hint, str)


def test_memory_is_bounded() -> None:
    output = BuildOutput(SilentProgress())
    for _ in range(1000):
        output.feed(b"x" * 1000)
    output.feed(b"\n" * 1000)
    assert sum(map(len, output.tail)) < 100_000


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("dpkg: error: No space left on device", "disk became full", "TMPDIR"),
        ("Could not allocate block in ext2 filesystem while writing file", "disk became full", "TMPDIR"),
        ("Temporary failure resolving 'mirror.example'", "cannot be reached", "network"),
        ("Could not connect to mirror.example:80, connection timed out", "cannot be reached", "proxy"),
        ("The following signatures couldn't be verified: NO_PUBKEY 0E98404D386FA1D9", "signature", "keyring"),
        ("E: Unable to locate package cloud-init", "does not have all packages", "apt-get update"),
        ("E: unshare: Operation not permitted", "may not do", "user namespaces"),
        ("E: something nobody has seen", "something nobody has seen", "read the end of"),
    ],
)
def test_failures_say_what_to_do(line: str, message: str, hint: str) -> None:
    error = explain_failure(("I: running apt-get update...", line, "I: removing tempdir"), Path("/the/log"))
    assert message in error.message
    assert hint in error.hint
    assert "/the/log" in error.hint
