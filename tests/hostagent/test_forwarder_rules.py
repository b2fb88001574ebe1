"""Rules at work: what stands before the guest's program does, and rules that change while connections live."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.forwards import Endpoint, ForwardKind, ForwardState
from protocol.ports import Port, Protocol
from tests.fakes.connected_channel import BOUND
from tests.hostagent.test_forwarder import (
    GUEST,
    HOSTS,
    free_number,
    guest_program,
    host,
    is_free,
    port_of,
    refused,
)

LISTENING = ForwardState.LISTENING


def static(guest: int, on_host: int, wait: float = 0.0) -> ForwardRule:
    """A rule for a port of the guest, which is `GUEST` on this machine."""
    return ForwardRule(
        "a rule",
        "portForwards.0",
        protocol=Protocol.TCP,
        guest_address=GUEST,
        guest_ports=(guest, guest),
        host_ports=(on_host, on_host),
        static=True,
        wait=wait,
    )


def moved(guest: int, on_host: int, name: str = "") -> ForwardRule:
    return ForwardRule("moved", name, guest_address=GUEST, guest_ports=(guest, guest), host_ports=(on_host, on_host))


async def test_a_static_forward_listens_before_the_program_and_refuses_until_it_is_there(tmp_path: Path) -> None:
    with guest_program() as reserved:
        number = port_of(reserved).number
    on_host = free_number()
    async with host(tmp_path, static(number, on_host)) as (seen, guest):
        (forward,) = await seen.state(LISTENING)
        assert (forward.kind, str(forward.guest), forward.rule) == (
            ForwardKind.STATIC, f"{GUEST}:{number}", "portForwards.0: a rule",
        )  # fmt: skip
        assert "no program in the guest has the port yet" in forward.reason
        assert set(forward.host) == {Endpoint(address, on_host) for address in HOSTS}
        with trio.fail_after(BOUND):
            async with await trio.open_tcp_stream("127.0.0.1", on_host) as client:
                await guest.opens(1)
                assert await _is_reset(client)
            with guest_program(port=number) as program:
                guest.open_ports(port_of(program))
                (forward,) = await seen.sees(lambda forwards: [f.kind for f in forwards] == [ForwardKind.SOCKET])
                assert forward.reason == ""
                async with await trio.open_tcp_stream("::1", on_host):
                    await trio.lowlevel.wait_readable(program)
                guest.close_ports(port_of(program))
        await seen.sees(lambda forwards: [f.kind for f in forwards] == [ForwardKind.STATIC])
        assert not is_free(Protocol.TCP, on_host)


async def _is_reset(client: trio.SocketStream) -> bool:
    try:
        return await client.receive_some() is None
    except trio.BrokenResourceError as exc:
        return isinstance(exc.__cause__, ConnectionResetError)


async def test_a_static_forward_is_there_without_a_guest_and_after_its_reboot(tmp_path: Path) -> None:
    on_host = free_number()
    async with host(tmp_path, static(80, on_host)) as (seen, guest):
        await seen.state(LISTENING)
        seen.forwarder.stall()
        await seen.state(ForwardState.STALLED)
        assert not refused("127.0.0.1", on_host)
        generations = guest.generations
        guest.restart("another boot")
        await guest.generation(generations + 1)
        await seen.state(LISTENING)


async def test_a_client_of_a_static_forward_may_wait_for_the_program(tmp_path: Path) -> None:
    with guest_program() as reserved:
        number = port_of(reserved).number
    on_host = free_number()
    async with host(tmp_path, static(number, on_host, wait=BOUND)) as (seen, guest):
        (forward,) = await seen.state(LISTENING)
        assert f"wait up to {BOUND:g} s" in forward.reason
        with trio.fail_after(BOUND):
            async with await trio.open_tcp_stream("127.0.0.1", on_host) as client:
                await client.send_all(b"early")
                await guest.opens(1)
                with guest_program(port=number) as program:
                    guest.open_ports(port_of(program))
                    await trio.lowlevel.wait_readable(program)
                    with program.accept()[0] as server:
                        await trio.lowlevel.wait_readable(server)
                        assert server.recv(5) == b"early"


async def test_rules_change_without_touching_what_they_do_not_concern(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        with guest_program() as kept, guest_program() as other:
            numbers = port_of(kept).number, port_of(other).number
            guest.open_ports(port_of(kept), port_of(other))
            await seen.state(LISTENING, LISTENING)
            listener = _descriptor(numbers[0])
            with trio.fail_after(BOUND):
                async with await trio.open_tcp_stream("127.0.0.1", numbers[0]) as client:
                    async with await trio.open_tcp_stream("127.0.0.1", numbers[1]) as doomed:
                        await trio.lowlevel.wait_readable(kept)
                        with kept.accept()[0] as server, other.accept()[0] as other_server:
                            on_host = free_number()
                            seen.forwarder.set_rules(RuleSet((moved(numbers[1], on_host),)))
                            await seen.sees(
                                lambda forwards: on_host in [end.port for f in forwards for end in f.host]  # type: ignore[union-attr]
                            )
                            assert refused("127.0.0.1", numbers[1])
                            assert not refused("::1", on_host)
                            assert _descriptor(numbers[0]) == listener, "the other listener was not even opened again"
                            for stream, far in ((client, server), (doomed, other_server)):
                                await stream.send_all(b"still there")
                                await trio.lowlevel.wait_readable(far)
                                assert far.recv(20) == b"still there"
            moved_forward = next(f for f in seen.forwarder.forwards if f.rule.endswith("moved"))
            assert moved_forward.traffic.connections_total == 2, "it is the same forward, at another place"
            seen.forwarder.set_rules(RuleSet(enabled=False))
            await seen.state(ForwardState.IGNORED, ForwardState.IGNORED)
            assert refused("127.0.0.1", numbers[0])
            seen.forwarder.set_rules(RuleSet())
            await seen.state(LISTENING, LISTENING)


def _descriptor(number: int) -> str:
    """The inode of the listener at 127.0.0.1 and this port."""
    wanted = f"0100007F:{number:04X}"
    lines = Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()
    (inode,) = [line.split()[9] for line in lines if line.split()[1] == wanted and line.split()[3] == "0A"]
    return inode


async def test_a_rule_that_comes_for_a_port_in_conflict(tmp_path: Path) -> None:
    """`hostagent forward add` is the way out that a conflict's reason names."""
    number = free_number()
    with socket.create_server(("127.0.0.1", number)):
        async with host(tmp_path) as (seen, guest):
            with guest_program(port=number) as program:
                guest.open_ports(port_of(program))
                await seen.sees(lambda forwards: "only partly" in forwards[0].reason if forwards else False)
                seen.forwarder.set_rules(RuleSet((moved(number, free_number()),)))
                (forward,) = await seen.state(LISTENING)
                assert forward.reason == ""


async def test_two_rules_of_one_instance_for_one_place(tmp_path: Path) -> None:
    """A wildcard address has the port at all addresses, so it is in the way of the instance's own other forward."""
    on_host = free_number()
    rules = [
        ForwardRule(
            "everywhere", guest_address=GUEST, guest_ports=(1, 1), host_ports=(on_host, on_host), host_address="::"
        ),
        moved(2, on_host),
    ]
    async with host(tmp_path, *rules) as (seen, guest):
        guest.open_ports(Port(Protocol.TCP, GUEST, 1), Port(Protocol.TCP, GUEST, 2))
        forwards = await seen.sees(
            lambda forwards: any("another forward of this instance" in f.reason for f in forwards)
        )
        assert [forward.state for forward in forwards] == [LISTENING, ForwardState.CONFLICT]
