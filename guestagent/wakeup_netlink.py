"""Wake-ups that the kernel multicasts over netlink: destroyed sockets, and changed nftables rules.

- sock_diag groups 1 to 4 say which TCP and UDP sockets of our network namespace are gone. Finished connections are
  announced too, and dropped by filters inside the kernel, so that busy programs do not wake us. TCP: a listener has no
  destination port. UDP: a server may be connected, so only a socket goes unheard that has a port of the kernel's choice
  and was connected to one below 1024, as whoever asks for a name or the time is. Of the others only the port numbers
  that are known to be open count.
- nfnetlink group 7 says that nftables rules changed (iptables-nft included). A filter lets only the message through
  that ends a transaction. It concerns ports that are no sockets (`nat_watch`).

A full receive buffer (ENOBUFS) means that something was lost: that counts as a wake-up for all the source sees.
Filters are classic BPF (socket(7), SO_ATTACH_FILTER); they see the message from its netlink header on.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

import trio

from guestagent.netlink import KernelDataError
from guestagent.sock_diag import SocketReader
from guestagent.socket_table import parse_destroyed
from guestagent.wakeups import (
    NOTHING,
    SourceState,
    SourceUnavailableError,
    Watch,
    chosen_ports,
    explain,
    wake_for,
    went_live,
)
from protocol.ports import Protocol

NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 4, 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_ATTACH_FILTER = 270, 1, 26
_NFTABLES_GROUP = 7
_NEW_GENERATION = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN: one per transaction
_TYPE_OFFSET = 4  # in nlmsghdr
_SOURCE_PORT_OFFSET, _DESTINATION_PORT_OFFSET = 16 + 4, 16 + 6  # in inet_diag_msg behind it
_FIRST_UNPRIVILEGED = 1024
_INSTRUCTION = struct.Struct("=HBBI").pack
_LOAD_HALF, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x28, 0x15, 0x35, 0x06
_ACCEPT, _DROP = _INSTRUCTION(_RETURN, 0, 0, 0xFFFFFFFF), _INSTRUCTION(_RETURN, 0, 0, 0)
_READ_SIZE = 16 * 1024
_READS_PER_WAKEUP = 64


def only_where(offset: int, value: int) -> bytes:
    """A classic BPF program that drops a message unless the 16 bits (network order) at `offset` are `value`."""
    return b"".join((_INSTRUCTION(_LOAD_HALF, 0, 0, offset), _INSTRUCTION(_JUMP_EQUAL, 0, 1, value), _ACCEPT, _DROP))


def all_but_clients(chosen: range) -> bytes:
    """A classic BPF program that drops notices of sockets at a port of `chosen`, connected to one from 1 to 1023."""
    return b"".join(
        (
            _INSTRUCTION(_LOAD_HALF, 0, 0, _DESTINATION_PORT_OFFSET),
            _INSTRUCTION(_JUMP_EQUAL, 4, 0, 0),
            _INSTRUCTION(_JUMP_NOT_BELOW, 3, 0, _FIRST_UNPRIVILEGED),
            _INSTRUCTION(_LOAD_HALF, 0, 0, _SOURCE_PORT_OFFSET),
            _INSTRUCTION(_JUMP_NOT_BELOW, 0, 1, chosen.start),
            _INSTRUCTION(_JUMP_NOT_BELOW, 0, 1, chosen.stop),
            _ACCEPT,
            _DROP,
        )
    )


def only_kind(kind: int) -> bytes:
    """A classic BPF program that drops netlink messages of any other type, which is in the machine's byte order."""
    return only_where(_TYPE_OFFSET, socket.ntohs(kind))


_DESTROY_GROUPS = {Protocol.TCP: (1, 3), Protocol.UDP: (2, 4)}
"""SKNLGRP_INET_*_DESTROY and SKNLGRP_INET6_*_DESTROY (linux/sock_diag.h)."""


