"""Datagrams that the guest's kernel dropped, as it counts them since the boot.

No relay can see them: an answer that comes from another port than the one that was asked finds no socket, and what
comes faster than a program reads finds no room. So they are told for the whole guest, whoever sent them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

UNWANTED, OVERFLOWED = "datagrams without a taker", "datagrams for a full queue"

_MEANINGS = {"NoPorts": UNWANTED, "RcvbufErrors": OVERFLOWED}
"""The kernel's names (Documentation/networking/snmp_counter.rst, net/ipv4/proc.c, net/ipv6/proc.c)."""


def lost_datagrams(directory: Path = Path("/proc/net")) -> dict[str, int]:
    """How many of each sort, over IPv4 and IPv6 together; nothing of what the kernel does not tell."""
    counts: Counter[str] = Counter()
    for file, fields in (("snmp", _fields_in_rows), ("snmp6", _fields_in_lines)):
        try:
            text = (directory / file).read_text("ascii", "replace")
        except OSError:
            continue  # a kernel without IPv6, a container without /proc/net
        for name, count in fields(text).items():
            if (meaning := _MEANINGS.get(name)) is not None:
                counts[meaning] += count
    return dict(counts)


def _fields_in_rows(text: str) -> dict[str, int]:
    """The counters of UDP in /proc/net/snmp: a row of names, then a row of numbers."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith("Udp:")]
    return {name: int(count) for name, count in zip(*rows, strict=False) if count.isdecimal()} if len(rows) == 2 else {}


def _fields_in_lines(text: str) -> dict[str, int]:
    """The counters of UDP in /proc/net/snmp6: a name and a number in each line."""
    words = [line.split() for line in text.splitlines() if line.startswith("Udp6")]
    return {word[0].removeprefix("Udp6"): int(word[1]) for word in words if len(word) == 2 and word[1].isdecimal()}
