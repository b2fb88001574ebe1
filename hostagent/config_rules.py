"""`portForwards` of the configuration as forward rules."""

from __future__ import annotations

from hostagent.config.schema import ALL_PORTS, ANY_ADDRESS, UNSPECIFIED, PortForward
from hostagent.forward_rules import ForwardRule
from protocol.ports import Protocol


def forward_rules(entries: tuple[PortForward, ...]) -> tuple[ForwardRule, ...]:
    """The rules that `entries` say, in their order. Those about sockets and reverse forwards are not acted on yet."""
    return tuple(
        _rule(number, entry)
        for number, entry in enumerate(entries)
        if not (entry.guest_socket or entry.host_socket or entry.reverse)
    )


def _rule(number: int, entry: PortForward) -> ForwardRule:
    return ForwardRule(
        text=f"portForwards[{number}]: {_words(entry)}",
        protocol=None if entry.proto == "any" else Protocol(entry.proto),
        guest_address=entry.guest_ip,
        any_address=entry.guest_ip == ANY_ADDRESS
        or (entry.guest_ip in (UNSPECIFIED, "::") and not entry.guest_ip_must_be_zero),
        must_be_zero=entry.guest_ip_must_be_zero,
        guest_ports=entry.guest_port_range,
        host_address=entry.host_ip,
        host_ports=entry.host_port_range,
        ignore=entry.ignore,
    )


def _words(entry: PortForward) -> str:
    guest = f"{entry.guest_ip} {_ports(entry.guest_port_range)} ({entry.proto})"
    return f"ignore {guest}" if entry.ignore else f"{guest} to {entry.host_ip} {_ports(entry.host_port_range)}"


def _ports(span: tuple[int, int]) -> str:
    if span == ALL_PORTS:
        return "all ports"
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