def open_multicast(family: int, groups: Sequence[int], program: bytes = b"") -> socket.socket:
    """A non-blocking netlink socket that receives `groups`, filtered by `program`. Raises `OSError`."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
    try:
        if program:  # before the membership, so that nothing unfiltered is ever queued
            code = array.array("B", program)
            fprog = struct.pack("@HP", len(program) // 8, code.buffer_info()[0])
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        listener.bind((0, 0))
        for group in groups:
            listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        listener.close()
        raise
    return listener


def drain(listener: socket.socket) -> tuple[list[bytes], bool]:
    """The datagrams that are there now (a bounded number), and whether any was lost. Raises `OSError`."""
    datagrams: list[bytes] = []
    lost = False
    for _ in range(_READS_PER_WAKEUP):
        try:
            datagrams.append(listener.recv(_READ_SIZE))
        except BlockingIOError:
            break
        except OSError as exc:
            if exc.errno != errno.ENOBUFS:
                raise
            lost = True
    return datagrams, lost


async def follow(
    listener: socket.socket,
    state: SourceState,
    watch: Watch,
    concerns: Callable[[list[bytes]], frozenset[Protocol] | None],
) -> NoReturn:
    """Wake `watch` for what arrives on `listener`. `concerns` says which protocols, or None for not worth a wake-up."""
    while True:
        await trio.lowlevel.wait_readable(listener)
        datagrams, lost = drain(listener)
        protocols = state.covers if lost else concerns(datagrams)
        if protocols is None:
            continue
        state.wakeups += 1
        pause = wake_for(state, watch, protocols)
        if pause > 0:
            await trio.sleep(pause)


class DestroyedSocketsSource:
    """sock_diag's notices of destroyed sockets of one protocol, in this network namespace."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._state = SourceState(f"sock_diag {protocol} destroy", NOTHING, frozenset({protocol}))

    @property
    def states(self) -> tuple[SourceState, ...]:
        """One state."""
        return (self._state,)

    async def run(self, watch: Watch) -> NoReturn:
        """Listen until cancelled. Raises `SourceUnavailableError`."""

        def concerns(datagrams: list[bytes]) -> frozenset[Protocol] | None:
            try:
                numbers = {number for data in datagrams for number in parse_destroyed(data)}
            except KernelDataError:
                return self._state.covers
            return self._state.covers if any(watch.is_open(self._protocol, number) for number in numbers) else None

        is_tcp = self._protocol is Protocol.TCP
        program = only_where(_DESTINATION_PORT_OFFSET, 0) if is_tcp else all_but_clients(chosen_ports())
        _require_dumps(self._protocol)
        try:
            with open_multicast(NETLINK_SOCK_DIAG, _DESTROY_GROUPS[self._protocol], program) as listener:
                went_live(self._state, watch)
                await follow(listener, self._state, watch, concerns)
        except OSError as exc:
            raise SourceUnavailableError(explain(exc, self._state.name)) from exc


def _require_dumps(protocol: Protocol) -> None:
    """Raise `SourceUnavailableError` where sock_diag knows nothing of `protocol`.

    The kernel lets anyone join the groups, and without the protocol's diag module never sends to them.
    """
    with SocketReader() as reader:
        reader.read(protocol)
        if reason := reader.reason():
            raise SourceUnavailableError(reason)


class NftablesSource:
    """nfnetlink's notices of committed nftables transactions, in this network namespace."""

    def __init__(self) -> None:
        self._state = SourceState("nfnetlink nftables", NOTHING, NOTHING, rules=True)

    @property
    def states(self) -> tuple[SourceState, ...]:
        """One state; it sees no sockets."""
        return (self._state,)

    async def run(self, watch: Watch) -> NoReturn:
        """Listen until cancelled. Raises `SourceUnavailableError`."""
        try:
            with open_multicast(NETLINK_NETFILTER, (_NFTABLES_GROUP,), only_kind(_NEW_GENERATION)) as listener:
                went_live(self._state, watch)
                await follow(listener, self._state, watch, lambda _: NOTHING)
        except OSError as exc:
            raise SourceUnavailableError(explain(exc, "nfnetlink")) from exc
