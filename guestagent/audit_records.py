"""The kernel's audit netlink protocol, as far as it is needed to hear of changed netfilter rules. Pure.

Requests and answers are those of linux/audit.h; `struct audit_status` has grown over the years, and only its first four
numbers (mask, enabled, failure, pid), which every kernel has, are used. We never set `pid`: that would make us the
audit daemon, and a real auditd that starts later would be refused.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from guestagent import netlink
from guestagent.netlink import KernelDataError

GET, SET = 1000, 1001
"""AUDIT_GET and AUDIT_SET."""

NETFILTER_CFG = 1325
"""AUDIT_NETFILTER_CFG: a table of nftables or iptables (legacy too) was changed, in any namespace."""

_ENABLED_FIELD = 0x0001  # AUDIT_STATUS_ENABLED in audit_status.mask
_STATUS = struct.Struct("=IIII")
_STATUS_SIZE = 40  # up to `backlog_wait_time`; the kernel takes shorter and longer ones


class Enabled(enum.IntEnum):
    """audit_status.enabled."""

    OFF = 0
    ON = 1
    LOCKED = 2


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """What AUDIT_GET answers."""

    enabled: Enabled
    daemon: int
    """Process id of the audit daemon; 0 when none runs."""


def status_request(sequence: int) -> bytes:
    """Ask for the status; the answer is read with `parse_status`."""
    return netlink.pack(GET, netlink.REQUEST, sequence, b"")


def enable_request(enabled: Enabled, sequence: int) -> bytes:
    """Turn auditing on or off, and nothing else; acknowledged with an errno."""
    body = _STATUS.pack(_ENABLED_FIELD, enabled, 0, 0).ljust(_STATUS_SIZE, b"\0")
    return netlink.pack(SET, netlink.REQUEST | netlink.ACKNOWLEDGE, sequence, body)


@dataclass(frozen=True, slots=True)
class AuditReply:
    """An answer of the kernel to one of our requests: an errno (0: done), or a status."""

    errno: int
    status: AuditStatus | None = None


def parse_reply(data: bytes, sequence: int) -> AuditReply | None:
    """The answer to request `sequence` in one datagram, None if it holds none. Raises `KernelDataError`."""
    for message in netlink.unpack(data):
        if message.sequence != sequence:
            continue
        if message.kind == netlink.ERROR:
            return AuditReply(netlink.error_number(message))
        if message.kind == GET:
            return AuditReply(0, _parse_status(message.payload))
    return None


def _parse_status(payload: bytes) -> AuditStatus:
    if len(payload) < _STATUS.size:
        raise KernelDataError(f"an audit status has only {len(payload)} bytes")
    _, enabled, _, daemon = _STATUS.unpack_from(payload)
    try:
        return AuditStatus(Enabled(enabled), daemon)
    except ValueError as exc:
        raise KernelDataError(f"audit is enabled={enabled}, which means nothing we know") from exc
