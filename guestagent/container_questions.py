"""Which container a port belongs to: what to ask whom, and which container of an engine's list it is. Pure.

| the port is held by, or opened by         | what says the container's name                                   |
|-------------------------------------------|------------------------------------------------------------------|
| docker-proxy, dockerd                     | Docker, by the published port, else by the container's address   |
| a translation                             | the same, if Docker runs; netavark's files, by address           |
| a translation whose comment has an id     | the monitor (conmon) with that id; nerdctl's files               |
| rootlesskit                               | the Docker of that user                                          |
| rootlessport, pasta, slirp4netns          | the monitor that is tied to that process (`podman_monitors`)     |
| podman, which hands its sockets on        | the process that has the socket now, which is the monitor        |
| conmon                                    | itself: `port_owner` has seen to it                              |
| a process in a container's control group  | Docker, the monitor or nerdctl, by that id                       |

Only root's docker-proxy and dockerd count, so that no user makes the agent ask Docker by calling a program that. Where
only a translation speaks for Docker, it may be what a dead Docker has left: whoever asks has to see that it runs, since
its socket is systemd's in many guests, and to connect would start it.

Podman's own socket is never asked: it is systemd's as well, and behind it runs nothing, most of the time. A running
container always has a monitor, and that has id and name on its command line, wherever the storage is and whoever it
belongs to. So no file of Podman's own is read either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from guestagent.engine_answers import Container
from protocol.ports import Port, PortOwner, Protocol

SHORT = 12
"""Digits of a container's id that units and rules are shown with. They tell containers apart as well as all 64 do."""

_DOCKER = frozenset({"docker-proxy", "dockerd"})
PODMAN = "podman"
"""The command, or the service, which opens a port and hands it on."""

_TIED = frozenset({PODMAN, "rootlessport", "slirp4netns", "pasta", "pasta.avx2", "passt", "passt.avx2"})
_ROOTLESS_DOCKER = "rootlesskit"
_PROCESSES = _DOCKER | _TIED | {_ROOTLESS_DOCKER}
_IDENTIFIED = re.compile(r"(.*)/([0-9a-f]{12})")
_RUNTIMES = {"docker": "docker", "libpod": "podman", "nerdctl": "nerdctl"}
"""What control groups call the engines."""


class Source(Enum):
    """Who may know the name."""

    DOCKER = auto()
    """Root's Docker, which runs."""
    DOCKER_IF_RUNNING = auto()
    USERS_DOCKER = auto()
    """The Docker of the owner's user."""
    MONITOR = auto()
    """The monitor with that id."""
    NETAVARK = auto()
    NERDCTL = auto()
    HOLDER = auto()
    """The process that holds the port's socket now, or the monitor it is tied to."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which container is behind a port?"""

    port: Port
    owner: PortOwner
    sources: frozenset[Source]
    address: str = ""
    """The container's, when it is known."""
    identifier: str = ""
    """The first digits of the container's id, when they are known."""
    inodes: frozenset[int] = frozenset()
    """The port's sockets."""


def may_be_asked(owner: PortOwner) -> bool:
    """Whether `owner` may stand for a container: a quick look, before `question_about`."""
    return not owner.pid or owner.process in _PROCESSES or "/" in owner.unit


def question_about(port: Port, owner: PortOwner, target: str, inodes: frozenset[int]) -> Question | None:
    """What to ask about a port. `target` is the address that a translation leads to; None: no engine's port."""
    runtime, identifier = _identified(owner.unit)
    if not owner.pid:
        return _about_translation(port, owner, target, identifier)
    if owner.process in _DOCKER and owner.uid == 0:
        return Question(port, owner, frozenset({Source.DOCKER}), address=_proxied(owner.unit))
    if owner.process == _ROOTLESS_DOCKER and owner.uid:
        return Question(port, owner, frozenset({Source.USERS_DOCKER}))
    if owner.process in _TIED:
        return Question(port, owner, frozenset({Source.HOLDER}), inodes=inodes)
    match _RUNTIMES.get(runtime):
        case "docker":
            return Question(port, owner, frozenset({Source.DOCKER_IF_RUNNING}), identifier=identifier)
        case "podman":
            return Question(port, owner, frozenset({Source.MONITOR}), identifier=identifier)
        case "nerdctl":
            return Question(port, owner, frozenset({Source.NERDCTL}), identifier=identifier)
    return None


def _about_translation(port: Port, owner: PortOwner, target: str, identifier: str) -> Question | None:
    if not target:
        return None
    if identifier:  # CNI's portmap and netavark say for whom
        return Question(port, owner, frozenset({Source.MONITOR, Source.NERDCTL}), identifier=identifier)
    return Question(port, owner, frozenset({Source.DOCKER_IF_RUNNING, Source.NETAVARK}), address=target)


def _proxied(unit: str) -> str:
    """The address that docker-proxy leads to, by its unit; dockerd has none."""
    return unit.removeprefix("docker/") if unit.startswith("docker/") else ""


def _identified(unit: str) -> tuple[str, str]:
    """The runtime or network, and the short id, of a unit such as `libpod/0123456789ab`."""
    found = _IDENTIFIED.fullmatch(unit)
    return (found[1], found[2]) if found else ("", "")


class ContainerList:
    """The containers of one engine, to be found by what is known of a port."""

    def __init__(self, containers: Iterable[Container]) -> None:
        self._by_id: dict[str, Container] = {}
        self._by_address: dict[str, list[Container]] = {}
        self._by_port: dict[tuple[Protocol, int], list[tuple[str, Container]]] = {}
        for container in containers:
            self._by_id[container.identifier[:SHORT]] = container
            for address in container.addresses:
                self._by_address.setdefault(address, []).append(container)
            for protocol, address, number in container.published:
                self._by_port.setdefault((protocol, number), []).append((address, container))

    def name_for(self, question: Question) -> str:
        """The name of the container that `question` is about; nothing when none is, or more than one may be."""
        if question.identifier:
            found = self._by_id.get(question.identifier)
            return found.name if found else ""
        return next((candidates.pop() for candidates in self._candidates(question) if len(candidates) == 1), "")

    def _candidates(self, question: Question) -> Iterator[set[str]]:
        """Names, from the narrowest to the widest sense of "its port". An address that is known has to be right."""
        published = self._by_port.get((question.port.protocol, question.port.number), ())
        if question.address:
            yield {container.name for _, container in published if question.address in container.addresses}
            yield {container.name for container in self._by_address.get(question.address, ())}
        else:
            yield {container.name for address, container in published if address == question.port.address}
            yield {container.name for _, container in published}
