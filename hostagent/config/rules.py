"""The forwarding keys of a configuration as the rule values that the host agent works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from hostagent.config.port_forward import ALL_PORTS, UNSPECIFIED, PortForward
from hostagent.config.schema import Config
from hostagent.config.socket_paths import MAX_GUEST_PATH, expand
from hostagent.config.values import ANY_ADDRESS
from hostagent.errors import UserError
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.paths import MAX_SOCKET_PATH
from protocol.ports import Protocol


@dataclass(frozen=True, slots=True)
class SocketVariables:
    """What the variables in socket paths stand for, without braces and dot."""

    host: Mapping[str, str]
    guest: Mapping[str, str]


NO_VARIABLES = SocketVariables({}, {})


def rule_set(config: Config, variables: SocketVariables) -> RuleSet:
    """The rules of `config`; raises `UserError` when a socket's path cannot be used."""
    return RuleSet(
        rules=forward_rules(config.port_forwards, variables),
        forward_by_default=config.forward_default == "loopback",
        enabled=config.forwarding,
    )


def forward_rules(
    entries: Iterable[PortForward],
    variables: SocketVariables = NO_VARIABLES,
    name: Callable[[int], str] = "portForwards.{}".format,
) -> tuple[ForwardRule, ...]:
    """The rules that `entries` say, in their order, named by `name`; raises `UserError`."""
    return tuple(_rule(name(number), entry, variables) for number, entry in enumerate(entries))


def port_rule(name: str, entry: PortForward) -> ForwardRule:
    """What `entry` says about ports and addresses; sockets are left as they stand in the file."""
    guest_socket, host_socket = entry.guest_socket or "", entry.host_socket or ""
    streams_only = bool(guest_socket or host_socket)
    return ForwardRule(
        name=name,
        text=_words(entry, guest_socket, host_socket),
        protocol=Protocol.TCP if streams_only else None if entry.proto == "any" else Protocol(entry.proto),
        guest_address=entry.guest_ip,
        any_address=entry.guest_ip == ANY_ADDRESS
        or (entry.guest_ip in (UNSPECIFIED, "::") and not entry.guest_ip_must_be_zero),
        must_be_zero=entry.guest_ip_must_be_zero,
        guest_ports=entry.guest_port_range,
        guest_socket=guest_socket,
        host_address=entry.host_ip,
        host_ports=entry.host_port_range,
        host_socket=host_socket,
        ignore=entry.ignore,
        reverse=entry.reverse,
        static=entry.static,
        wait=entry.wait,
    )


def _rule(name: str, entry: PortForward, variables: SocketVariables) -> ForwardRule:
    guest_socket = _path(f"{name}.guestSocket", entry.guest_socket, variables.guest, MAX_GUEST_PATH)
    host_socket = _path(f"{name}.hostSocket", entry.host_socket, variables.host, MAX_SOCKET_PATH)
    text = _words(entry, guest_socket, host_socket)
    return replace(port_rule(name, entry), text=text, guest_socket=guest_socket, host_socket=host_socket)


def _path(key: str, text: str | None, values: Mapping[str, str], limit: int) -> str:
    if not text:
        return ""
    try:
        return expand(text, values, limit)
    except ValueError as exc:
        raise UserError(f"{key}: {exc}", "change the path in the configuration") from exc


def _words(entry: PortForward, guest_socket: str, host_socket: str) -> str:
    guest = guest_socket or f"{entry.guest_ip} {_ports(entry.guest_port_range)} ({entry.proto})"
    host = host_socket or f"{entry.host_ip} {_ports(entry.host_port_range)}"
    if entry.ignore:
        return f"ignore {guest}"
    return f"{host} at {guest} in the guest" if entry.reverse else f"{guest} to {host}"


def _ports(span: tuple[int, int]) -> str:
    if span == ALL_PORTS:
        return "all ports"
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
