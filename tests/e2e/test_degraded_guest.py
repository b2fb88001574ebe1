"""The guest agent works in full where the kernel offers less, and `status` says what is missing and why."""

from __future__ import annotations

import pytest
import trio

from protocol.ports import Protocol, WakeupSource
from tests.e2e.clients import exchange, receive_to_end, tcp_client, udp_client
from tests.e2e.host_side import HostSide, host_side
from tests.e2e.tiny_guest import TinyGuest, tiny_guest

pytestmark = pytest.mark.tiny_guest

TRACEFS, KPROBE = "tracefs inet_sock_set_state", "kprobe udp_lib_get_port"
TCP_DESTROY, UDP_DESTROY, DUMP = "sock_diag tcp destroy", "sock_diag udp destroy", "sock_diag dump"
NFTABLES, AUDIT, RULES = "nfnetlink nftables", "audit NETFILTER_CFG", "NAT rules"

HIDE_TRACEFS = "umount /sys/kernel/tracing; mount -t tmpfs tmpfs /sys/kernel"
HIDE_SOCK_DIAG = "rmmod tcp_diag udp_diag inet_diag"
AS_NOBODY = (
    "echo nobody:x:65534:65534::/tmp:/bin/sh >> /etc/passwd; chmod 666 /dev/vport*; chmod 755 /; "
    "su nobody -c /usr/lib/guestagent/guestagent"
)

CASES = {
    "all there": ("guestagent", {}),
    "no tracefs": (f"{HIDE_TRACEFS}; guestagent", {TRACEFS: "tracefs", KPROBE: "tracefs"}),
    "no sock_diag": (f"{HIDE_SOCK_DIAG}; guestagent", {DUMP: "module missing", TCP_DESTROY: "", UDP_DESTROY: ""}),
    "no rights": (
        AS_NOBODY,
        dict.fromkeys((TRACEFS, KPROBE, NFTABLES, AUDIT, RULES), "not permitted"),
    ),
    "nothing": (
        f"{HIDE_TRACEFS}; {HIDE_SOCK_DIAG}; {AS_NOBODY}",
        dict.fromkeys((TRACEFS, KPROBE, TCP_DESTROY, UDP_DESTROY, NFTABLES, AUDIT, DUMP, RULES), ""),
    ),
}


async def _works(guest: TinyGuest, host: HostSide) -> None:
    """A TCP and a UDP port come, serve and go."""
    for address in ("127.0.0.1", "::1", "0.0.0.0"):
        port = await guest.server.tcp("banner", address)
        await host.listening(port)
        async with tcp_client(port) as client:
            assert await receive_to_end(client) == b"hello\n"
        await guest.server.close(port)
        await host.gone(port)
    port = await guest.server.udp("echo", "127.0.0.1", 20_001)
    await host.listening(port, protocol=Protocol.UDP)
    async with udp_client(port) as client:
        assert await exchange(client, b"x" * 9000) == b"x" * 9000
    await guest.server.close(port)
    await host.gone(port, protocol=Protocol.UDP)


async def _settled_sources(host: HostSide) -> list[WakeupSource]:
    """What `status` says when each source has been tried."""
    while True:
        sources = list((await host.fresh_status()).sources)
        if not any(source.reason == "not tried yet" for source in sources):
            return sources
        await trio.sleep(0.2)


@pytest.mark.parametrize("case", CASES)
async def test_works_and_says_what_it_lacks(case: str) -> None:
    command, missing = CASES[case]
    async with tiny_guest(command) as guest, host_side(guest.channel_socket) as host:
        await _works(guest, host)
        sources = await _settled_sources(host)
        assert {source.name for source in sources if not source.live} == set(missing), sources
        for source in sources:
            if source.live:
                assert source.reason == ""
            else:
                assert missing[source.name] in source.reason
                assert source.reason
