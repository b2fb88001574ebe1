"""What QEMU said before it died, turned into an error that a user can act on."""

from __future__ import annotations

import re
from pathlib import Path

from hostagent.errors import UserError

MAX_WORDS = 400
"""Characters of QEMU's output in a message; the whole of it is in the log."""

_PROGRAM = re.compile(r"^(?:\S*qemu-system-\w+|qemu): (?:error: )?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"set up guest memory|cannot allocate memory", re.IGNORECASE),
        "give the machine less memory, or free some",
    ),
    (
        re.compile(r"access KVM kernel module|failed to initialize kvm|kvm_\w+|MSR", re.IGNORECASE),
        "set HOSTAGENT_ACCELERATOR=tcg to emulate the processor, or mend KVM: hostagent doctor",
    ),
    (re.compile(r"No space left on device", re.IGNORECASE), "free some disk space, then try again"),
    (re.compile(r"Could not set up host forwarding", re.IGNORECASE), "choose a host port that is free"),
)
_LOCKED = re.compile(r'Failed to get (?:shared )?"[\w -]+" lock|Failed to lock byte', re.IGNORECASE)
_LOCKED_PATH = re.compile(r"another process using the image \[(?P<path>[^\]]*)\]")


_INTERNAL_ERROR = re.compile(r"^KVM internal error\b.*(?=\n)", re.MULTILINE)  # kvm_handle_internal_error in QEMU


def words_of(output: str) -> str:
    """The essence of QEMU's output: no name, warnings, failed assertions or control characters, and bounded."""
    lines = [_PROGRAM.sub("", _CONTROL.sub("", line)).strip() for line in output.splitlines()]
    said = [line for line in lines if line and not line.startswith(("warning:", "info:"))]
    # an assertion is for QEMU's developers, unless nothing else was said
    return "; ".join([line for line in said if "Assertion `" not in line] or said)[:MAX_WORDS]


def internal_error(output: str) -> str:
    """How QEMU says that the accelerator cannot execute the guest any further; empty while it does not say so."""
    found = _INTERNAL_ERROR.search(output)
    return _CONTROL.sub("", found[0]).strip()[:MAX_WORDS] if found else ""


def death_error(output: str, log: Path, status: int | None) -> UserError:
    """Why QEMU ended at once, from its `output` and, when it is known, its exit `status` (negative: a signal)."""
    if _LOCKED.search(output):
        found = _LOCKED_PATH.search(output)
        disk = found["path"] if found else "of this machine"
        return UserError(
            f"another process uses the disk {disk}",
            f"end that process, perhaps a QEMU of another HOSTAGENT_HOME; see it with: fuser -v {disk}"
            if found
            else "end that process, then try again",
        )
    words = words_of(output) or _ending(status)
    hint = next((hint for pattern, hint in _HINTS if pattern.search(output)), f"all that it said is in {log}")
    return UserError(f"QEMU ended at once: {words}", hint)


def _ending(status: int | None) -> str:
    if status is None:
        return "it said nothing"
    if status < 0:
        return f"it was killed by signal {-status}"
    return f"exit status {status}, and it said nothing"
