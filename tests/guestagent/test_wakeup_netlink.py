"""Multicast sources on the real kernel, in a namespace of the test's own."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from pyroute2.nftables.main import NFTables

from guestagent.wakeup_netlink import (
    DestroyedSocketsSource,
    NftablesSource,
    all_but_clients,
    drain,
    follow,
    only_kind,
    only_where,
    open_multicast,
)
from guestagent.wakeups import NOTHING, TCP, UDP, Source, SourceState, SourceUnavailableError, chosen_ports
from protocol.ports import Protocol
from tests.guestagent.network_namespace import network_namespace
from tests.guestagent.recording_watch import RecordingWatch


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with network_namespace():
        yield


@asynccontextmanager
async def listening(source: Source, watch: RecordingWatch) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, watch)
        state = source.states[0]
        await (watch.until_woken_for_rules() if state.rules else watch.until_woken_for(state.covers))
        assert source.states[0].live
        watch.forget()
        yield
        nursery.cancel_scope.cancel()


async def test_a_closed_listener_wakes_and_finished_connections_do_not() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    number = listener.getsockname()[1]
    watch = RecordingWatch((Protocol.TCP, number))
    source = DestroyedSocketsSource(Protocol.TCP)
    async with listening(source, watch):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", number)):
                listener.accept()[0].close()
        assert source.states[0].wakeups == 0
        listener.close()
        await watch.until_woken_for(TCP)
    assert source.states[0].wakeups == 1


async def test_a_closed_udp_server_wakes_and_unknown_sockets_do_not() -> None:
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", 0))
    watch = RecordingWatch((Protocol.UDP, server.getsockname()[1]))
    source = DestroyedSocketsSource(Protocol.UDP)
    async with listening(source, watch):
        for _ in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect(("127.0.0.1", 9))
        server.close()
        await watch.until_woken_for(UDP)
    assert source.states[0].wakeups == 1


async def test_a_changed_rule_wakes_once_per_transaction() -> None:
    source, watch = NftablesSource(), RecordingWatch()
    async with listening(source, watch):
        with NFTables(nfgen_family=1) as rules:
            rules.table("add", name="hostagent_test")
            await watch.until_woken_for_rules()
            watch.forget()
            rules.table("del", name="hostagent_test")
            await watch.until_woken_for_rules()
    assert source.states[0].wakeups == 2


async def test_lost_messages_count_as_a_wakeup_for_everything_it_sees() -> None:
    state = SourceState("test", NOTHING, UDP)
    watch = RecordingWatch()
    with open_multicast(4, (2,)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        overflow = select.poll()
        overflow.register(listener, 0)  # ENOBUFS is an error of the socket, and errors always count
        with trio.fail_after(10):
            while not overflow.poll(0):  # the notices come from a work queue, that is later
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                    server.bind(("127.0.0.1", 0))
                await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, listener, state, watch, lambda _: None)
            await watch.until_woken_for(UDP)
            nursery.cancel_scope.cancel()


async def test_the_filter_drops_what_has_another_value_or_type() -> None:
    program_and_passes: list[tuple[bytes, bool]] = [
        (only_kind(20), True),  # SOCK_DIAG_BY_FAMILY, which is what the kernel sends
        (only_kind(21), False),
        (only_where(16 + 6, 0), True),
        (only_where(16 + 6, 1), False),
    ]
    listeners = [open_multicast(4, (2,), program) for program, _ in program_and_passes]
    with open_multicast(4, (2,)) as unfiltered:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(unfiltered)
    for listener, (_, passes) in zip(listeners, program_and_passes, strict=True):
        datagrams, lost = drain(listener)
        assert (len(datagrams), lost) == (int(passes), False)
        listener.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("chosen", "peer", "heard"),
    [
        (True, None, True),  # a server whose port the kernel chose
        (True, 53, False),
        (True, 1023, False),
        (True, 1024, True),  # a server that has connected to its client
        (False, 53, True),  # a name server that asks from its own port
        (False, None, True),
        (False, 40_000, True),
    ],
)
async def test_sockets_of_clients_go_unheard(
    family: socket.AddressFamily, chosen: bool, peer: int | None, heard: bool
) -> None:
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with open_multicast(4, (2, 4)) as unfiltered, open_multicast(4, (2, 4), all_but_clients(chosen_ports())) as tried:
        with socket.socket(family, socket.SOCK_DGRAM) as server:
            server.bind((loopback, 0 if chosen else chosen_ports().start - 1))
            if peer is not None:
                server.connect((loopback, peer))
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(unfiltered)
        datagrams, lost = drain(tried)
        assert (len(datagrams), lost) == (int(heard), False)


@pytest.mark.parametrize(("number", "heard"), [(32_767, True), (32_768, False), (60_999, False), (61_000, True)])
async def test_only_ports_that_the_kernel_chooses_go_unheard(number: int, heard: bool) -> None:
    with (
        open_multicast(4, (2,)) as unfiltered,
        open_multicast(4, (2,), all_but_clients(range(32_768, 61_000))) as tried,
    ):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", number))
            client.connect(("127.0.0.1", 53))
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(unfiltered)
        assert len(drain(tried)[0]) == int(heard)


def _refusing(number: int) -> Callable[..., socket.socket]:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "scripted")

    return refuse


@pytest.mark.parametrize("source", [DestroyedSocketsSource(Protocol.TCP), NftablesSource()])
async def test_a_kernel_that_refuses_is_a_reason(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestagent.wakeup_netlink.open_multicast", _refusing(93))
    with pytest.raises(SourceUnavailableError, match="not compiled into this kernel"):
        await source.run(RecordingWatch())


async def test_groups_that_will_never_speak_are_not_called_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestagent.sock_diag.SocketReader._open", _refusing(93))
    source = DestroyedSocketsSource(Protocol.TCP)
    with pytest.raises(SourceUnavailableError, match="module missing"):
        await source.run(RecordingWatch())
    assert not source.states[0].live
