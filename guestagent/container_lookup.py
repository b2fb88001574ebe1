"""Asks whoever may know for the names of the containers behind ports: one round, bounded in time and bytes.

All that can be asked is asked at the same time, each once however many ports it concerns, and after `TIME_LIMIT` the
round is over with what has come by then. An engine that is silent, endless or talks nonsense costs its own answer.

Two rules about sockets. A Docker that no process of its own speaks for is only asked if its pid file names a living
dockerd: systemd holds the socket in many guests, and would start a Docker that was stopped. And a socket is opened
before it is looked at, connected through that descriptor, and has to belong to whom it should: a user can put a link
to anything in place of theirs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from guestagent.container_questions import PODMAN, SHORT, ContainerList, Question, Source
from guestagent.engine_answers import (
    MAX_ANSWER,
    REQUEST,
    Container,
    body_untrusted,
    containers_untrusted,
    name_untrusted,
    published_untrusted,
)
from guestagent.podman_monitors import Monitor, MonitorSearch
from guestagent.port_owner import SLICE, OwnerSearch, container_unit
from protocol.errors import RemoteProtocolError
from protocol.ports import PortOwner

TIME_LIMIT = 2.0
"""Seconds that a round takes at most. Under emulation, an engine that is starting a container answers that late."""

_MOST_USERS = 8
"""Users whose Docker is asked in one round. The others' come in the next one."""

_MOST_FILES = 1_024
"""Files of one folder that are looked at."""

_FILE_SIZE = 65_536
_CHUNK = 65_536
_Answers = dict[Question, PortOwner]
_Item = TypeVar("_Item")
_Arguments = TypeVarTuple("_Arguments")


