"""Sockets and ports from what the kernel says, without a kernel."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import netlink
from guestagent.netlink import KernelDataError
from guestagent.socket_table import (
    AF_INET,
    AF_INET6,
    BY_FAMILY,
    DiagRecords,
    ListeningSocket,
    PortTable,
    SocketState,
    parse_destroyed,
    parse_diag,
    parse_proc_net,
)
from protocol.ports import Port, PortChange, Protocol

LISTEN, CLOSE, ESTABLISHED = 10, 7, 1
HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@dataclass(frozen=True)
class KernelSocket:
    """A socket as the kernel knows it, written in both of the kernel's ways."""

    address: str
    number: int
    inode: int = 4711
    uid: int = 1000
    code: int = LISTEN

    @property
    def packed(self) -> bytes:
        return ipaddress.ip_address(self.address).packed

    def proc_line(self) -> str:
        words = struct.unpack(f"={len(self.packed) // 4}I", self.packed)
        address = "".join(f"{word:08X}" for word in words)
        peer = "0" * len(address)
        return (
            f"   0: {address}:{self.number:04X} {peer}:0000 {self.code:02X} 00000000:00000000 00:00000000 00000000"
            f" {self.uid:5d}        0 {self.inode} 1 0000000000000000 100 0 0 10 0\n"
        )

    def diag(self, *, queue: int = 0, interface: int = 0) -> bytes:
        family = AF_INET if len(self.packed) == 4 else AF_INET6
        return struct.pack(
            "=BBBB2s2s16s16sI8xIIIII",
            *(family, self.code, 0, 0),
            *(struct.pack("!H", self.number), b"\0\0", self.packed.ljust(16, b"\0"), b"", interface),
            *(0, queue, 128, self.uid, self.inode),
        )


def from_proc(protocol: Protocol, *sockets: KernelSocket) -> frozenset[ListeningSocket]:
    return parse_proc_net(protocol, HEADING + "".join(item.proc_line() for item in sockets))


def dump(*sockets: KernelSocket, sequence: int = 7, queue: int = 0) -> bytes:
    messages = [netlink.pack(BY_FAMILY, 2, sequence, item.diag(queue=queue)) for item in sockets]
    return b"".join([*messages, netlink.pack(netlink.DONE, 2, sequence, bytes(4))])


def from_diag(protocol: Protocol, *sockets: KernelSocket) -> frozenset[ListeningSocket]:
    return DiagRecords(protocol).sockets(frozenset(parse_diag(dump(*sockets), 7).records))


ADDRESSES = st.one_of(
    st.ip_addresses().map(str), st.ip_addresses(v=4).map(lambda v4: f"::ffff:{v4}"), st.sampled_from(["::", "0.0.0.0"])
)
SOCKETS = st.lists(
    st.builds(
        KernelSocket,
        address=ADDRESSES,
        number=st.integers(0, 0xFFFF),
        inode=st.integers(0, 0xFFFFFFFF),
        uid=st.integers(0, 0xFFFFFFFF),
        code=st.integers(1, 12),
    ),
    max_size=20,
)


@given(st.sampled_from(Protocol), SOCKETS)
def test_both_readers_say_the_same(protocol: Protocol, sockets: list[KernelSocket]) -> None:
    read = from_proc(protocol, *sockets)
    assert read == from_diag(protocol, *sockets)
    assert all(item.number and item.protocol is protocol for item in read)
    assert all(item.address == str(ipaddress.ip_address(item.address)) for item in read)


def test_states_that_serve_no_port_are_left_out() -> None:
    codes = range(1, 13)
    sockets = [KernelSocket("127.0.0.1", 8000 + code, code=code) for code in codes]
    assert {item.number - 8000 for item in from_proc(Protocol.TCP, *sockets)} == {LISTEN}
    assert {item.number - 8000 for item in from_proc(Protocol.UDP, *sockets)} == {CLOSE, ESTABLISHED}


def test_a_mapped_address_is_the_ipv4_address_that_reaches_it() -> None:
    (found,) = from_proc(Protocol.TCP, KernelSocket("::ffff:127.0.0.1", 80))
    assert found.address == "127.0.0.1"


