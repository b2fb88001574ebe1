"""From claims to ports: at which of the guest's own addresses a translated port is open, and where to dial it. Pure.

**What a port says.** Its address is the one that the rule names, if that is the guest's own; a rule for an interface
means all addresses of that interface; any other rule means all addresses (0.0.0.0 or ::). A rule for an address that is
not the guest's (a Kubernetes cluster address, say) opens no port of the guest.

**What is dialled** is the translation's target, straight away, and not the port:

| rules of                          | 127.0.0.1:port       | own address:port | target |
|-----------------------------------|----------------------|------------------|--------|
| Docker with its userland proxy    | the proxy answers    | yes              | yes    |
| Docker without                    | with route_localnet  | yes              | yes    |
| CNI portmap, netavark (Podman)    | with route_localnet  | yes              | yes    |
| by hand, prerouting only          | no                   | no               | yes    |
| REDIRECT, prerouting only         | no                   | no               | its local port |

(Tried with each engine's rules and a server in a network namespace, Linux 6.18; netavark's and a proxy's loopback not.)

Prerouting never sees what the guest itself sends, an output chain may exclude 127.0.0.0/8 as Docker's does, and the
kernel drops translated packets from 127.0.0.1 unless route_localnet is set, for which IPv6 has no equivalent. The
target is where all of these lead, over the same routes that the kernel would take; the container sees the guest's own
address, as it does behind a userland proxy. REDIRECT leads to the guest itself and is dialled on the loopback.

Engines hold their ports with sockets as well, and some of these never answer (conmon's, dockerd's without proxy). So a
translation decides over a socket. Such a socket is often one for both IP versions, seen as `::`: where that is the only
socket, its port leads to the IPv4 target.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from guestagent.nat_rules import Claim, ClaimKey, Packets, is_named
from protocol.ports import Port, PortChange, PortKind, PortOwner, Protocol, difference

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

WILDCARD = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - this binds nothing
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_LOOPBACK_NETWORK = {4: ipaddress.ip_network("127.0.0.0/8"), 6: ipaddress.ip_network("::1/128")}
_MAX_NAME = 64
_IDENTIFIER = re.compile(r"""\bid: "?([A-Za-z0-9_.-]{1,128})""")
_NETWORK_NAME = re.compile(r"""\bname: "?([A-Za-z0-9_.-]{1,64})""")
_HEXADECIMAL = re.compile(r"(?:.*-)?([0-9a-f]{12})[0-9a-f]{52}")


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address of the guest, and the interface that has it."""

    interface: str
    address: Address


PortKey = tuple[Protocol, str, int]
Dial = tuple[str, int]
"""Where to connect to: an address and a port."""


@dataclass(frozen=True, slots=True)
class NatPorts:
    """The ports that translations open."""

    dials: Mapping[PortKey, Dial] = field(default_factory=dict)
    owners: Mapping[PortKey, PortOwner] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    """What rules were left out, in words, with how many."""

    def ports(self) -> frozenset[Port]:
        """The ports as such."""
        return frozenset(Port(*key, PortKind.NAT) for key in self.dials)


NO_PORTS = NatPorts()


def locate(
    claims: Mapping[ClaimKey, list[Claim]], addresses: Iterable[OwnAddress], skipped: Counter[str]
) -> Iterator[NatPorts | None]:
    """None after each port, and at last all of them. The first claim of an address is the one that counts."""
    own = tuple(addresses)
    dials: dict[PortKey, Dial] = {}
    owners: dict[PortKey, PortOwner] = {}
    where: dict[tuple[int, Packets], tuple[str, ...]] = {}
    for (version, protocol, number), found in claims.items():
        for claim in found:
            place = (version, Packets(address=claim.packets.address, interface=claim.packets.interface))
            if place not in where:
                where[place] = tuple(_addresses(place[1], version, own))
            for address in where[place]:
                key = (protocol, address, number)
                if key not in dials:
                    dials[key] = (claim.target.address or LOOPBACK[version], claim.target.port_for(number))
                    owners[key] = owner_of(claim.origin, claim.comment)
        yield None
    for key in [key for key in dials if _is_repeated(key, dials)]:
        del dials[key], owners[key]
    yield NatPorts(dials, owners, dict(skipped))


def _is_repeated(key: PortKey, dials: Mapping[PortKey, Dial]) -> bool:
    """Whether the port at all addresses leads to the same target as that at one of them."""
    protocol, address, number = key
    everywhere = (protocol, WILDCARD[6 if ":" in address else 4], number)
    return everywhere != key and dials.get(everywhere) == dials[key]


def _addresses(packets: Packets, version: int, own: tuple[OwnAddress, ...]) -> Iterator[str]:
    """The guest's own addresses that `packets` go to, canonical; the wildcard when it is all of them."""
    if packets.all_arrivals:
        yield WILDCARD[version]
        return
    network = packets.address
    if network is not None and network.overlaps(loopback := _LOOPBACK_NETWORK[version]):
        # All of 127.0.0.0/8 is the guest's, but only one of it is ever listed.
        yield str(network.network_address) if network.prefixlen > loopback.prefixlen else LOOPBACK[version]
        if network.prefixlen >= loopback.prefixlen:
            return
    for one in own:
        if (
            one.address.version == version
            and (network is None or one.address in network)
            and (not packets.interface or is_named(one.interface, packets.interface))
        ):
            yield str(one.address)


