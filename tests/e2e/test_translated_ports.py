"""Ports that address translation opens in the guest appear on the host, work, and go with their rule."""

from __future__ import annotations

import pytest

from protocol.ports import PortOwner, Protocol
from tests.e2e.clients import exchange, receive_to_end, tcp_client, udp_client
from tests.e2e.host_side import HostSide
from tests.e2e.nft_batch import Transaction, translation, without
from tests.e2e.server_control import GuestServerError
from tests.e2e.shared_guest import SharedGuest

pytestmark = pytest.mark.tiny_guest

GUEST = "10.0.2.15"
"""The guest's own address: what is bound to it alone is not forwarded, but a rule can lead there."""


async def apply(tiny: SharedGuest, change: Transaction) -> None:
    """Change the rules of the guest."""
    await tiny.server.netlink(change.messages, change.answers)


async def owned_by_rule(host: HostSide, port: int) -> None:
    """Wait until the host was told that a rule opens the guest's `port`."""

    def is_owned() -> bool:
        forward = host.forward(port)
        return forward is not None and forward.owner == PortOwner("nftables rule", 0, 0)

    await host.wait_until(is_owned)


async def test_a_translated_tcp_port_works_although_the_guest_itself_is_refused(
    tiny: SharedGuest, host: HostSide
) -> None:
    await tiny.server.tcp("banner", GUEST, 28_001)
    await apply(tiny, translation("published", Protocol.TCP, 28_000, GUEST, 28_001))
    await host.listening(28_000)
    async with tcp_client(28_000) as client:
        assert await receive_to_end(client) == b"hello\n"
    await owned_by_rule(host, 28_000)
    # A rule of prerouting does not concern what the guest itself sends: dialling 127.0.0.1 there would not have done.
    assert "refused" in (await tiny.server.run("nc -w 2 127.0.0.1 28000 </dev/null")).output.lower()
    await apply(tiny, without("published"))
    await host.gone(28_000)
    await tiny.server.close(28_001)


async def test_a_translated_udp_port_works(tiny: SharedGuest, host: HostSide) -> None:
    await tiny.server.udp("echo", GUEST, 28_003)
    await apply(tiny, translation("published", Protocol.UDP, 28_002, GUEST, 28_003))
    await host.listening(28_002, protocol=Protocol.UDP)
    async with udp_client(28_002) as client:
        assert await exchange(client, b"x" * 9000) == b"x" * 9000
    await apply(tiny, without("published"))
    await host.gone(28_002, protocol=Protocol.UDP)
    await tiny.server.close(28_003)


async def test_a_port_stays_while_a_rule_or_a_socket_opens_it(tiny: SharedGuest, host: HostSide) -> None:
    await tiny.server.tcp("banner", GUEST, 28_005)
    await tiny.server.tcp("echo", "0.0.0.0", 28_004)
    await host.listening(28_004)
    await apply(tiny, translation("published", Protocol.TCP, 28_004, GUEST, 28_005))
    await tiny.server.close(28_004)
    await owned_by_rule(host, 28_004)
    async with tcp_client(28_004) as client:
        assert await receive_to_end(client) == b"hello\n"
    await apply(tiny, without("published"))
    await host.gone(28_004)
    await tiny.server.close(28_005)


async def test_a_rule_that_the_kernel_refuses_is_an_error(tiny: SharedGuest, host: HostSide) -> None:
    with pytest.raises(GuestServerError, match="ENOENT"):
        await apply(tiny, without("nothing of that name"))