def test_a_line_of_the_real_kernel() -> None:
    if sys.byteorder == "big":
        pytest.fail("this line was taken from a little-endian machine: add one of a big-endian machine")
    line = (
        "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000005 00:00000000 00000000   101"
        "        0 23456 2 0000000000000000 100 0 0 10 5\n"
    )
    expected = ListeningSocket(Protocol.TCP, "127.0.0.1", 8080, 23456, 101, SocketState.LISTENING)
    assert parse_proc_net(Protocol.TCP, HEADING + line) == {expected}


@given(st.sampled_from(Protocol), st.text(max_size=300))
def test_garbage_in_proc_net_gives_the_documented_error_only(protocol: Protocol, text: str) -> None:
    for candidate in (text, HEADING + text, HEADING + KernelSocket("::1", 1).proc_line()[: len(text)]):
        with contextlib.suppress(KernelDataError):
            parse_proc_net(protocol, candidate)


@given(st.lists(st.sampled_from(["0A", "0100007F:0050", ":", "-1", "x", "99999999", "07", "0:"]), max_size=12))
def test_almost_a_line_gives_the_documented_error_only(words: list[str]) -> None:
    with contextlib.suppress(KernelDataError):
        parse_proc_net(Protocol.TCP, HEADING + " ".join(words) + "\n")


@given(SOCKETS, st.data())
def test_a_damaged_dump_gives_the_documented_error_only(sockets: list[KernelSocket], data: st.DataObject) -> None:
    whole = bytearray(dump(*sockets))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for parse in (
        lambda: DiagRecords(Protocol.TCP).sockets(frozenset(parse_diag(cut, 7).records)),
        lambda: parse_destroyed(cut),
    ):
        with contextlib.suppress(KernelDataError):
            parse()


def test_a_dump_ends_with_done_and_answers_to_others_are_not_ours() -> None:
    unfinished = netlink.pack(BY_FAMILY, 2, 7, KernelSocket("::1", 1).diag())
    assert not parse_diag(unfinished, 7).done
    assert parse_diag(dump(), 7).done
    assert parse_diag(dump(KernelSocket("::1", 1)), 8).records == ()


def test_an_interrupted_dump_and_an_errno_are_said() -> None:
    assert parse_diag(netlink.pack(netlink.DONE, netlink.DUMP_INTERRUPTED, 7, bytes(4)), 7).interrupted
    refused = netlink.pack(netlink.ERROR, 0, 7, struct.pack("=i", -2) + bytes(16))
    assert parse_diag(refused, 7).errno == 2


def test_records_do_not_change_with_queues() -> None:
    one, other = (parse_diag(dump(KernelSocket("::1", 1), queue=queue), 7).records for queue in (0, 99))
    assert one == other


def test_an_unchanged_dump_is_the_very_same_set_and_a_bad_one_changes_nothing() -> None:
    records = DiagRecords(Protocol.TCP)
    good = frozenset(parse_diag(dump(KernelSocket("::1", 1)), 7).records)
    first = records.sockets(good)
    assert records.sockets(frozenset(good)) is first
    alien = frozenset({bytes([99]) + next(iter(good))[1:]})
    with pytest.raises(KernelDataError, match="family 99"):
        records.sockets(alien)
    assert records.sockets(good) is first


def test_the_interface_is_known_and_not_compared() -> None:
    data = netlink.pack(BY_FAMILY, 2, 7, KernelSocket("fe80::1", 53, code=CLOSE).diag(interface=3))
    (found,) = DiagRecords(Protocol.UDP).sockets(frozenset(parse_diag(data, 7).records))
    assert found.interface == 3
    assert {found} == from_proc(Protocol.UDP, KernelSocket("fe80::1", 53, code=CLOSE))


def test_destroyed_sockets_are_named_by_their_local_port() -> None:
    data = netlink.pack(BY_FAMILY, 0, 0, KernelSocket("127.0.0.1", 5353, code=CLOSE).diag())
    assert parse_destroyed(data) == {5353}
    with pytest.raises(KernelDataError, match="only 8 bytes"):
        parse_destroyed(netlink.pack(BY_FAMILY, 0, 0, bytes(8)))


