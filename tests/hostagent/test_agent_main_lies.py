"""A guest agent that lies, against the real host agent in a process of its own.

Whatever it says costs a bounded amount of memory (`MEMORY`, which ARCHITECTURE.md states), leaves the API with answers
and `down` with its effect, shows as one reason, and reaches nothing on the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
import trio

from hostagent import agent_main
from hostagent.api_client import ApiClient
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.launch_plan import read_plan, write_plan
from hostagent.paths import InstancePaths
from protocol import limits
from protocol.framing import FLUSH, Preamble, PreambleKind
from protocol.listener_messages import Listen, ListenFailed, Listening
from protocol.messages import Hello, Message, PortOwners, PortsChanged, PortsSnapshot, Status
from protocol.ports import Port, PortOwner, Protocol, WakeupSource
from protocol.stream_messages import (
    CommandTarget,
    Credit,
    Data,
    EndOfData,
    ListenerTarget,
    Open,
    Opened,
    Refused,
    SocketTarget,
    StreamKind,
)
from tests.fakes.command_line import COMMAND, on_terminal
from tests.fakes.instance_folder import instance_folder
from tests.fakes.lying_guest import ALL_CAPABILITIES, BOUND, MARKER, HostAgentProcess, LyingGuest, lying_guest

MEMORY = 400 * 1024 * 1024
"""Bytes of resident memory that no guest can make the host agent need, as ARCHITECTURE.md states it."""

NO_PORTS = PortsSnapshot((), last=True)
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\r\n‮"

_Answer = TypeVar("_Answer")


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(agent_main.__file__).parents[1]))
    return instance_folder("web")


@asynccontextmanager
async def liar(paths: InstancePaths) -> AsyncIterator[tuple[LyingGuest, HostAgentProcess]]:
    """A guest that has been honest so far; afterwards the host agent must be whole and small."""
    async with lying_guest(paths) as (guest, agent):
        await guest.greet()
        await guest.say(NO_PORTS)
        await until(paths, lambda status: status["state"] == "running")
        yield guest, agent
        assert agent.process.returncode is None, "the host agent died"
        assert (await ask(paths, ApiClient.status))["name"] == "web"
        assert agent.resident("VmHWM") < MEMORY


async def ask(paths: InstancePaths, question: Callable[[ApiClient], _Answer]) -> _Answer:
    """An answer of the API, within the client's own bound."""
    return await trio.to_thread.run_sync(question, ApiClient(paths))


async def until(paths: InstancePaths, condition: Callable[[Any], bool]) -> Any:
    """The status, once it is as `condition` says."""
    with trio.fail_after(BOUND):
        while not condition(status := await trio.to_thread.run_sync(status_of, paths)):  # noqa: ASYNC110 - as a user
            await trio.sleep(0.05)
    return status


def status_of(paths: InstancePaths) -> Any:
    """The status; nothing while the host agent is only starting."""
    return ApiClient(paths).status() if paths.api_socket.exists() else {"state": "", "reason": ""}


def snapshot(ports: Iterable[Port]) -> Iterator[PortsSnapshot]:
    """All of `ports` in frames."""
    rest = list(ports)
    while rest:
        part, rest = rest[: limits.PORTS_PER_FRAME], rest[limits.PORTS_PER_FRAME :]
        yield PortsSnapshot(tuple(part), last=not rest)


def many_ports(count: int) -> list[Port]:
    """Ports that are all different, most of them forwarded."""
    numbers = itertools.product((Protocol.TCP, Protocol.UDP), ("127.0.0.2", "0.0.0.0"), range(2_000, 32_000))
    return [Port(protocol, address, number) for protocol, address, number in itertools.islice(numbers, count)]


