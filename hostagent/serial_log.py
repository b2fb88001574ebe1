"""The last lines of the guest's serial console, safe to show."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL = 8_192
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])|[^\x20-\x7e\n]")


def last_lines(path: Path, count: int) -> list[str]:
    """Up to `count` last lines that say something; terminal escapes and control characters are left out."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in _ESCAPE.sub("", text.replace("\r\n", "\n")).split("\n")]
    return [line for line in lines if line][-count:]
