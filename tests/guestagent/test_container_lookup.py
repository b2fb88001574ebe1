"""Asking for names: a real server on a unix socket, a /proc and files that are made up, and engines that misbehave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from guestagent import container_lookup
from guestagent.container_lookup import ContainerLookup, ask
from guestagent.container_questions import Question, question_about
from guestagent.engine_answers import MAX_ANSWER, REQUEST
from protocol.errors import RemoteProtocolError
from protocol.ports import Port, PortKind, PortOwner, Protocol
from tests.fakes.container_engine import HEAD, ContainerEngine, container_engine, listed
from tests.fakes.made_up_proc import MadeUpProc

ID, OTHER_ID = "0123456789ab" + "f" * 52, "ba9876543210" + "f" * 52
SHORT = ID[:12]
UID = os.geteuid()
PORT = Port(Protocol.TCP, "0.0.0.0", 8080)
PROXY = PortOwner("docker-proxy", 5, 0, "docker/172.17.0.2")
RULE = PortOwner("iptables rule", 0, 0)


def about(owner: PortOwner, number: int = 8080, target: str = "", *inodes: int) -> Question:
    kind = PortKind.SOCKET if owner.pid else PortKind.NAT
    question = question_about(Port(Protocol.TCP, "0.0.0.0", number, kind), owner, target, frozenset(inodes))
    assert question
    return question


class Guest:
    """A guest's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = MadeUpProc(root / "proc")
        self.proc.add_self(namespace=40)
        self.lookup = ContainerLookup(root, uid=UID)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    async def units(self, *questions: Question) -> list[str]:
        """What is found out about each."""
        answers = await self.lookup.find(questions)
        assert all(replace(owner, unit="") == replace(asked.owner, unit="") for asked, owner in answers.items())
        return [answers[question].unit if question in answers else "" for question in questions]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


DOCKER = "run/docker.sock"


# --- Docker -----------------------------------------------------------------------------------------------------------


async def test_docker_is_asked_once_for_all_ports(guest: Guest) -> None:
    async with container_engine(guest.root / DOCKER) as engine:
        engine.containers = [listed("web", 8080), listed("db", 5432, "172.17.0.3", ID)]
        questions = [about(PROXY), about(replace(PROXY, unit="docker/172.17.0.3"), 5432), about(PROXY, 81)]
        assert await guest.units(*questions) == ["docker/web", "docker/db", "docker/web"]
        assert engine.requests == [REQUEST]
    assert guest.lookup.failures == 0


async def test_names_are_bounded_and_printable(guest: Guest) -> None:
    async with container_engine(guest.root / DOCKER) as engine:
        engine.containers = [listed("\x1b[2J\ud800" + "x" * 1_000, 8080)]
        (unit,) = await guest.units(about(PROXY))
    assert unit.startswith("docker/?[2J?xxx")
    assert len(unit) == 128


@pytest.mark.parametrize(
    ("pid", "comm", "asked"), [("77", "dockerd", True), ("77", "sh", False), ("78", "dockerd", False), ("x", "", False)]
)
async def test_for_translations_docker_is_asked_if_it_runs(guest: Guest, pid: str, comm: str, asked: bool) -> None:
    """What a dead Docker has left must not start it by way of systemd's socket."""
    guest.write("run/docker.pid", pid)
    guest.proc.add(77, comm=comm)
    container = about(PortOwner("python3", 9, 0, f"docker/{SHORT}"))
    async with container_engine(guest.root / DOCKER) as engine:
        engine.containers = [listed("web", 8080, identifier=ID)]
        named = ["docker/web"] * 2 if asked else ["", ""]
        assert await guest.units(about(RULE, 8080, "172.17.0.2"), container) == named
        assert len(engine.requests) == asked


async def test_a_users_docker_is_asked_for_that_users_ports(guest: Guest) -> None:
    uid = UID or 0
    owner = PortOwner("rootlesskit", 5, uid or 1000)
    async with container_engine(guest.root / f"run/user/{owner.uid}/docker.sock") as engine:
        engine.containers = [listed("web", 8080)]
        os.chown(guest.root / f"run/user/{owner.uid}/docker.sock", owner.uid, -1)
        other = replace(owner, uid=owner.uid + 1)
        assert await guest.units(about(owner), about(other)) == ["docker/web", ""]
    assert guest.lookup.failures == 1


