"""Whom to ask about a port, and which container of a list it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.container_questions import ContainerList, Question, Source, may_be_asked, question_about
from guestagent.engine_answers import Container
from protocol.ports import Port, PortKind, PortOwner, Protocol

ID, OTHER_ID = "0123456789ab" + "f" * 52, "ba9876543210" + "f" * 52
SHORT = ID[:12]
PORT = Port(Protocol.TCP, "0.0.0.0", 8080)
RULE = replace(PORT, kind=PortKind.NAT)
INODES = frozenset({7})

DOCKER, IF_RUNNING, USERS, MONITOR, NETAVARK, NERDCTL, HOLDER = Source


@pytest.mark.parametrize(
    ("owner", "sources", "address", "identifier"),
    [
        (PortOwner("docker-proxy", 5, 0, "docker/172.17.0.2"), {DOCKER}, "172.17.0.2", ""),
        (PortOwner("docker-proxy", 5, 0, "docker/fd00::2"), {DOCKER}, "fd00::2", ""),
        (PortOwner("dockerd", 5, 0, "docker.service"), {DOCKER}, "", ""),
        (PortOwner("rootlesskit", 5, 1000, "docker.service"), {USERS}, "", ""),
        (PortOwner("podman", 5, 0, "session-3.scope"), {HOLDER}, "", ""),
        (PortOwner("rootlessport", 5, 1000), {HOLDER}, "", ""),
        (PortOwner("slirp4netns", 5, 1000), {HOLDER}, "", ""),
        (PortOwner("passt.avx2", 5, 1000), {HOLDER}, "", ""),
        (PortOwner("python3", 5, 0, f"docker/{SHORT}"), {IF_RUNNING}, "", SHORT),
        (PortOwner("python3", 5, 101000, f"libpod/{SHORT}"), {MONITOR}, "", SHORT),
        (PortOwner("python3", 5, 0, f"nerdctl/{SHORT}"), {NERDCTL}, "", SHORT),
    ],
)
def test_what_is_asked_about_a_process(owner: PortOwner, sources: set[Source], address: str, identifier: str) -> None:
    assert may_be_asked(owner)
    inodes = INODES if sources == {HOLDER} else frozenset()
    assert question_about(PORT, owner, "", INODES) == Question(
        PORT, owner, frozenset(sources), address, identifier, inodes
    )


@pytest.mark.parametrize(
    "owner",
    [
        PortOwner("docker-proxy", 5, 1000, "docker/172.17.0.2"),
        PortOwner("dockerd", 5, 1000),
        PortOwner("rootlesskit", 5, 0),
        PortOwner("conmon", 5, 0, "podman/web"),
        PortOwner("conmon", 5, 0, f"podman/{SHORT}"),
        PortOwner("python3", 5, 0, f"cri-containerd/{SHORT}"),
        PortOwner("python3", 5, 0, "docker/172.17.0.2"),
    ],
)
def test_nothing_is_asked_about_what_is_known_or_only_claims_to_be_an_engine(owner: PortOwner) -> None:
    assert question_about(PORT, owner, "172.17.0.2", INODES) is None


def test_an_ordinary_server_is_not_even_looked_at() -> None:
    assert not may_be_asked(PortOwner("nginx", 5, 33, "nginx.service"))


@pytest.mark.parametrize(
    ("unit", "sources", "identifier"),
    [
        ("", {IF_RUNNING, NETAVARK}, ""),
        ("DNAT", {IF_RUNNING, NETAVARK}, ""),
        ("default/web", {IF_RUNNING, NETAVARK}, ""),
        (f"podman/{SHORT}", {MONITOR, NERDCTL}, SHORT),
        (f"net/work/{SHORT}", {MONITOR, NERDCTL}, SHORT),
    ],
)
def test_what_is_asked_about_a_translation(unit: str, sources: set[Source], identifier: str) -> None:
    owner = PortOwner("iptables rule", 0, 0, unit)
    assert may_be_asked(owner)
    question = question_about(RULE, owner, "10.88.0.2", INODES)
    assert question
    assert question.sources == sources
    assert question.identifier == identifier
    assert question.address == ("" if identifier else "10.88.0.2")
    assert question_about(RULE, owner, "", INODES) is None  # leads to the guest itself


def container(name: str, identifier: str, address: str, *published: tuple[str, int]) -> Container:
    return Container(name, identifier, tuple((Protocol.TCP, *one) for one in published), frozenset({address}))


WEB = container("web", ID, "172.17.0.2", ("0.0.0.0", 8080), ("::", 8080), ("127.0.0.1", 80))
DATABASE = container("db", OTHER_ID, "172.30.0.2", ("192.168.5.15", 80), ("0.0.0.0", 5432))
LIST = ContainerList([WEB, DATABASE])


@pytest.mark.parametrize(
    ("port", "known", "name"),
    [
        (PORT, {}, "web"),
        (Port(Protocol.TCP, "::", 8080), {}, "web"),
        (Port(Protocol.TCP, "::", 5432), {}, "db"),  # dockerd's socket is for both versions
        (Port(Protocol.TCP, "127.0.0.1", 80), {}, "web"),
        (Port(Protocol.TCP, "192.168.5.15", 80), {}, "db"),
        (Port(Protocol.TCP, "0.0.0.0", 80), {}, ""),
        (Port(Protocol.UDP, "0.0.0.0", 8080), {}, ""),
        (Port(Protocol.TCP, "0.0.0.0", 8081), {}, ""),
        (PORT, {"address": "172.17.0.2"}, "web"),
        (PORT, {"address": "172.30.0.2"}, "db"),  # a rule by hand, to a port that db does not publish
        (PORT, {"address": "10.0.0.9"}, ""),  # a rule by hand, to something else
        (PORT, {"identifier": SHORT}, "web"),
        (PORT, {"identifier": "0" * 12}, ""),
    ],
)
def test_a_port_is_the_containers_whose_it_can_only_be(port: Port, known: dict[str, str], name: str) -> None:
    question = Question(port, PortOwner("dockerd", 5, 0), frozenset({DOCKER}), **known)  # type: ignore[arg-type]
    assert LIST.name_for(question) == name


def test_where_two_come_into_question_none_is_named() -> None:
    other = container("other", OTHER_ID, "172.17.0.2", ("0.0.0.0", 8080))
    both = ContainerList([WEB, other])
    for known in ({}, {"address": "172.17.0.2"}):
        assert both.name_for(Question(PORT, PortOwner("x", 5, 0), frozenset(), **known)) == ""  # type: ignore[arg-type]


@given(st.builds(PortOwner, st.text(), st.integers(0, 9), st.integers(0, 9), st.text()), st.text())
def test_any_owner_is_asked_about_or_not(owner: PortOwner, target: str) -> None:
    question = question_about(PORT, owner, target, INODES)
    if question:
        assert may_be_asked(owner)
        assert LIST.name_for(question) in {"", "web", "db"}
