"""Audit's netlink messages, without a kernel."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import audit_records, netlink
from guestagent.audit_records import AuditReply, AuditStatus, Enabled, parse_reply
from guestagent.netlink import KernelDataError


def status_message(enabled: int, daemon: int, sequence: int = 1) -> bytes:
    return netlink.pack(audit_records.GET, 0, sequence, struct.pack("=10I", 0, enabled, 1, daemon, *[0] * 6))


def test_the_status_says_whether_it_is_enabled_and_who_the_daemon_is() -> None:
    assert parse_reply(status_message(2, 77), 1) == AuditReply(0, AuditStatus(Enabled.LOCKED, 77))
    assert parse_reply(status_message(2, 77), 2) is None


def test_enabling_sets_nothing_but_the_switch() -> None:
    (message,) = netlink.unpack(audit_records.enable_request(Enabled.ON, 3))
    numbers = struct.unpack("=10I", message.payload)
    assert (message.kind, message.sequence) == (audit_records.SET, 3)
    assert message.flags == netlink.REQUEST | netlink.ACKNOWLEDGE
    assert numbers == (1, 1, 0, 0, 0, 0, 0, 0, 0, 0)  # the mask names `enabled` alone, so that `pid` is never set


def test_a_refusal_is_an_errno() -> None:
    refused = netlink.pack(netlink.ERROR, 0, 4, struct.pack("=i", -1))
    assert parse_reply(refused, 4) == AuditReply(1)


def test_an_unknown_switch_position_is_refused() -> None:
    with pytest.raises(KernelDataError, match="enabled=9"):
        parse_reply(status_message(9, 0), 1)


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda body: netlink.pack(1000, 0, 1, body))))
def test_garbage_gives_the_documented_error_only(data: bytes) -> None:
    with contextlib.suppress(KernelDataError):
        parse_reply(data, 1)