def silent(engine: ContainerEngine) -> None:
    engine.silent = True


def endless(engine: ContainerEngine) -> None:
    engine.endless = True


def saying(text: bytes) -> Callable[[ContainerEngine], None]:
    def set_text(engine: ContainerEngine) -> None:
        engine.raw = text

    return set_text


@pytest.mark.parametrize(
    "misbehave",
    [silent, endless, saying(b""), saying(b"no"), saying(HEAD + b"[[[["), saying(HEAD + b" " * (MAX_ANSWER + 1))],
)
async def test_a_docker_that_misbehaves_costs_its_own_answer(
    guest: Guest, misbehave: Callable[[ContainerEngine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_lookup, "TIME_LIMIT", 0.5)
    guest.proc.add(300, comm="conmon", command_line=MadeUpProc.conmon(ID, "db"))
    podman = about(replace(RULE, unit=f"podman/{SHORT}"), 5432, "10.88.0.2")
    async with container_engine(guest.root / DOCKER) as engine:
        misbehave(engine)
        assert await guest.units(about(PROXY), podman) == ["", "podman/db"]
    assert guest.lookup.failures == 1


async def test_without_a_docker_nothing_is_known(guest: Guest) -> None:
    assert await guest.units(about(PROXY)) == [""]
    assert guest.lookup.failures == 1


async def test_only_a_socket_of_the_right_user_is_connected_to(guest: Guest) -> None:
    async with container_engine(guest.root / "real.sock") as engine:
        (guest.root / "link.sock").symlink_to("real.sock")
        (guest.root / "file.sock").touch()
        for name, uid in (("link.sock", UID), ("file.sock", UID), ("real.sock", UID + 1)):
            with pytest.raises(RemoteProtocolError):
                await ask(guest.root / name, uid)
        assert await ask(guest.root / "real.sock", UID) == engine.answer()
        assert len(engine.requests) == 1


# --- Podman -----------------------------------------------------------------------------------------------------------


async def test_a_rules_comment_leads_to_roots_monitor(guest: Guest) -> None:
    guest.proc.add(300, comm="conmon", command_line=MadeUpProc.conmon(ID, "web"))
    rule = about(replace(RULE, unit=f"podman/{SHORT}"), 8080, "10.88.0.2")
    other = about(replace(RULE, unit=f"podman/{OTHER_ID[:12]}"), 8081, "10.88.0.3")
    assert await guest.units(rule, other) == ["podman/web", ""]


async def test_a_users_monitor_names_no_translation_and_roots_one_comes_first(guest: Guest) -> None:
    rule = about(replace(RULE, unit=f"podman/{SHORT}"), 8080, "10.88.0.2")
    process = about(PortOwner("python3", 9, 101000, f"libpod/{SHORT}"), 8081)
    guest.proc.add(300, comm="conmon", command_line=MadeUpProc.conmon(ID, "theirs"))
    os.chown(guest.root / "proc" / "300", UID + 1, -1)
    assert await guest.units(rule, process) == ["", "podman/theirs"]
    guest.proc.add(301, comm="conmon", command_line=MadeUpProc.conmon(ID, "ours"))
    assert await guest.units(rule, process) == ["podman/ours", "podman/ours"]


async def test_netavarks_files_lead_from_the_address_to_the_monitor(guest: Guest) -> None:
    guest.proc.add(300, comm="conmon", command_line=MadeUpProc.conmon(ID, "web"))
    ports = "run/containers/networks/firewall/ports"
    guest.write(f"{ports}/{'2f' * 32}_{ID}", json.dumps({"container_id": ID, "container_ip_v4": "10.88.0.2"}))
    guest.write(f"{ports}/garbage", "\0")
    (guest.root / ports / "loop").symlink_to("loop")
    assert await guest.units(about(RULE, 8080, "10.88.0.2"), about(RULE, 8081, "10.88.0.3")) == ["podman/web", ""]
    assert guest.lookup.failures == 0


async def test_without_netavark_a_rule_by_hand_makes_nobody_walk_through_proc(tmp_path: Path) -> None:
    lookup = ContainerLookup(tmp_path, uid=UID)  # there is no /proc
    assert await lookup.find([about(RULE, 8080, "10.0.0.2")]) == {}
    assert lookup.failures == 0
    assert await lookup.find([about(replace(RULE, unit=f"x/{SHORT}"), 8080, "10.0.0.2")]) == {}
    assert lookup.failures == 1


async def test_podmans_own_process_hands_the_port_on_to_the_monitor(guest: Guest) -> None:
    owner = PortOwner("podman", 200, UID, "session-3.scope")
    guest.proc.add(200, 7, comm="podman")
    guest.proc.open(200, 9, "pipe:[5]")
    guest.proc.add(299, comm="conmon", command_line=MadeUpProc.conmon(OTHER_ID, "earlier"))
    guest.proc.open(299, 9, "pipe:[5]", write=True)  # even if it were tied: it works for all containers
    assert await guest.lookup.find([about(owner, 8080, "", 7)]) == {}
    guest.proc.add(300, 7, comm="conmon", command_line=MadeUpProc.conmon(ID, "web"))
    (guest.root / "proc/200/fd/0").unlink()
    question = about(owner, 8080, "", 7)
    assert await guest.lookup.find([question]) == {question: PortOwner("conmon", 300, UID, "podman/web")}


async def test_a_rootless_forwarder_is_its_monitors(guest: Guest) -> None:
    guest.proc.add(300, comm="conmon", command_line=MadeUpProc.conmon(ID, "web"))
    guest.proc.open(300, 9, "pipe:[5]", write=True)
    guest.proc.add(400, 7, 8, comm="rootlessport")
    guest.proc.open(400, 3, "pipe:[5]")
    guest.proc.add(500, 9, comm="passt.avx2", command_line="pasta\0--netns\0/run/user/1000/netns/netns-1\0")
    owner = PortOwner("rootlessport", 400, UID)
    pasta = PortOwner("passt.avx2", 499, UID)  # which has made a child of its own and left
    questions = [about(owner, 80, "", 7), about(owner, 81, "", 8), about(owner, 82, "", 77), about(pasta, 83, "", 9)]
    answers = await guest.lookup.find(questions)
    assert answers == {question: replace(owner, unit="podman/web") for question in questions[:2]}
    guest.proc.open(500, 6, "/run/user/1000/netns/netns-1", inode=41)
    guest.proc.add(301, namespace=41)
    (guest.root / "proc/300/task/300/children").write_text("301 ")
    answers = await guest.lookup.find(questions)
    assert answers[questions[3]] == PortOwner("passt.avx2", 500, UID, "podman/web")


# --- nerdctl ----------------------------------------------------------------------------------------------------------


async def test_nerdctls_files_have_the_names(guest: Guest) -> None:
    hosts = "var/lib/nerdctl/1935db59/etchosts/default"
    guest.write(f"{hosts}/{ID}/meta.json", json.dumps({"ID": ID, "Name": "web"}))
    guest.write(f"{hosts}/{OTHER_ID}/meta.json", "garbage")
    rules = [about(replace(RULE, unit=f"bridge/{one[:12]}"), 8080, "10.4.0.2") for one in (ID, OTHER_ID)]
    process = about(PortOwner("python3", 9, 0, f"nerdctl/{SHORT}"))
    assert await guest.units(*rules, process) == ["nerdctl/web", "", "nerdctl/web"]
    assert guest.lookup.failures == 0


async def test_a_long_list_lets_others_run(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_lookup, "SLICE", 0.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with container_engine(guest.root / DOCKER) as engine, trio.open_nursery() as nursery:
        engine.containers = [
            listed(f"c{number}", number, f"172.17.{number // 256}.{number % 256}") for number in range(1, 300)
        ]
        nursery.start_soon(count)
        assert await guest.units(about(replace(PROXY, unit="docker/172.17.0.9"), 9)) == ["docker/c9"]
        nursery.cancel_scope.cancel()
    assert turns > 150
