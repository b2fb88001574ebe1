"""What an ordinary user may do, for tests that run as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NOBODY = 65_534


@contextmanager
def without_root() -> Iterator[None]:
    """Run the block without root's rights (capabilities(7): they leave with the effective user). No-op for others."""
    user = os.geteuid()
    os.seteuid(user or _NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
