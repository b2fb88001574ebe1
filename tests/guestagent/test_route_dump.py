"""Addresses of interfaces out of rtnetlink: those of the real kernel, and noise."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.netlink import KernelDataError
from guestagent.nft_dump import attribute
from guestagent.route_dump import parse_address

NEW_ADDRESS = 20
HEADER = struct.pack("=BBBBI", 2, 24, 0, 0, 3)


def test_the_own_end_of_a_point_to_point_link_is_the_guests() -> None:
    theirs, ours = attribute(1, bytes((10, 0, 0, 1))), attribute(2, bytes((10, 0, 0, 2)))
    assert parse_address(NEW_ADDRESS, HEADER + theirs + ours) == (3, ipaddress.ip_address("10.0.0.2"))
    assert parse_address(NEW_ADDRESS, HEADER + theirs) == (3, ipaddress.ip_address("10.0.0.1"))


def test_what_is_no_address_is_passed_over_and_what_is_half_of_one_is_an_error() -> None:
    assert parse_address(16, b"") is None
    assert parse_address(NEW_ADDRESS, HEADER) is None
    with pytest.raises(KernelDataError, match="3 bytes"):
        parse_address(NEW_ADDRESS, HEADER + attribute(1, b"abc"))
    with pytest.raises(KernelDataError, match="only 2"):
        parse_address(NEW_ADDRESS, b"\2\0")


@given(st.binary(max_size=80))
def test_whatever_it_holds_is_an_address_or_the_documented_error(payload: bytes) -> None:
    with contextlib.suppress(KernelDataError):
        parse_address(NEW_ADDRESS, payload)