class ContainerLookup:
    """Finds names. `root` is the guest's file system, and `uid` who its system's engines belong to."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        uid: int = 0,
        search: OwnerSearch | None = None,
        monitors: MonitorSearch | None = None,
    ) -> None:
        self._root = root
        self._uid = uid
        self._search = search or OwnerSearch(root / "proc")
        self._monitors = monitors or MonitorSearch(root / "proc")
        self.failures = 0
        """Engines that gave no answer, or none that makes sense."""

    async def find(self, questions: Collection[Question]) -> dict[Question, PortOwner]:
        """The owners with their containers' names, of as many questions as there is an answer to."""
        answers: _Answers = {}
        docker = Source.DOCKER_IF_RUNNING if self._docker_runs() else Source.DOCKER
        with trio.move_on_after(TIME_LIMIT) as scope:
            async with trio.open_nursery() as nursery:
                if asked := _for({Source.DOCKER, docker}, questions):
                    nursery.start_soon(self._try, self._ask_docker, "run/docker.sock", self._uid, asked, answers)
                theirs = _for({Source.USERS_DOCKER}, questions)
                for uid in sorted({question.owner.uid for question in theirs})[:_MOST_USERS]:
                    asked = [question for question in theirs if question.owner.uid == uid]
                    path = f"run/user/{uid}/docker.sock"
                    nursery.start_soon(self._try, self._ask_docker, path, uid, asked, answers)
                if asked := _for({Source.MONITOR, Source.NETAVARK, Source.HOLDER}, questions):
                    nursery.start_soon(self._try, self._ask_monitors, asked, answers)
                if asked := _for({Source.NERDCTL}, questions):
                    nursery.start_soon(self._try, self._look_at_nerdctl, asked, answers)
        self.failures += scope.cancelled_caught
        return answers

    async def _try(self, act: Callable[[*_Arguments], Awaitable[None]], *arguments: *_Arguments) -> None:
        try:
            await act(*arguments)
        except (OSError, trio.BrokenResourceError, RemoteProtocolError):
            self.failures += 1  # what is shown without it stays

    # ------------------------------------------------------------------ Docker

    def _docker_runs(self) -> bool:
        try:
            pid = self._read("run/docker.pid").strip()
            return pid.isdigit() and self._read(f"proc/{pid.decode()}/comm") == b"dockerd\n"
        except OSError:
            return False

    async def _ask_docker(self, path: str, uid: int, questions: Iterable[Question], answers: _Answers) -> None:
        body = body_untrusted(await ask(self._root / path, uid))
        containers: list[Container] = []
        await _in_slices(containers_untrusted(body), lambda one: containers.append(one) if one else None)
        known = ContainerList(containers)
        await _in_slices(questions, lambda one: _answer(one, "docker", known.name_for(one), answers))

    # ------------------------------------------------------------------ Podman

    async def _ask_monitors(self, questions: list[Question], answers: _Answers) -> None:
        addresses = await self._containers_by_address() if _for({Source.NETAVARK}, questions) else {}
        identifiers = {
            question: addresses.get(question.address, "")[:SHORT] if question.address else question.identifier
            for question in questions
        }
        held = _for({Source.HOLDER}, questions)
        if not held and not any(identifiers.values()):
            return
        monitors = await self._monitors.find()
        # Users can run anything that is called like a monitor: root's come first, and for translations alone.
        known: dict[str, Monitor] = {}
        for monitor in sorted(monitors, key=lambda one: one.uid != self._uid):
            known.setdefault(monitor.identifier[:SHORT], monitor)
        for question, identifier in identifiers.items():
            found = known.get(identifier)
            if found and (question.owner.pid or found.uid == self._uid):
                _answer(question, "podman", found.name, answers)
        if held:
            await self._ask_holders(held, monitors, answers)

    async def _ask_holders(self, questions: list[Question], monitors: list[Monitor], answers: _Answers) -> None:
        """Name containers by the processes that hold the ports now: podman hands them on to the monitor, and pasta to a
        child of its own, maybe after it was found to be the owner."""
        holders = await self._search.find({inode for question in questions for inode in question.inodes})
        ties = await self._monitors.ties(monitors)
        tied: dict[int, Monitor | None] = {}
        for question in questions:
            owner = next((holders[inode] for inode in sorted(question.inodes) if inode in holders), None)
            if owner is None:
                continue
            if owner.unit.startswith("podman/"):
                answers[question] = owner
                continue
            if owner.process == PODMAN:
                continue  # it has not handed it on yet
            if owner.pid not in tied:
                tied[owner.pid] = await self._monitors.tied_to(owner.pid, ties)
            if monitor := tied[owner.pid]:
                answers[question] = replace(owner, unit=container_unit("podman", monitor.name))

    async def _containers_by_address(self) -> dict[str, str]:
        """Ids of containers by their addresses, as netavark keeps them (its src/firewall/state.rs)."""
        found: dict[str, str] = {}
        folder = "run/containers/networks/firewall/ports"

        def take(name: str) -> None:
            with suppress(OSError, RemoteProtocolError):
                identifier, addresses = published_untrusted(self._read(f"{folder}/{name}"))
                found.update(dict.fromkeys(addresses, identifier))

        await _in_slices(self._names(folder), take)
        return found

    # ------------------------------------------------------------------ nerdctl

    async def _look_at_nerdctl(self, questions: list[Question], answers: _Answers) -> None:
        """Name containers by /var/lib/nerdctl/ADDRESS-HASH/etchosts/NAMESPACE/ID/meta.json (its pkg/dnsutil)."""
        wanted = {question.identifier for question in questions}
        found: dict[str, str] = {}

        def take(folder: str) -> None:
            for identifier in self._names(folder):
                if identifier[:SHORT] in wanted:
                    with suppress(OSError, RemoteProtocolError):
                        found[identifier[:SHORT]] = name_untrusted(self._read(f"{folder}/{identifier}/meta.json"))

        stores = [f"var/lib/nerdctl/{store}/etchosts" for store in self._names("var/lib/nerdctl")]
        await _in_slices([f"{store}/{space}" for store in stores for space in self._names(store)], take)
        for question in questions:
            _answer(question, "nerdctl", found.get(question.identifier, ""), answers)

    # ------------------------------------------------------------------ files

    def _names(self, folder: str) -> list[str]:
        """What is in a folder; nothing if there is none."""
        try:
            return sorted(path.name for path in islice((self._root / folder).iterdir(), _MOST_FILES))
        except OSError:
            return []

    def _read(self, file: str) -> bytes:
        descriptor = os.open(self._root / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _FILE_SIZE)
        finally:
            os.close(descriptor)


async def ask(path: Path, uid: int) -> bytes:
    """What the engine behind the socket `path` of user `uid` answers. Raises what files, sockets and parsers raise."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise RemoteProtocolError("the engine's socket is none, or somebody else's")
        stream = await trio.open_unix_socket(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    async with stream:
        await stream.send_all(REQUEST)
        answer = bytearray()
        while chunk := await stream.receive_some(_CHUNK):
            answer += chunk
            if len(answer) > MAX_ANSWER:
                raise RemoteProtocolError("the engine's answer is too long")
    return bytes(answer)


def _for(sources: AbstractSet[Source], questions: Iterable[Question]) -> list[Question]:
    return [question for question in questions if question.sources & sources]


def _answer(question: Question, engine: str, name: str, answers: _Answers) -> None:
    if name:
        answers[question] = replace(question.owner, unit=container_unit(engine, name))


async def _in_slices(items: Iterable[_Item], act: Callable[[_Item], object]) -> None:
    """Act on each item, and let others run every `SLICE` seconds."""
    slice_end = trio.current_time() + SLICE
    for item in items:
        act(item)
        if trio.current_time() >= slice_end:
            await trio.lowlevel.checkpoint()
            slice_end = trio.current_time() + SLICE
