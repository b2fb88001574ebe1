"""Attributes and records of nfnetlink: what was packed is read, anything else is the documented error."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink import nftsocket

from guestagent import netlink, nft_dump
from guestagent.netlink import KernelDataError
from guestagent.nft_dump import (
    NEW_CHAIN,
    NEW_ELEMENTS,
    NEW_RULE,
    NEW_SET,
    SUBSYSTEM,
    ChainRecord,
    RuleRecord,
    attribute,
    attributes_of,
    name_attribute,
    number,
    parse_generation,
    parse_record,
    request,
)
from tests.guestagent.nat_rule_sets import captures

CAPTURES = captures()


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40)))
def test_attributes_come_back_as_they_were_packed(attributes: dict[int, bytes]) -> None:
    packed = b"".join(attribute(kind, value) for kind, value in attributes.items())
    assert attributes_of(packed) == attributes


@pytest.mark.parametrize("packed", [b"\0", b"\3\0\1\0", b"\x09\0\1\0abcd", attribute(1, b"abcd") + b"x"])
def test_attributes_that_do_not_fit_are_an_error(packed: bytes) -> None:
    with pytest.raises(KernelDataError):
        attributes_of(packed)


@given(
    st.sampled_from([SUBSYSTEM | kind for kind in (NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENTS)] + [0, 3]),
    st.binary(max_size=100),
)
def test_whatever_a_message_holds_is_a_record_or_the_documented_error(kind: int, payload: bytes) -> None:
    with contextlib.suppress(KernelDataError):
        parse_record(kind, payload)


@given(st.binary(max_size=40))
def test_whatever_a_generation_holds_is_a_number_or_the_documented_error(payload: bytes) -> None:
    with contextlib.suppress(KernelDataError):
        assert parse_generation(payload) >= 0


def test_a_generation_and_its_absence() -> None:
    assert parse_generation(bytes(4) + attribute(1, struct.pack("!I", 7))) == 7
    with pytest.raises(KernelDataError):
        parse_generation(bytes(4))
    with pytest.raises(KernelDataError):
        number(b"\0\0\0")


def test_a_request_asks_for_a_dump_of_what_it_names() -> None:
    packed = request(nft_dump.GET_RULE, 5, nft_dump.INET, name_attribute(1, "tänk"))
    (message,) = netlink.unpack(packed)
    assert message.kind == SUBSYSTEM | nft_dump.GET_RULE
    assert message.flags == netlink.REQUEST | netlink.DUMP
    assert message.sequence == 5
    assert message.payload[0] == nft_dump.INET
    assert attributes_of(message.payload[4:]) == {1: "tänk\0".encode()}


def test_a_chain_without_a_hook_is_nobodys_entry() -> None:
    payload = bytes((2, 0, 0, 0)) + name_attribute(1, "nat") + name_attribute(3, "DOCKER")
    assert parse_record(SUBSYSTEM | NEW_CHAIN, payload) == ChainRecord(2, "nat", "DOCKER", None, 0, "")


def test_a_rule_without_its_chain_is_an_error() -> None:
    with pytest.raises(KernelDataError, match="lacks attribute 2"):
        parse_record(SUBSYSTEM | NEW_RULE, bytes(4) + name_attribute(1, "nat"))


@pytest.mark.parametrize("name", sorted(name for name, raw in CAPTURES.items() if raw.messages))
def test_pyroute2_reads_the_same_chains_and_rules_out_of_the_same_bytes(name: str) -> None:
    for kind, payload in CAPTURES[name].messages:
        ours = parse_record(kind, payload)
        header = struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0)
        if isinstance(ours, RuleRecord):
            theirs = nftsocket.nft_rule_msg(header + payload)
            theirs.decode()
            assert (ours.table, ours.chain) == (theirs.get_attr("NFTA_RULE_TABLE"), theirs.get_attr("NFTA_RULE_CHAIN"))
            expressions = theirs.get_attr("NFTA_RULE_EXPRESSIONS") or []
            assert len(nft_dump.items(ours.expressions)) == len(expressions)
        elif isinstance(ours, ChainRecord):
            theirs = nftsocket.nft_chain_msg(header + payload)
            theirs.decode()
            assert (ours.table, ours.name) == (theirs.get_attr("NFTA_CHAIN_TABLE"), theirs.get_attr("NFTA_CHAIN_NAME"))
