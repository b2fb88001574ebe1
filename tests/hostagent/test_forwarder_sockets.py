"""Forwards with a unix socket at either end, or at both."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import forwarder as forwarder_module
from hostagent import host_listener
from hostagent.forward_plan import ListenerKey
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.forwards import Endpoint, ForwardKind, ForwardState, SocketFile
from hostagent.stream_socket import listen
from protocol.ports import Protocol
from tests.fakes.connected_channel import BOUND, eventually, nothing_left_open
from tests.hostagent.test_forwarder import GUEST, free_number, guest_program, host, port_of

LISTENING = ForwardState.LISTENING


def socket_rule(guest: Path, on_host: Path | int, wait: float = 0.0) -> ForwardRule:
    """A rule for a socket of the guest."""
    return ForwardRule(
        "a rule",
        protocol=Protocol.TCP,
        guest_socket=str(guest),
        host_socket=str(on_host) if isinstance(on_host, Path) else "",
        host_ports=(on_host, on_host) if isinstance(on_host, int) else None,
        wait=wait,
    )


def port_rule(guest: int, on_host: Path) -> ForwardRule:
    return ForwardRule(
        "a rule", protocol=Protocol.TCP, guest_address=GUEST, guest_ports=(guest, guest), host_socket=str(on_host)
    )


def server(path: Path) -> socket.socket:
    """A program of the guest that listens at `path`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.bind(str(path))
    sock.listen()
    return sock


async def exchange(client: trio.SocketStream, program: socket.socket) -> None:
    """A question and an answer, with both half-closes."""
    with trio.fail_after(BOUND):
        async with client:
            await client.send_all(b"question")
            await client.send_eof()
            await trio.lowlevel.wait_readable(program)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(program.accept()[0])) as conversation:
                assert b"".join([part async for part in conversation]) == b"question"
                await conversation.send_all(b"answer")
                await conversation.send_eof()
                assert b"".join([part async for part in client]) == b"answer"


async def refused(client: trio.SocketStream) -> bool:
    """Whether the connection ends without a byte. A unix socket knows no reset while nothing was sent."""
    with trio.fail_after(BOUND):
        async with client:
            try:
                return await client.receive_some() == b""
            except trio.BrokenResourceError:
                return True


