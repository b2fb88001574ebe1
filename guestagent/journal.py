"""What the agent says to systemd: its log on stderr, and that it is ready.

journald reads a line's priority from a prefix such as `<6>` (sd-daemon(3)). A traceback is several lines, each of which
needs its own. Without systemd the lines are readable all the same.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


class JournalFormatter(logging.Formatter):
    """Lines that begin with their priority. journald knows the time and the program already."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def log_to_stderr(level: str) -> None:
    """Send everything from `level` ("info") on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def notify_ready() -> None:
    """Tell systemd that the agent has started, if it wants to know (sd_notify(3))."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
