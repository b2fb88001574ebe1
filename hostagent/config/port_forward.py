"""One rule of `portForwards` as a pydantic model, of Lima's shape and meaning.

What one rule can say wrong is checked here; what several rules say to each other, in `rule_review`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hostagent.config.model import Model
from hostagent.config.values import GuestAddress, GuestSocket, HostAddress, HostSocket, Port, PortRange

UNSPECIFIED: Final = "0.0.0.0"  # noqa: S104 - matched against the guest's sockets, never bound
LOOPBACK: Final = "127.0.0.1"
ALL_PORTS: Final = (1, 65535)

MAX_STANDING_PORTS: Final = 1000
"""Ports of one static or reverse rule: each costs listeners from the start, whether somebody wants it or not."""


def _span(ports: tuple[int, int]) -> int:
    return ports[1] - ports[0] + 1


def _default_guest_port_range(data: dict[str, Any]) -> tuple[int, int]:
    return (data["guest_port"], data["guest_port"]) if data["guest_port"] else ALL_PORTS


def _default_host_port_range(data: dict[str, Any]) -> tuple[int, int]:
    ports: tuple[int, int] = data["guest_port_range"]
    return (data["host_port"], data["host_port"]) if data["host_port"] else ports


def _guest_has_ports(info: ValidationInfo) -> bool:
    """Whether the guest's side is no socket. One that is wrong is a socket all the same, and the only mistake told."""
    return info.data.get("guest_socket", "wrong") is None


