"""What mmdebstrap prints, turned into progress and, when it fails, into an error with a next step.

Pure: fed with bytes as they come. The lines that are understood are those of `mmdebstrap --verbose` 1.x with apt and
dpkg below it; an unknown line only fails to move the bar.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from hostagent.errors import UserError
from hostagent.progress import Progress

_TAIL_LINES = 40
_LONGEST_LINE = 4096

_NEW_PACKAGES = re.compile(r"\d+ upgraded, (\d+) newly installed")
_STAGES = (
    ("I: running apt-get update", "reading the package lists"),
    ("I: extracting archives", "unpacking the base"),
    ("hostagent-stage: initrd", "making the initrd"),
    ("hostagent-stage: disk", "writing the disk"),
)
_COUNTED = (
    ("Get:", "downloading packages"),
    ("Setting up ", "installing packages"),
)


class BuildOutput:
    """Reads mmdebstrap's output and reports its stages and package counts."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rest = b""
        self._total: int | None = None
        self._done: dict[str, int] = {}
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines that were printed."""
        return (*self._lines, self._rest.decode(errors="replace")) if self._rest else tuple(self._lines)

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what was printed next."""
        *lines, self._rest = (self._rest + bytes(data)).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        for line in lines:
            self._line(line.decode(errors="replace"))

    def _line(self, line: str) -> None:
        self._lines.append(line)
        if found := _NEW_PACKAGES.search(line):
            self._total = (self._total or 0) + int(found[1])
        for prefix, step in _STAGES:
            if line.startswith(prefix):
                self._report(step, counted=False)
        for prefix, step in _COUNTED:
            if line.startswith(prefix):
                self._report(step, counted=True)

    def _report(self, step: str, *, counted: bool) -> None:
        self._done[step] = self._done.get(step, 0) + counted
        self._progress.update(step, self._done[step], self._total if counted else None)


_CAUSES = (
    (
        ("No space left on device", "Disk quota exceeded", "Could not allocate block in ext2 filesystem"),
        "the disk became full while the image was built",
        "free some space (about 3 GiB are needed), or set TMPDIR to a folder on a larger disk",
    ),
    (
        (
            "Temporary failure resolving",
            "Could not resolve",
            "Could not connect",
            "Unable to connect",
            "Connection timed out",
        ),
        "the package mirror cannot be reached",
        "check the network (`apt-get update` shows the same error) or the proxy settings, and try again",
    ),
    (
        ("NO_PUBKEY", "GPG error", "is not signed", "EXPKEYSIG"),
        "the package mirror's signature could not be verified",
        "upgrade the package debian-archive-keyring, and check the host's clock",
    ),
    (
        ("Unable to locate package", "has no installation candidate", "does not have a Release file", "404  Not Found"),
        "the package mirror does not have all packages of the image",
        "run `sudo apt-get update` and try again; if it stays, point the host's apt sources to a complete mirror",
    ),
    (
        ("Operation not permitted", "Permission denied"),
        "this user may not do what building an image needs",
        "run it once as root, or allow user namespaces for this user",
    ),
)


def explain_failure(tail: tuple[str, ...], log: Path) -> UserError:
    """The error to raise when mmdebstrap failed with `tail` as its last lines and all of them in the file `log`."""
    text = "\n".join(tail)
    for signs, message, hint in _CAUSES:
        if any(sign in text for sign in signs):
            return UserError(message, f"{hint}; the whole output is in {log}")
    last = next((line for line in reversed(tail) if line.startswith("E:")), tail[-1] if tail else "no output")
    return UserError(f"the image could not be built: {last[:300]}", f"read the end of {log}")
