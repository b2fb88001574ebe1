"""The addresses of the guest's own interfaces, out of a rtnetlink dump. Pure. See rtnetlink(7)."""

from __future__ import annotations

import ipaddress
import struct

from guestagent.nat_ports import Address
from guestagent.netlink import KernelDataError
from guestagent.nft_dump import walk_attributes

ADDRESS_REQUEST_KIND, _ADDRESS = 22, 20
"""RTM_GETADDR and RTM_NEWADDR."""

_HEADER = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def parse_address(kind: int, payload: bytes) -> tuple[int, Address] | None:
    """Index of the interface and its address; None for a message about something else. Raises `KernelDataError`."""
    if kind != _ADDRESS:
        return None
    if len(payload) < _HEADER.size:
        raise KernelDataError(f"an interface's address is described by only {len(payload)} bytes")
    index = int(_HEADER.unpack_from(payload)[-1])
    found = dict(walk_attributes(payload[_HEADER.size :]))
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))  # of a point-to-point link, the other end is IFA_ADDRESS
    if packed is None:
        return None
    try:
        return index, ipaddress.ip_address(packed)
    except ValueError as exc:
        raise KernelDataError(f"an interface has an address of {len(packed)} bytes") from exc
