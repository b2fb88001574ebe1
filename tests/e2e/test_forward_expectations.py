"""Every line of forward_expectations.yaml tried through one guest, with all of its ports open at once.

What is forwarded must answer at each of its places on the host, and the traffic must be counted for that very port;
what is ignored must leave the host's port free. Real listeners at wildcard, single and IPv6 addresses.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hostagent.forwards import Endpoint, Forward, ForwardKind, ForwardState, HostEnd, SocketFile
from protocol.ports import Port, Protocol
from tests.e2e.clients import exchange, receive_to_end, tcp_client, udp_client
from tests.e2e.host_side import HostSide
from tests.e2e.shared_guest import SharedGuest
from tests.forward_expectations import Expectation, expectations, rules

pytestmark = pytest.mark.tiny_guest

TWINS = {"127.0.0.1": ("127.0.0.1", "::1"), "::1": ("::1", "127.0.0.1"), "0.0.0.0": ("127.0.0.9", "::1")}
TWINS["::"] = TWINS["0.0.0.0"]
"""Where a place of the host is asked: both loopback addresses, and for all addresses one that no rule names."""


@asynccontextmanager
async def open_in_guest(guest: SharedGuest, ports: list[Port]) -> AsyncIterator[None]:
    """A server for each of `ports`: TCP says hello, UDP echoes."""
    try:
        for port in ports:
            if port.protocol is Protocol.TCP:
                await guest.server.tcp("banner", port.address, port.number)
            else:
                await guest.server.udp("echo", port.address, port.number)
        yield
    finally:
        for number in {port.number for port in ports}:
            await guest.server.close(number)


async def test_every_expectation(tiny: SharedGuest, host: HostSide) -> None:
    await tiny.server.run("ip addr add fd00:2::15/128 dev lo nodad 2>/dev/null || ip addr add fd00:2::15/128 dev lo")
    with tempfile.TemporaryDirectory(prefix="ha-") as name:
        folder = Path(name)
        wanted = expectations(folder)
        host.forwarder.set_rules(rules(folder))
        async with open_in_guest(tiny, [one.port for one in wanted]):
            await host.wait_until(lambda: all(_is_settled(_forward(host, one.port)) for one in wanted), 60)
            wrong = [f"{one}: {problem}" for one in wanted if (problem := await _problem(host, one))]
    assert wrong == [], "\n".join(wrong)


def _forward(host: HostSide, port: Port) -> Forward | None:
    end = Endpoint(port.address, port.number)
    found = (one for one in host.forwarder.forwards if (one.protocol, one.guest) == (port.protocol, end))
    return next((one for one in found if one.kind is ForwardKind.SOCKET), None)


def _is_settled(forward: Forward | None) -> bool:
    return forward is not None and forward.state in (ForwardState.LISTENING, ForwardState.IGNORED)


async def _problem(host: HostSide, expectation: Expectation) -> str:
    """What is not as expected, in words."""
    forward = _forward(host, expectation.port)
    if forward is None:
        return "its port is gone"
    if expectation.host is None:
        return "" if forward.state is ForwardState.IGNORED and not forward.host else f"{forward.state} {forward.host}"
    if forward.host[0] != expectation.host or forward.reason:
        return f"{forward.state} at {forward.host}: {forward.reason}"
    for place in _places(expectation.host):
        before = forward.traffic.connections_total
        try:
            with trio.fail_after(20):
                said = await _said(expectation.port.protocol, place)
        except (OSError, trio.TooSlowError) as exc:
            return f"{place}: {exc!r}"
        if said != b"hello\n" or forward.traffic.connections_total != before + 1:
            return f"{place} led elsewhere"
    return ""


def _places(end: HostEnd) -> list[HostEnd]:
    if isinstance(end, SocketFile):
        return [end]
    return [Endpoint(address, end.port) for address in TWINS.get(end.address, (end.address,))]


async def _said(protocol: Protocol, place: HostEnd) -> bytes:
    if isinstance(place, SocketFile):
        with trio.socket.socket(socket.AF_UNIX) as client:
            await client.connect(place.path)
            return await receive_to_end(client)
    if protocol is Protocol.UDP:
        async with udp_client(place.port, place.address) as client:
            return await exchange(client, b"hello\n")
    async with tcp_client(place.port, place.address) as client:
        return await receive_to_end(client)
