"""Where a guest's virtual CPUs stand, told by QEMU's monitor: whether a guest that does not answer spins or sleeps."""

from __future__ import annotations

import json
import socket
from pathlib import Path


def virtual_cpus(monitor: Path) -> str:
    """Where each of them is: the line of its instruction pointer and whether it is halted (QMP, info registers)."""
    asked = {"execute": "human-monitor-command", "arguments": {"command-line": "info registers -a"}}
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(monitor))
            with client.makefile("rw", encoding="utf-8") as lines:
                lines.readline()  # the greeting
                for request in ({"execute": "qmp_capabilities"}, asked):
                    lines.write(json.dumps(request) + "\n")
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        if "error" in answer:
                            return str(answer)
    except (OSError, ValueError) as exc:
        return f"(the monitor does not tell: {exc})"
    return "\n".join(line for line in answer["return"].splitlines() if line.startswith(("CPU#", "RIP=")))