async def test_a_hundred_thousand_ports(paths: InstancePaths) -> None:
    ports = many_ports(100_000)
    async with liar(paths) as (guest, agent):
        await guest.greet()
        await guest.say(*snapshot(ports))
        name = "n" * limits.MAX_NAME
        owners = [(port, PortOwner(name, 1, 1, name)) for port in ports[: limits.MAX_PORTS]]
        await guest.say(*(PortOwners(tuple(owners[at : at + 64])) for at in range(0, len(owners), 64)))
        status = await until(paths, lambda status: "more than 16384 ports" in status["reason"])
        assert status["state"] == "running"
        assert len(await ask(paths, ApiClient.ports)) == limits.MAX_PORTS
        descriptors = agent.descriptors()
        await guest.say(*(PortsChanged(tuple(ports[at : at + 256]), ()) for at in range(0, len(ports), 256)))
        assert len(await ask(paths, ApiClient.ports)) == limits.MAX_PORTS
        assert agent.descriptors() <= descriptors + 8
        await guest.greet()
        await guest.say(NO_PORTS)
        await until(paths, lambda status: not status["reason"])
        assert await ask(paths, ApiClient.ports) == []


async def test_ports_that_change_without_end(paths: InstancePaths) -> None:
    """The guest changes ports as fast as it can; the user still gets answers, and can end it."""
    ports = many_ports(6_000)
    async with lying_guest(paths) as (guest, agent):
        await guest.greet()
        await guest.say(*snapshot(ports))
        await until(paths, lambda status: status["state"] == "running")

        async def change_ports() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    for port in ports:
                        await guest.say(PortsChanged((), (port,)), PortsChanged((port,), ()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_ports)
            assert len(await ask(paths, ApiClient.ports)) > 5_000
            assert (await ask(paths, ApiClient.status))["state"] == "running"
            assert agent.resident("VmHWM") < MEMORY
            assert await ask(paths, partial(ApiClient.stop, force=True)) == "terminated"
            with trio.fail_after(BOUND):
                assert await agent.process.wait() == 0


async def test_streams_that_lead_to_the_host(paths: InstancePaths, tmp_path: Path) -> None:
    """Everything that a guest may ask for is refused, whatever it names and however often it asks."""
    with socket.create_server(("127.0.0.1", 0)) as secret:
        secret.setblocking(False)
        target = SocketTarget("127.0.0.1", secret.getsockname()[1])
        file = tmp_path / "reached"
        command = CommandTarget(("touch", str(file)), (), "", "/", None)
        async with liar(paths) as (guest, _):
            asked = [
                Open(2, StreamKind.TCP, target, 1_000),
                Open(4, StreamKind.UDP, target, 0),
                Open(6, StreamKind.EXEC, command, 1_000),
                *(Open(8 + 2 * n, StreamKind.TCP, ListenerTarget(n + 1), 1_000) for n in range(100)),
            ]
            await guest.say(*asked)
            for _ in asked:
                refused = await guest.hear(Refused)
                assert isinstance(refused, Refused)
                assert refused.error in ("EPERM", "ECONNREFUSED")
            with pytest.raises(BlockingIOError):
                secret.accept()
            assert not file.exists()


async def test_a_reverse_forward_leads_to_one_port_and_to_that_in_bounds(paths: InstancePaths) -> None:
    """What the user offers can be had, as often as descriptors allow; nothing else comes with it."""
    with socket.create_server(("127.0.0.1", 0), backlog=8_000) as offered:
        number = offered.getsockname()[1]
        rule = ForwardRule("offered", reverse=True, guest_ports=(3_128, 3_128), host_ports=(number, number))
        plan = dataclasses.replace(read_plan(paths.launch_plan), forwarding=RuleSet((rule,)))
        write_plan(paths.launch_plan, plan)
        async with liar(paths) as (guest, agent):
            await guest.greet(capabilities=ALL_CAPABILITIES)
            await guest.say(NO_PORTS)
            listen = await guest.hear(Listen)
            assert isinstance(listen, Listen)
            target = ListenerTarget(listen.listener)
            await guest.say(*(Listening(number) for number in range(1, 100)), ListenFailed(99, "EIO", ESCAPES))
            await guest.say(Open(2, StreamKind.UDP, target, 0), Open(4, StreamKind.UNIX, target, 0))
            assert [await guest.hear(Refused) for _ in range(2)]
            await guest.say(Open(6, StreamKind.TCP, target, 1_000))
            assert isinstance(await guest.hear(Opened), Opened)
            before = agent.resident()
            with contextlib.suppress(trio.BrokenResourceError):
                for first in range(8, 16_000, 200):
                    await guest.say(*(Open(each, StreamKind.TCP, target, 1) for each in range(first, first + 200, 2)))
            assert (await ask(paths, ApiClient.status))["state"]
            assert agent.resident("VmHWM") - before < 128 * 1024 * 1024
            assert agent.descriptors() < agent.most_descriptors() // 2


async def test_more_streams_than_it_reads_answers_to(paths: InstancePaths) -> None:
    async with liar(paths) as (guest, agent):
        before = agent.resident()
        with contextlib.suppress(trio.BrokenResourceError):
            for first in range(2, 400_000, 2_000):
                await guest.say(
                    *(
                        Open(number, StreamKind.TCP, SocketTarget("127.0.0.1", 1), 1)
                        for number in range(first, first + 2_000, 2)
                    )
                )
        await until(paths, lambda status: "does not read" in status["reason"] or "more than 4096" in status["reason"])
        assert agent.resident("VmHWM") - before < 128 * 1024 * 1024


def lies_about_streams() -> dict[str, list[Message]]:
    """What may not be said in these states; each ends the generation."""
    window = b"x" * 65_536
    return {
        "data of a stream that never was": [Data(1, b"x")],
        "answers that nobody asked for": [Opened(1, 1), Refused(3, "EPERM", "")],
        "a stream of the host's": [Open(1, StreamKind.TCP, SocketTarget("127.0.0.1", 1), 1)],
        "the same stream twice": [Open(2, StreamKind.TCP, SocketTarget("127.0.0.1", 1), 1)] * 2,
        "the end of a stream that never was": [EndOfData(7)],
        "credit out of nothing": [Credit(1, 1)],
        "more bytes than were granted": [Opened(1, limits.STREAM_WINDOW), *[Data(1, window)] * 5],
        "credit without end": [Opened(1, limits.STREAM_WINDOW), *[Credit(1, limits.STREAM_WINDOW)] * 9_000],
        "an end, and data behind it": [Opened(1, 1), EndOfData(1), Data(1, b"x")],
        "an answer twice": [Opened(1, 1), Opened(1, 1)],
    }


async def test_lies_about_streams_end_the_generation_and_then_the_patience(paths: InstancePaths) -> None:
    port = next(number for number in range(30_000, 31_000) if is_free(number))
    async with liar(paths) as (guest, _):
        told = 0
        for name, lie in itertools.islice(itertools.cycle(lies_about_streams().items()), 20):
            await guest.greet()
            await guest.say(PortsSnapshot((Port(Protocol.TCP, "127.0.0.2", port),), last=True))
            with socket.socket() as client:
                client.setblocking(False)
                await until_listening(paths)
                client.connect_ex(("127.0.0.1", port))
                assert isinstance(await guest.hear(Open), Open)
                with contextlib.suppress(trio.BrokenResourceError):
                    await guest.say(*lie)
                assert await guest.is_over(), name
            told = len(failures(await events(paths)))
            if told:
                break
        assert told == 1
        (forward,) = await ask(paths, ApiClient.ports)
        assert forward["state"] == "failed"
        assert "breaks the rules of the channel" in forward["reason"]
        assert "`hostagent down`" in forward["reason"]
        await guest.greet()  # some time later it is listened to again
        await guest.say(NO_PORTS)
        await until(paths, lambda status: not status["reason"])


def is_free(port: int) -> bool:
    with socket.socket() as taken:
        return taken.connect_ex(("127.0.0.1", port)) != 0


async def until_listening(paths: InstancePaths) -> None:
    def followed(client: ApiClient) -> None:
        for forwards in client.follow_ports(1.0):
            if any(forward["state"] == "listening" for forward in forwards):
                return

    with trio.fail_after(BOUND):
        await ask(paths, followed)


async def events(paths: InstancePaths) -> list[Any]:
    return await ask(paths, lambda client: list(client.events(after=0)))


def failures(events: Iterable[Any]) -> list[Any]:
    return [event for event in events if event.get("agent") == "failed"]


async def test_frames_of_every_size(paths: InstancePaths) -> None:
    """Sizes up to the largest are taken; a larger one ends the generation."""
    async with liar(paths) as (guest, agent):
        before = agent.resident()
        for size in (*range(1_000, limits.MAX_BODY, 4_099), limits.MAX_BODY):
            await guest.greet(hello=hello_of_size(size))
        await guest.say(NO_PORTS)
        await until(paths, lambda status: status["guest_agent"]["boot_id"] == str(limits.MAX_BODY))
        for header in (limits.MAX_BODY + 1, 2**31, 2**32 - 1):
            await guest.say_bytes(header.to_bytes(4, "big") + bytes(8) + b"x" * 100_000)
            assert await guest.is_over()
            await guest.greet()
        await guest.say_bytes(b"\xfe" * 8_000_000)
        await guest.is_over()
        assert agent.resident() - before < 64 * 1024 * 1024


def hello_of_size(size: int) -> bytes:
    """A HELLO of exactly so many bytes; fields of a later version make up for what lacks."""
    words = [Hello.NUMBER, 1, 1, [], "1.0", str(size), ""]
    short = len(msgpack.packb([*words, bytes(size - 100)]))
    return bytes(msgpack.packb([*words, bytes(2 * size - 100 - short)]))


async def test_a_guest_that_begins_anew_without_end(paths: InstancePaths) -> None:
    async with liar(paths) as (guest, agent):
        before = agent.resident()
        told: list[Any] = []
        while not told:
            with contextlib.suppress(trio.BrokenResourceError):
                for _ in range(20):
                    await guest.greet()
                    await guest.say(NO_PORTS, PortsChanged((Port(Protocol.TCP, "10.1.1.1", 80),), ()))
            told = failures(await events(paths))
        assert "begins anew without end" in told[0]["reason"]
        assert agent.resident() - before < 64 * 1024 * 1024


async def test_preambles_without_end(paths: InstancePaths) -> None:
    async with liar(paths) as (guest, agent):
        before = agent.resident()
        lost = Preamble(PreambleKind.LOST, MARKER).encode()
        answer = Preamble(PreambleKind.ANSWER, MARKER, MARKER).encode()
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(200):
                await guest.say_bytes((lost + answer + FLUSH[:100]) * 500)
        assert agent.resident() - before < 64 * 1024 * 1024
        with contextlib.suppress(trio.BrokenResourceError):
            await guest.greet()


async def test_nothing_that_a_guest_says_steers_a_terminal(paths: InstancePaths) -> None:
    async with liar(paths) as (guest, _):
        await guest.greet(boot_id=ESCAPES, description=ESCAPES)
        port = Port(Protocol.TCP, "10.1.1.1", 80)
        owner = PortOwner(ESCAPES, 1, 1, ESCAPES)
        await guest.say(PortsSnapshot((port,), last=True), PortOwners(((port, owner),)))
        await guest.say(Status((WakeupSource(ESCAPES, False, ESCAPES, 1),), ((ESCAPES, 1),)))
        await until(paths, lambda status: bool(status["guest_agent"]["sources"]))
        home = paths.directory.parent
        for command in ("ports", "status", "status --json", "events", "events --json", "list", "logs", "logs --raw"):
            shown = await trio.to_thread.run_sync(partial(on_a_terminal, *command.split(), home=home))
            text = re.sub(r"\x1b\[[0-9]*m|\r\n", "", shown.decode("utf-8", "surrogateescape"))
            strange = sorted({character for character in text if not character.isprintable()})
            assert not strange, (command, strange, text[:300])


def on_a_terminal(*arguments: str, home: Path) -> bytes:
    """All that a command writes to a terminal."""
    with on_terminal(*COMMAND, *arguments, home=home, columns=5_000) as terminal:
        return terminal.rest()