class PortForward(Model):
    """One rule of `portForwards`, of Lima's shape, with its defaults filled in; the first rule that matches holds.

    `guest_port_range` and `host_port_range` are always set and say all that `guest_port` and `host_port` say; they
    mean nothing on the side that is a socket.
    """

    guest_ip: GuestAddress = Field(
        default=LOOPBACK,
        description="address a guest program is bound to; 127.0.0.1 also means 0.0.0.0, :: and ::1; any means all",
    )
    guest_ip_must_be_zero: bool = Field(
        default_factory=lambda data: data["guest_ip"] == UNSPECIFIED,
        description="match only programs that are bound to all addresses",
    )
    guest_port: Port | None = None
    guest_port_range: PortRange = Field(default_factory=_default_guest_port_range)
    guest_socket: GuestSocket | None = Field(
        default=None, description="absolute path in the guest; may hold {{.Home}}, {{.Name}}, {{.UID}}, {{.User}}"
    )
    host_ip: HostAddress = LOOPBACK
    host_port: Port | None = None
    host_port_range: PortRange = Field(default_factory=_default_host_port_range)
    host_socket: HostSocket | None = Field(
        default=None,
        description="path on the host; a relative one lies in {{.Dir}}/sock; may hold {{.Home}}, {{.Name}}, {{.UID}}",
    )
    proto: Literal["tcp", "udp", "any"] = "any"
    reverse: bool = Field(default=False, description="the guest's end listens and leads to the host's")
    ignore: bool = Field(default=False, description="do not forward what matches, whatever later rules say")
    static: bool = Field(default=False, description="listen at once, before the guest's program exists")
    wait: Annotated[float, Field(ge=0, le=600)] = Field(
        default=0.0,
        description="seconds that a connection to a static forward waits for the guest's program; 0 refuses it at once",
    )

    @model_validator(mode="before")
    @classmethod
    def _zero_address_when_it_must_be(cls, data: object) -> object:
        """Two keys take their defaults from each other, and default factories see only earlier fields."""
        if not isinstance(data, dict) or data.keys() & {"guestIP", "guest_ip"}:
            return data
        if any(data.get(key) is True for key in ("guestIPMustBeZero", "guest_ip_must_be_zero")):
            return {**data, "guestIP": UNSPECIFIED}
        return data

    @field_validator("guest_ip_must_be_zero")
    @classmethod
    def _zero_fits_address(cls, must_be_zero: bool, info: ValidationInfo) -> bool:
        if must_be_zero and info.data.get("guest_ip", UNSPECIFIED) != UNSPECIFIED:
            raise ValueError(f"can be true only when guestIP is {UNSPECIFIED}")
        return must_be_zero

    @field_validator("guest_port_range", "host_port_range")
    @classmethod
    def _range_starts_at_port(cls, ports: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        side = "host" if info.field_name == "host_port_range" else "guest"
        if (port := info.data.get(f"{side}_port")) and port != ports[0]:
            raise ValueError(f"must begin with {side}Port, which is {port}")
        return ports

    @field_validator("guest_socket")
    @classmethod
    def _guest_socket_or_port(cls, socket: str | None, info: ValidationInfo) -> str | None:
        if socket and info.data.get("guest_port"):
            raise ValueError("a rule has either guestPort or guestSocket, not both")
        return socket

    @field_validator("host_port")
    @classmethod
    def _host_port_has_one_guest_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        guest = info.data.get("guest_port_range")
        if port and guest and _guest_has_ports(info) and (count := _span(guest)) > 1:
            raise ValueError(f"one host port cannot stand for {count} guest ports: give guestPort or hostPortRange")
        return port

    @field_validator("host_port_range")
    @classmethod
    def _ranges_of_equal_length(cls, ports: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        guest = info.data.get("guest_port_range")
        if info.data.get("guest_socket"):
            if ports != ALL_PORTS and _span(ports) > 1:
                raise ValueError("guestSocket can be forwarded to one port only")
        elif guest and _guest_has_ports(info) and _span(guest) != _span(ports):
            raise ValueError(f"has {_span(ports)} ports, and the guest's side has {_span(guest)}")
        return ports

    @field_validator("host_socket")
    @classmethod
    def _host_socket_has_one_guest_port(cls, socket: str | None, info: ValidationInfo) -> str | None:
        if socket and info.data.get("host_port"):
            raise ValueError("a rule has either hostPort or hostSocket, not both")
        guest = info.data.get("guest_port_range")
        if socket and guest and _guest_has_ports(info) and _span(guest) > 1:
            raise ValueError("needs one guestPort or a guestSocket, not a range")
        return socket

    @field_validator("proto")
    @classmethod
    def _sockets_carry_streams(cls, proto: str, info: ValidationInfo) -> str:
        if proto == "udp" and (info.data.get("guest_socket") or info.data.get("host_socket")):
            raise ValueError("a rule with a socket carries streams: leave proto out, or tcp")
        return proto

    @field_validator("reverse", "static")
    @classmethod
    def _names_both_ends(cls, standing: bool, info: ValidationInfo) -> bool:
        """What exists before the guest has opened anything must be named one by one."""
        guest = info.data.get("guest_port_range")
        if standing and guest and _guest_has_ports(info):
            _check_countable(guest)
        if standing and info.field_name == "static" and info.data.get("reverse"):
            raise ValueError("a reverse forward always listens at once: leave static out")
        return standing

    @field_validator("ignore")
    @classmethod
    def _ignore_opens_nothing(cls, ignore: bool, info: ValidationInfo) -> bool:
        for key, name in (("reverse", "reverse"), ("guest_socket", "guestSocket"), ("host_socket", "hostSocket")):
            if ignore and info.data.get(key):
                raise ValueError(f"means nothing together with {name}: leave the rule out")
        return ignore

    @field_validator("static")
    @classmethod
    def _static_opens_something(cls, static: bool, info: ValidationInfo) -> bool:
        if static and info.data.get("ignore"):
            raise ValueError("a rule is either static or ignored, not both")
        return static

    @field_validator("wait")
    @classmethod
    def _only_static_forwards_wait(cls, wait: float, info: ValidationInfo) -> float:
        if wait and info.data.get("static") is False and _guest_has_ports(info):
            raise ValueError("only a static forward has connections that can wait: add static")
        return wait

    @model_validator(mode="after")
    def _socket_leads_somewhere(self) -> PortForward:
        if self.guest_socket and not self.host_socket and self.host_port_range == ALL_PORTS:
            raise ValueError("a guestSocket needs a hostSocket or a hostPort")
        return self


def _check_countable(ports: tuple[int, int]) -> None:
    if ports == ALL_PORTS:
        raise ValueError(
            f"needs guestPort, guestPortRange or guestSocket: it would open all ports at once, and may open "
            f"{MAX_STANDING_PORTS}"
        )
    if (count := _span(ports)) > MAX_STANDING_PORTS:
        raise ValueError(f"would open {count} ports at once, and may open {MAX_STANDING_PORTS}")
