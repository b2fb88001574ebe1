"""Reads the address translation rules of this network namespace, completely or not at all.

**How, and what was rejected.** Straight from the kernel, in its binary form: nfnetlink dumps for nftables (iptables-nft
is that too), IPT_SO_GET_ENTRIES for iptables-legacy. That needs no program in the guest, starts none, and sees exactly
what the kernel acts on. Rejected were the tools, which a minimal guest need not have (an engine in a container brings
its own) and each of which sees only its own kind of rules; and pyroute2, which costs 12 MiB of resident memory and
0.14 s as soon as it is imported, rules or not, of the 45 MiB that the agent may have, and lacks iptables-legacy. With
5,000 rules of iptables-nft, in one process with trio and the agent (31 MiB): 67 MiB with pyroute2, which then has read
them but not understood them, 47 MiB with this. (Python 3.11, x86-64, November 2026.)

A look never changes what it looks at: asking iptables-legacy for its nat table would create it, so
/proc/net/ip_tables_names is asked first. A changed generation of the rules (NFT_MSG_GETGEN) while they are dumped makes
the dump worthless, as NLM_F_DUMP_INTR does: it is taken again, a few times, and then `RulesChangingError` says so.
Nothing here ever means "there are no rules" because it could not be read.

Sockets are opened on the event loop, so that they belong to its network namespace. Then a worker thread reads, for a
bounded time: most of it is the kernel at work, without the interpreter's lock. It never outlives the task that asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from guestagent import netlink, nft_dump
from guestagent.iptables_table import ENTRIES_HEADER, INFO, parse_info
from guestagent.nat_contents import NftMessage, RawRules, RawTable, entry_chains
from guestagent.nat_ports import OwnAddress
from guestagent.netlink import KernelDataError
from guestagent.nft_dump import ChainRecord, SetRecord, parse_record
from guestagent.route_dump import ADDRESS_REQUEST_KIND, parse_address

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of all answers. 5,000 rules of iptables-nft are 3 MB."""

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_ATTEMPTS = 4
_RECEIVE_SIZE = 64 * 1024  # the kernel makes its parts at most 32 KiB
_ANSWER_TIMEOUT = struct.pack("@ll", 2, 0)  # struct timeval; the kernel answers as it is asked
_ABSENT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOENT, errno.EAFNOSUPPORT})
_AGAIN = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ENOBUFS})
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_*, IP6T_SO_*
_TABLE_NAMES = {False: "ip_tables_names", True: "ip6_tables_names"}
_LEVELS = {False: (socket.AF_INET, socket.IPPROTO_IP), True: (socket.AF_INET6, socket.IPPROTO_IPV6)}


class RulesChangingError(Exception):
    """The rules were changed under each attempt to read them."""


class RulesTooLargeError(Exception):
    """The rules have more bytes than are read."""


class _InterruptedError(Exception):
    """This dump is not of one moment."""


@dataclass(slots=True)
class PreparedSockets:
    """What one read asks through."""

    route: socket.socket
    nftables: socket.socket | None
    legacy: dict[bool, socket.socket]