async def test_a_socket_of_the_guest_at_a_path_of_the_host(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "sock" / "outside"
    with nothing_left_open():
        async with host(tmp_path, socket_rule(inside, outside)) as (seen, guest):
            (forward,) = await seen.state(LISTENING)
            assert (forward.kind, forward.guest, forward.host) == (
                ForwardKind.STATIC, SocketFile(str(inside)), (SocketFile(str(outside)),),
            )  # fmt: skip
            assert outside.stat().st_mode & 0o777 == 0o600
            assert forward.reason == ""
            assert await refused(await trio.open_unix_socket(outside))
            assert forward.reason == f"no program in the guest served {inside} when last tried: connections are reset"
            with server(inside) as program:
                await exchange(await trio.open_unix_socket(outside), program)
                assert (forward.state, forward.reason) == (LISTENING, "")
                await guest.streams_over()
                traffic = forward.traffic
                assert (traffic.connections_total, traffic.connections_refused) == (2, 1)
                assert (traffic.bytes_to_guest, traffic.bytes_to_host) == (8, 6)
    assert not outside.exists()


async def test_a_socket_of_the_guest_at_a_port_of_the_host(tmp_path: Path) -> None:
    number = free_number()
    async with host(tmp_path, socket_rule(tmp_path / "inside", number)) as (seen, _guest):
        (forward,) = await seen.state(LISTENING)
        assert set(forward.host) == {Endpoint("127.0.0.1", number), Endpoint("::1", number)}
        with server(tmp_path / "inside") as program:
            for address in ("127.0.0.1", "::1"):
                await exchange(await trio.open_tcp_stream(address, number), program)


async def test_a_port_of_the_guest_at_a_path_of_the_host(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    with guest_program() as program:
        async with host(tmp_path, port_rule(port_of(program).number, outside)) as (seen, guest):
            assert not outside.exists()
            guest.open_ports(port_of(program))
            (forward,) = await seen.state(LISTENING)
            assert forward.host == (SocketFile(str(outside)),)
            await exchange(await trio.open_unix_socket(outside), program)
            guest.close_ports(port_of(program))
            await seen.state()
            assert not outside.exists()


async def test_a_client_may_wait_for_the_program(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside, wait=60.0)) as (seen, guest):
        await seen.state(LISTENING)
        client = await trio.open_unix_socket(outside)
        await guest.opens(1)
        (forward,) = await seen.sees(lambda forwards: bool(forwards[0].reason))
        assert forward.reason.endswith("when last tried: connections wait up to 60 s for it")
        with server(inside) as program:
            await exchange(client, program)
            assert forward.reason == ""


async def test_what_a_client_missed_is_forgotten_with_the_guest_agent(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, guest):
        (forward,) = await seen.state(LISTENING)
        assert await refused(await trio.open_unix_socket(outside))
        assert "when last tried" in forward.reason
        guest.restart()
        await guest.generation(2)
        await seen.sees(lambda forwards: (forwards[0].state, forwards[0].reason) == (LISTENING, ""))


async def test_what_a_client_missed_is_nobodys_once_the_rule_has_gone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    rule = socket_rule(inside, outside, wait=60.0)
    async with host(tmp_path, rule) as (seen, guest):
        await seen.state(LISTENING)
        guest.answers = False
        async with await trio.open_unix_socket(outside) as client:
            await guest.opens(1)
            seen.forwarder.set_rules(RuleSet())
            guest.answer()
            with trio.fail_after(BOUND):
                assert await client.receive_some() == b""
            assert seen.forwarder.forwards == []
            seen.forwarder.set_rules(RuleSet((rule,)))
            (forward,) = await seen.state(LISTENING)
            assert forward.reason == ""


async def test_the_file_of_a_dead_host_agent_is_replaced(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    with server(outside):
        pass
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
        await seen.state(LISTENING)
        with server(inside) as program:
            await exchange(await trio.open_unix_socket(outside), program)


async def test_a_socket_that_another_program_has_is_a_conflict_until_it_has_gone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    other = server(outside)
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
        (forward,) = await seen.sees(lambda forwards: any(f"(pid {os.getpid()})" in f.reason for f in forwards))
        assert forward.state is ForwardState.CONFLICT
        other.close()
        await seen.state(LISTENING)


async def test_a_file_in_the_way_stays_and_is_said(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    outside.write_text("precious")
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
        (forward,) = await seen.state(ForwardState.FAILED)
        assert "no socket: move it away" in forward.reason
        assert outside.read_text() == "precious"
        outside.unlink()
        await seen.state(LISTENING)


async def test_a_file_that_was_removed_is_made_again_and_who_is_connected_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder_module, "FILE_CHECK", 0.02)
    inside, outside = tmp_path / "inside", tmp_path / "sock" / "outside"
    with nothing_left_open(), server(inside) as program:
        async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
            await seen.state(LISTENING)
            async with await trio.open_unix_socket(outside) as client:
                with trio.fail_after(BOUND):
                    await trio.lowlevel.wait_readable(program)
                with program.accept()[0] as conversation:
                    shutil.rmtree(outside.parent)
                    await eventually(outside.exists)
                    await exchange(await trio.open_unix_socket(outside), program)
                    conversation.send(b"still here")
                    with trio.fail_after(BOUND):
                        assert await client.receive_some() == b"still here"
            outside.unlink()
            await eventually(outside.exists)  # it is watched as the first one was
    assert not outside.exists()


async def test_a_file_that_was_replaced_is_a_conflict_and_nobody_connects_to_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder_module, "FILE_CHECK", 0.02)
    monkeypatch.setattr(forwarder_module, "RETRY", 0.02)
    tries = 0

    def counted(key: ListenerKey) -> socket.socket:
        nonlocal tries
        tries += 1
        return listen(key)

    monkeypatch.setattr(host_listener, "listen", counted)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
        await seen.state(LISTENING)
        outside.unlink()
        with server(outside) as other:
            os.utime(outside, (0, 0))
            await seen.state(ForwardState.CONFLICT)
            await eventually(lambda: tries > 5)
            with pytest.raises(BlockingIOError):
                other.accept()
        await seen.state(LISTENING)
        with server(inside) as program:
            await exchange(await trio.open_unix_socket(outside), program)


async def test_nothing_is_looked_for_while_no_socket_has_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder_module, "FILE_CHECK", 0.0)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, _guest):
        await seen.state(LISTENING)
        outside.unlink()
        outside.write_text("in the way")
        await seen.state(ForwardState.FAILED)
        await trio.testing.wait_all_tasks_blocked()  # a task that looks again and again is never blocked


async def test_it_heals_after_a_cut_and_after_the_guest_agent_died(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, guest):
        with server(inside) as program:
            for number, harm in enumerate((guest.cut, guest.restart), start=2):
                await seen.state(LISTENING)
                harm()
                await guest.generation(number)
                await seen.state(LISTENING)
                await exchange(await trio.open_unix_socket(outside), program)


async def test_a_guest_agent_that_knows_no_sockets_is_not_asked_for_any(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    async with host(tmp_path, socket_rule(inside, outside)) as (seen, guest):
        await seen.state(LISTENING)
        guest.capabilities = frozenset({"tcp"})
        guest.restart()
        await guest.generation(2)
        await seen.state(LISTENING)
        with server(inside):
            assert await refused(await trio.open_unix_socket(outside))
        assert not guest.opened
