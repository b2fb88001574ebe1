"""dnsmasq of the distribution as a name server, over UDP and TCP, with dnslib on the host."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import dnslib

from tests.programs.case import Program
from tests.programs.guest import LOOPBACKS, NAMES, ProgramGuest

GUEST_PORT = 53
SERVICE = "dnsmasq"
PROTOCOLS = ("udp", "tcp")
SOCKETS, EACH = 10, 20
LARGE = [f"{number:03} {'t' * 200}" for number in range(20)]
"""TXT records that no datagram of 512 bytes holds, nor one of 1,232."""

SETTINGS = f"""no-resolv
no-hosts
local=/test/
bind-interfaces
listen-address=127.0.0.1,::1
edns-packet-max=8192
address=/load.test/192.0.2.7
host-record=one.test,192.0.2.1,2001:db8::1
txt-record=one.test,some words
{"".join(f"txt-record=large.test,{words}{chr(10)}" for words in LARGE)}"""


@contextmanager
def running(guest: ProgramGuest) -> Iterator[None]:
    """The server with names of the tests'."""
    guest.put(SETTINGS, "/etc/dnsmasq.d/programs.conf")
    guest.start(SERVICE)
    for protocol in PROTOCOLS:
        guest.listening(GUEST_PORT, protocol)
    yield
    guest.stop(SERVICE)
    guest.gone([(GUEST_PORT, protocol) for protocol in PROTOCOLS])


PROGRAM = Program("dnsmasq", running)


def question(name: str, kind: str, *, room: int = 0) -> dnslib.DNSRecord:
    """A question; with `room`, one that allows datagrams of that many bytes (EDNS)."""
    record = dnslib.DNSRecord.question(name, kind)
    if room:
        record.add_ar(dnslib.EDNS0(udp_len=room))
    return record


def ask(asked: dnslib.DNSRecord, host: str, protocol: str = "udp") -> dnslib.DNSRecord:
    """The answer to a question, as it came."""
    packet = asked.send(host, NAMES, tcp=protocol == "tcp", timeout=30, ipv6=":" in host)
    answer = dnslib.DNSRecord.parse(packet)
    assert answer.header.id == asked.header.id
    return answer


def data_of(answer: dnslib.DNSRecord) -> list[str]:
    """What the records of an answer hold."""
    return sorted(str(record.rdata) for record in answer.rr)


@PROGRAM.case(f"its port 53 is at the host's {NAMES} by a rule, for UDP and TCP, and listed with process and unit")
def listed(guest: ProgramGuest) -> None:
    for protocol in PROTOCOLS:
        line = guest.listening(GUEST_PORT, protocol)
        assert (line["owner"]["process"], line["owner"]["unit"]) == ("dnsmasq", f"{SERVICE}.service")
        assert {end["port"] for end in line["host"]} == {NAMES}


@PROGRAM.case("A, AAAA, TXT, and a name that does not exist, over UDP and TCP, by IPv4 and IPv6")
def answers(guest: ProgramGuest) -> None:
    for host in LOOPBACKS:
        for protocol in PROTOCOLS:
            assert data_of(ask(question("one.test", "A"), host, protocol)) == ["192.0.2.1"]
            assert data_of(ask(question("one.test", "AAAA"), host, protocol)) == ["2001:db8::1"]
            assert data_of(ask(question("one.test", "TXT"), host, protocol)) == ['"some words"']
            missing = ask(question("missing.test", "A"), host, protocol)
            assert (missing.header.rcode, missing.rr) == (dnslib.RCODE.NXDOMAIN, [])


@PROGRAM.case("a large answer is truncated over UDP, whole over TCP, and whole in one datagram where EDNS allows that")
def large_answer(guest: ProgramGuest) -> None:
    for host in LOOPBACKS:
        cut = ask(question("large.test", "TXT"), host)
        assert cut.header.tc == 1
        assert len(cut.rr) < len(LARGE)
        cut = ask(question("large.test", "TXT", room=1_232), host)
        assert cut.header.tc == 1
        for whole in (
            ask(question("large.test", "TXT"), host, "tcp"),
            ask(question("large.test", "TXT", room=8_192), host),
        ):
            assert whole.header.tc == 0
            assert data_of(whole) == [f'"{words}"' for words in LARGE]
        guest.note(f"{len(whole.pack()):,} bytes")


@PROGRAM.case(
    f"{SOCKETS * EACH} questions under way at once from {SOCKETS} sockets, each answered to the one that asked"
)
def many_questions(guest: ProgramGuest) -> None:
    with ExitStack() as stack:
        expected: dict[socket.socket, dict[int, str]] = {}
        began = time.monotonic()
        for number in range(SOCKETS):
            host = LOOPBACKS[number % 2]
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            client.connect((host, NAMES))
            expected[client] = {}
            for identity in range(EACH):
                asked = question(f"name-{number}-{identity}.load.test", "A")
                # The same identities on every socket: only the socket tells whose answer it is.
                asked.header.id = identity
                expected[client][identity] = str(asked.q.qname)
                client.send(asked.pack())
        while any(expected.values()):
            ready = select.select(list(expected), [], [], 30)[0]
            assert ready, f"{sum(map(len, expected.values()))} questions were not answered"
            for client in ready:
                answer = dnslib.DNSRecord.parse(client.recv(4_096))
                assert expected[client].pop(answer.header.id) == str(answer.q.qname)
                assert data_of(answer) == ["192.0.2.7"]
        guest.note(f"all after {time.monotonic() - began:.2f} s")


@PROGRAM.case("the server is restarted: a client that keeps its socket is answered again", quick=False)
def restarted(guest: ProgramGuest) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", NAMES))
        packet = question("one.test", "A").pack()
        client.send(packet)
        client.settimeout(30)
        assert client.recv(512)
        guest.shell(f"systemctl restart {SERVICE}")
        for protocol in PROTOCOLS:
            guest.listening(GUEST_PORT, protocol)
        client.settimeout(2)
        for _ in range(10):  # as every resolver does: a datagram may be lost
            try:
                client.send(packet)
                assert data_of(dnslib.DNSRecord.parse(client.recv(512))) == ["192.0.2.1"]
                return
            except (TimeoutError, ConnectionRefusedError) as error:
                guest.note(f"asked again after {type(error).__name__}")
        raise AssertionError("the restarted server has not answered")