class NatReader:
    """Reads the rules, and remembers them while their generation stays."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = RawRules()
        self._sequence = 0
        self._received = 0
        self._interrupted = False

    @contextlib.contextmanager
    def prepared(self) -> Iterator[PreparedSockets]:
        """The sockets for one `read_blocking`, of the caller's network namespace. Raises `OSError`."""
        with contextlib.ExitStack() as stack:
            route = stack.enter_context(_netlink_socket(_NETLINK_ROUTE))
            nftables = None
            try:
                nftables = stack.enter_context(_netlink_socket(_NETLINK_NETFILTER))
            except OSError as exc:
                if exc.errno not in _ABSENT:
                    raise
            legacy = {
                ipv6: stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
                for ipv6, (family, _) in _LEVELS.items()
                if self._has_legacy_table(ipv6)
            }
            yield PreparedSockets(route, nftables, legacy)

    async def read(self) -> tuple[RawRules, float]:
        """The rules as they are now, and the seconds of CPU that it took to read them.

        Raises `OSError`, `KernelDataError`, `RulesChangingError` or `RulesTooLargeError`: then nothing is known.
        """
        with self.prepared() as sockets:
            return await trio.to_thread.run_sync(self._read_timed, sockets)

    def _read_timed(self, sockets: PreparedSockets) -> tuple[RawRules, float]:
        began = time.thread_time()
        raw = self.read_blocking(sockets)
        return raw, time.thread_time() - began

    def read_blocking(self, sockets: PreparedSockets) -> RawRules:
        """As `read`, in the calling thread."""
        for _ in range(_ATTEMPTS):
            self._received = 0
            try:
                self._last = self._read_once(sockets)
            except _InterruptedError:
                continue
            except OSError as exc:
                if exc.errno not in _AGAIN:
                    raise
                continue
            return self._last
        raise RulesChangingError(f"the rules changed under {_ATTEMPTS} attempts to read them")

    def _read_once(self, sockets: PreparedSockets) -> RawRules:
        generation, messages = self._nftables(sockets.nftables) if sockets.nftables else (0, ())
        tables = tuple(_legacy_table(legacy, ipv6) for ipv6, legacy in sockets.legacy.items())
        if not messages and not tables:
            return RawRules(generation)
        dumped = self._dump(sockets.route, netlink.pack(ADDRESS_REQUEST_KIND, *self._next(), bytes(8)))
        names = tuple(socket.if_nameindex())
        by_index = dict(names)
        addresses = tuple(
            OwnAddress(by_index[index], address)
            for index, address in (parse_address(kind, payload) or (0, None) for kind, payload in dumped)
            if address is not None and index in by_index
        )
        return RawRules(generation, messages, tables, addresses, names)

    # ------------------------------------------------------------------ nftables

    def _nftables(self, link: socket.socket) -> tuple[int, tuple[NftMessage, ...]]:
        """Generation, and what concerns translation, nothing when nothing translates."""
        try:
            generation = self._generation(link)
        except OSError as exc:
            if exc.errno in _ABSENT:
                return 0, ()
            raise
        if generation == self._last.generation:
            return generation, self._last.messages
        chains = self._ask(link, nft_dump.GET_CHAIN)
        records = [parse_record(*chain) for chain in chains]
        entries = entry_chains([record for record in records if isinstance(record, ChainRecord)])
        messages: list[NftMessage] = chains if entries else []
        for family, table in dict.fromkeys((chain.family, chain.table) for chain in entries):
            messages += self._ask(link, nft_dump.GET_RULE, family, nft_dump.name_attribute(1, table))
            sets = self._ask(link, nft_dump.GET_SET, family, nft_dump.name_attribute(1, table))
            messages += sets
            for record in (parse_record(*one) for one in sets):
                if isinstance(record, SetRecord):
                    asked = nft_dump.name_attribute(1, table) + nft_dump.name_attribute(2, record.name)
                    messages += self._ask(link, nft_dump.GET_ELEMENTS, family, asked)
        if self._generation(link) != generation:
            raise _InterruptedError
        return generation, tuple(messages)

    def _generation(self, link: socket.socket) -> int:
        self._sequence += 1
        link.send(nft_dump.request(nft_dump.GET_GENERATION, self._sequence, dump=False))
        for kind, payload in self._receive(link):
            if kind == nft_dump.SUBSYSTEM | nft_dump.NEW_GENERATION:
                return nft_dump.parse_generation(payload)
        raise KernelDataError("nftables named no generation")

    def _ask(self, link: socket.socket, kind: int, family: int = 0, attributes: bytes = b"") -> list[NftMessage]:
        self._sequence += 1
        try:
            return self._dump(link, nft_dump.request(kind, self._sequence, family, attributes))
        except FileNotFoundError:  # the table or set is gone since it was listed
            raise _InterruptedError from None

    # ------------------------------------------------------------------ netlink

    def _next(self) -> tuple[int, int]:
        self._sequence += 1
        return netlink.REQUEST | netlink.DUMP, self._sequence

    def _dump(self, link: socket.socket, request: bytes) -> list[NftMessage]:
        link.send(request)
        found: list[NftMessage] = []
        self._interrupted = False
        while True:
            for kind, payload in self._receive(link):
                if kind != netlink.DONE:
                    found.append((kind, payload))
                elif self._interrupted:
                    raise _InterruptedError
                else:
                    return found

    def _receive(self, link: socket.socket) -> Iterator[NftMessage]:
        """The messages of one datagram that answer the last question. Raises `OSError` for a refusal."""
        data, _, flags, _ = link.recvmsg(_RECEIVE_SIZE)
        self._received += len(data)
        if flags & socket.MSG_TRUNC:
            raise KernelDataError("a part of the rules is larger than the kernel makes any")
        if self._received > MOST_BYTES:
            raise RulesTooLargeError(f"the rules have more than {MOST_BYTES >> 20} MiB")
        for kind, flag, sequence, start, end in netlink.walk(data):
            if sequence != self._sequence:
                continue
            if flag & netlink.DUMP_INTERRUPTED:
                self._interrupted = True  # read to its end all the same: the socket is busy until then
            if kind in (netlink.ERROR, netlink.DONE):
                number = netlink.error_number(netlink.Message(kind, flag, sequence, data[start:end]))
                if number:
                    raise OSError(number, os.strerror(number))
            yield kind, data[start:end]

    # ------------------------------------------------------------------ iptables-legacy

    def _has_legacy_table(self, ipv6: bool) -> bool:
        try:
            names = (self._proc / "net" / _TABLE_NAMES[ipv6]).read_text("ascii", "replace")
        except (FileNotFoundError, PermissionError):  # readable for root only; nftables will say so
            return False
        return "nat" in names.split()


def _netlink_socket(family: int) -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
    return link


def _legacy_table(legacy: socket.socket, ipv6: bool) -> RawTable:
    """The nat table. Its size may change between the two questions: the kernel says EAGAIN then."""
    name = b"nat"
    info = _get_option(legacy, _LEVELS[ipv6][1], _GET_INFO, name.ljust(INFO.size, b"\0"))
    size = parse_info(info).size
    if size > MOST_BYTES:
        raise RulesTooLargeError(f"an iptables table has {size} bytes")
    asked = ENTRIES_HEADER.pack(name, size) + bytes(size)
    answer = _get_option(legacy, _LEVELS[ipv6][1], _GET_ENTRIES, asked)
    return RawTable(ipv6, info, answer[ENTRIES_HEADER.size :])


def _get_option(asked: socket.socket, level: int, option: int, value: bytes) -> bytes:
    """getsockopt(2) with a question in its buffer, which Python's own cannot ask."""
    import ctypes  # only a guest with iptables-legacy comes here

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(value, len(value))
    size = ctypes.c_uint32(len(value))
    if libc.getsockopt(asked.fileno(), level, option, buffer, ctypes.byref(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: size.value]
