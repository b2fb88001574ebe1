"""What engines say: a real answer, answers in pieces, and anything else that bytes can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.engine_answers import (
    Container,
    body_untrusted,
    containers_untrusted,
    name_untrusted,
    published_untrusted,
)
from protocol.errors import RemoteProtocolError
from protocol.ports import Protocol

DOCKER = (Path(__file__).parent / "engines" / "docker-20.10.http").read_bytes()
TCP, UDP = Protocol.TCP, Protocol.UDP


def read(answer: bytes) -> list[Container | None]:
    return list(containers_untrusted(body_untrusted(answer)))


def answer(value: object, *fields: str) -> bytes:
    head = "\r\n".join(("HTTP/1.0 200 OK", "Content-Type: application/json", *fields))
    return head.encode() + b"\r\n\r\n" + json.dumps(value).encode()


def test_a_real_dockers_answer_is_read() -> None:
    database, host, web = read(DOCKER)
    assert database
    assert (database.name, database.identifier[:12]) == ("db.1", "b560cac189f6")
    assert database.addresses == {"172.30.0.2"}
    assert host
    assert (host.name, host.published, host.addresses) == ("host_net", (), frozenset())
    assert web
    assert web.published == ((UDP, "127.0.0.1", 5353), (TCP, "0.0.0.0", 8080), (TCP, "::", 8080))


def test_an_answer_that_was_cut_short_is_none() -> None:
    for end in range(len(DOCKER.rstrip())):
        with pytest.raises(RemoteProtocolError):
            read(DOCKER[:end])
    with pytest.raises(RemoteProtocolError):
        read(answer([], "Content-Length: 3"))
    assert read(answer([], "Content-Length: 2") + b"no more of it") == []


@pytest.mark.parametrize(
    "text",
    [
        b'HTTP/1.0 404 Not Found\r\nContent-Length: 29\r\n\r\n{"message":"page not found"}\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n[]",
        b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999999\r\n\r\n[]",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n[]",
        b"[]",
        b"",
        answer({"message": "no"}),
        answer(None),
        answer([{}])[:-1] + b",]",
        answer([])[:-1] + b",]",
        answer([{}])[:-1] + b" {}]",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.0 200 OK\r\n\r\n[" + b"9" * 10_000 + b"]",
    ],
)
def test_what_is_no_list_of_containers_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(text)


def test_what_makes_no_sense_is_left_out_and_the_rest_stays() -> None:
    ports = [
        *(None, 7, {}, {"PublicPort": "80", "Type": "tcp"}, {"PublicPort": 0, "Type": "tcp"}),
        *(
            {"PublicPort": 65_536, "Type": "tcp"},
            {"PublicPort": 80, "Type": "sctp"},
            {"PrivatePort": 80, "Type": "tcp"},
        ),
        *({"IP": "nowhere", "PublicPort": 80, "Type": "tcp"}, {"IP": 7, "PublicPort": 80, "Type": "tcp"}),
        *({"IP": "", "PublicPort": 80, "Type": "tcp"}, {"IP": "0:0::1", "PublicPort": 81, "Type": "udp"}),
    ]
    networks = {"a": None, "b": {"IPAddress": "", "GlobalIPv6Address": "FD00::2"}, "c": {"IPAddress": ["10.0.0.1"]}}
    good = {"Id": "1", "Names": ["/a/link", 7, "/web"], "Ports": ports, "NetworkSettings": {"Networks": networks}}
    bad: list[object] = [
        None,
        7,
        [],
        {},
        {"Id": "1"},
        {"Id": "1", "Names": []},
        {"Id": "1", "Names": ["/", "/a/b"]},
        {"Names": ["/x"]},
    ]
    found = read(answer([*bad, good, {"Id": "2", "Names": ["bare"], "Ports": None, "NetworkSettings": []}]))
    assert found[: len(bad)] == [None] * len(bad)
    assert found[len(bad) :] == [
        Container("web", "1", ((TCP, "0.0.0.0", 80), (UDP, "::1", 81)), frozenset({"fd00::2"})),
        Container("bare", "2", (), frozenset()),
    ]


def test_netavarks_file_says_which_container_has_which_address() -> None:
    text = (
        b'{"container_id":"0123","port_mappings":null,"network_name":"podman","network_hash_name":"2f259bab",'
        b'"container_ip_v4":"10.88.0.2","subnet_v4":"10.88.0.0/16","container_ip_v6":null,"subnet_v6":null,'
        b'"dns_port":53,"dns_server_ips":[]}'
    )
    assert published_untrusted(text) == ("0123", frozenset({"10.88.0.2"}))
    assert published_untrusted(b'{"container_id": "1", "container_ip_v6": "fd00::2"}') == ("1", frozenset({"fd00::2"}))


def test_nerdctls_file_has_the_name() -> None:
    text = (
        b'{"Namespace":"default","ID":"0123","Networks":{"bridge":{}},"Hostname":"0123","ExtraHosts":{},"Name":"web"}'
    )
    assert name_untrusted(text) == "web"


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", b'{"Name": ""}', b'{"Name": 7}', b'{"container_id": null}']
)
def test_other_files_are_refused(text: bytes) -> None:
    for parse in (published_untrusted, name_untrusted):
        with pytest.raises(RemoteProtocolError):
            parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(("Id", "Names", "Ports", "PublicPort", "IP")), inner)
    ),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()), st.integers(0, len(DOCKER)))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    for parse in (
        lambda: list(containers_untrusted(data)),
        lambda: read(data),
        lambda: read(DOCKER[:at] + data + DOCKER[at:]),
        lambda: published_untrusted(data),
        lambda: name_untrusted(data),
    ):
        try:
            parse()
        except RemoteProtocolError:
            continue