def owner_of(origin: str, comment: str) -> PortOwner:
    """Who made a rule, as far as it says. Comments are any text, and only that is made of them: text.

    CNI's portmap and netavark write `dnat name: "NETWORK" id: "CONTAINER"`.
    """
    unit = ""
    if identifier := _IDENTIFIER.search(comment):
        name = identifier[1]
        short = _HEXADECIMAL.fullmatch(name)
        network = _NETWORK_NAME.search(comment)
        unit = f"{network[1] if network else 'container'}/{short[1] if short else name}"
    elif comment:
        unit = "".join(character if character.isprintable() else "?" for character in comment[:_MAX_NAME])
    return PortOwner(process=f"{origin} rule", pid=0, uid=0, unit=unit)


class MergedPorts:
    """The ports of sockets and of translations together, each once. The sockets are somebody else's: `sockets`.

    A translated port that a socket holds too is that socket's. A socket at `::` stands for 0.0.0.0 as well where that
    has no socket of its own: engines open one for both IP versions.
    """

    def __init__(self, sockets: Container[Port]) -> None:
        self._sockets = sockets
        self._by_number: dict[tuple[Protocol, int], list[Port]] = {}
        self.shown: frozenset[Port] = frozenset()
        """The translated ports that are not held by a socket."""

    def replace(self, nat: AbstractSet[Port]) -> PortChange:
        """These are the translated ports from now on; returns what is different."""
        self._by_number = {}
        for port in nat:
            self._by_number.setdefault((port.protocol, port.number), []).append(port)
        before, self.shown = self.shown, frozenset(port for port in nat if not self._is_held(port))
        return difference(before, self.shown)

    def follow(self, change: PortChange) -> PortChange:
        """The sockets have changed; returns what is different besides."""
        numbers = {(port.protocol, port.number) for port in (*change.opened, *change.closed)}
        concerned = frozenset(port for key in numbers for port in self._by_number.get(key, ()))
        if not concerned:
            return PortChange((), ())
        now = frozenset(port for port in concerned if not self._is_held(port))
        before = self.shown & concerned
        self.shown = (self.shown - concerned) | now
        return difference(before, now)

    def _is_held(self, port: Port) -> bool:
        wildcards = (WILDCARD[6],) if port.address == WILDCARD[4] else ()
        return any(Port(port.protocol, address, port.number) in self._sockets for address in (port.address, *wildcards))


def dial_for(key: PortKey, dials: Mapping[PortKey, Dial], sockets: Container[Port]) -> Dial | None:
    """Where to dial the port `key` because of a translation; None where none concerns it.

    What no socket serves at one address is what translations make of all addresses.
    """
    if not dials:
        return None
    if dial := dials.get(key):
        return dial
    protocol, address, number = key
    same_version = WILDCARD[6] if ":" in address else WILDCARD[4]
    everywhere = dials.get((protocol, same_version, number))
    if address == WILDCARD[6] and Port(protocol, WILDCARD[4], number) not in sockets:
        return dials.get((protocol, WILDCARD[4], number))
    served = Port(protocol, address, number) in sockets or Port(protocol, same_version, number) in sockets
    return None if served else everywhere
