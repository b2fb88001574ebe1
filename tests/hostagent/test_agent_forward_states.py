"""Every state that a forward can be in, from a real cause, in the list, in its JSON, and in the events."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import trio

from hostagent import host_listener
from hostagent.api_client import ApiClient
from hostagent.cli_views import port_lines
from hostagent.forward_plan import ListenerKey
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.forwards import ForwardState
from hostagent.launch_plan import read_plan, write_plan
from hostagent.paths import InstancePaths
from hostagent.stream_socket import listen
from protocol.ports import Port, Protocol
from tests.documents import problems
from tests.fakes.privileges import without_root
from tests.hostagent.test_agent import paths as paths  # a fixture
from tests.hostagent.test_agent import ready
from tests.hostagent.test_forwarder import GUEST, free_number

PRIVILEGED = 81
NO_ADDRESS = "192.0.2.1"
"""For documentation (RFC 5737), so no host has it."""


def rule(guest: int, host: int, **more: str) -> ForwardRule:
    return ForwardRule("a rule", protocol=Protocol.TCP, guest_address=GUEST, guest_ports=(guest, guest),
                       host_ports=(host, host), **more)  # type: ignore[arg-type]  # fmt: skip


def listen_as_a_user(key: ListenerKey) -> socket.socket:
    """Listen without root's rights, whoever runs the test."""
    with without_root():
        return listen(key)


async def test_every_state_is_shown_with_its_reason_and_the_next_step(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_listener, "listen", listen_as_a_user)
    numbers = {state: free_number() for state in ForwardState}
    rules = (
        rule(numbers[ForwardState.DENIED], PRIVILEGED),
        rule(numbers[ForwardState.FAILED], free_number(), host_address=NO_ADDRESS),
        ForwardRule("not this one", guest_address=GUEST, guest_ports=(numbers[ForwardState.IGNORED],) * 2, ignore=True),
    )
    write_plan(paths.launch_plan, replace(read_plan(paths.launch_plan), forwarding=RuleSet(rules)))
    words = {
        ForwardState.LISTENING: "",
        ForwardState.CONFLICT: "is taken by",
        ForwardState.DENIED: f"sudo sysctl net.ipv4.ip_unprivileged_port_start={PRIVILEGED}",
        ForwardState.IGNORED: "not this one",
        ForwardState.FAILED: f"no address {NO_ADDRESS}: it is forwarded as soon as it has, or change hostIP",
    }
    with (
        socket.create_server(("127.0.0.1", numbers[ForwardState.CONFLICT])),
        socket.create_server(("::1", numbers[ForwardState.CONFLICT]), family=socket.AF_INET6),
    ):
        async with ready(paths) as running:
            running.qemu.guest.open_ports(*(Port(Protocol.TCP, GUEST, numbers[state]) for state in words))
            for state in words:
                await running.event("forward", guest=f"{GUEST}:{numbers[state]}", state=state)
            await running.event("forward", guest=f"{GUEST}:{numbers[ForwardState.LISTENING]}", reason="")
            shown = await trio.to_thread.run_sync(ApiClient(paths).ports)
            assert problems({"ports": shown}, "PortList") == []
            by_number = {port["guest"]["port"]: port for port in shown if "port" in port["guest"]}
            for state, reason in words.items():
                port = by_number[numbers[state]]
                assert (port["state"], reason in port["reason"]) == (state, True), port
            text = "\n".join(port_lines(shown, width=None, colour=False))
            assert all(f"{state}  " in text and reason in text for state, reason in words.items())
            running.qemu.guest.kill()
            running.qemu.guest.cut()
            await running.event("forward", guest=f"{GUEST}:{numbers[ForwardState.LISTENING]}", state="stalled")
            (stalled,) = (port for port in await trio.to_thread.run_sync(ApiClient(paths).ports)
                          if port["state"] == ForwardState.STALLED)  # fmt: skip
            assert "heals by itself" in stalled["reason"]