def udp(address: str, number: int, inode: int, state: SocketState = SocketState.UNCONNECTED) -> ListeningSocket:
    return ListeningSocket(Protocol.UDP, address, number, inode, 0, state)


def tcp(address: str, number: int, inode: int) -> ListeningSocket:
    return ListeningSocket(Protocol.TCP, address, number, inode, 0, SocketState.LISTENING)


def test_a_udp_server_that_connects_stays_the_port_it_was() -> None:
    table = PortTable()
    port = Port(Protocol.UDP, "0.0.0.0", 5000)
    assert table.update(Protocol.UDP, frozenset({udp("0.0.0.0", 5000, 9)})).change.opened == (port,)
    connected = frozenset({udp("127.0.0.1", 5000, 9, SocketState.CONNECTED)})
    for _ in range(2):
        assert not table.update(Protocol.UDP, connected).change
        assert table.ports == {port}
    assert table.update(Protocol.UDP, frozenset()).change.closed == (port,)


def test_a_udp_socket_that_was_always_connected_is_a_client() -> None:
    table = PortTable()
    client = udp("10.0.0.1", 40000, 9, SocketState.CONNECTED)
    assert not table.update(Protocol.UDP, frozenset({client})).change
    other_inode = udp("10.0.0.1", 5000, 11, SocketState.CONNECTED)
    table.update(Protocol.UDP, frozenset({udp("0.0.0.0", 5000, 10)}))
    assert table.update(Protocol.UDP, frozenset({other_inode})).change.closed == (Port(Protocol.UDP, "0.0.0.0", 5000),)


def test_a_port_shared_by_sockets_closes_with_the_last() -> None:
    table = PortTable()
    port = Port(Protocol.TCP, "::", 80)
    look = table.update(Protocol.TCP, frozenset({tcp("::", 80, 5), tcp("::", 80, 4)}))
    assert look.change == PortChange((port,), ())
    assert look.new_inodes == {port: 4}
    assert not table.update(Protocol.TCP, frozenset({tcp("::", 80, 5)})).change
    assert table.update(Protocol.TCP, frozenset()).change == PortChange((), (port,))


def test_a_port_taken_over_by_another_socket_is_the_same_port_with_another_owner() -> None:
    table = PortTable()
    port = Port(Protocol.TCP, "::", 80)
    table.update(Protocol.TCP, frozenset({tcp("::", 80, 5)}))
    look = table.update(Protocol.TCP, frozenset({tcp("::", 80, 6)}))
    assert not look.change
    assert look.new_inodes == {port: 6}
    assert table.inodes(port) == {6}


LISTENERS = st.frozensets(
    st.builds(tcp, st.sampled_from(["::", "127.0.0.1"]), st.integers(1, 4), st.integers(0, 6)), max_size=8
)


@given(st.lists(LISTENERS, min_size=1, max_size=6))
def test_changes_add_up_to_what_is_open(looks: list[frozenset[ListeningSocket]]) -> None:
    table = PortTable()
    told: set[Port] = set()
    for sockets in looks:
        change = table.update(Protocol.TCP, sockets).change
        assert not told & set(change.opened)
        assert told >= set(change.closed)
        told = (told - set(change.closed)) | set(change.opened)
        assert told == table.ports == {Port(Protocol.TCP, item.address, item.number) for item in sockets}
        for number in range(1, 5):
            assert table.is_open(Protocol.TCP, number) == any(item.number == number for item in sockets)


def test_one_protocol_does_not_close_the_other() -> None:
    table = PortTable()
    table.update(Protocol.TCP, frozenset({tcp("::", 53, 1)}))
    table.update(Protocol.UDP, frozenset({udp("::", 53, 2)}))
    assert table.update(Protocol.UDP, frozenset()).change.closed == (Port(Protocol.UDP, "::", 53),)
    assert table.ports == {Port(Protocol.TCP, "::", 53)}


def test_the_constants_are_this_machines() -> None:
    assert (AF_INET, AF_INET6) == (socket.AF_INET, socket.AF_INET6)
