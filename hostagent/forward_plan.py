"""Which host listeners there are to be, and where each leads: rules and the guest's ports in, the difference out.

Several guest ports can lead to one place on the host (a server on 0.0.0.0 and ::, or on 127.0.0.1 and ::1): that is one
place with one target for each of its addresses, and none of them is an error. Two different guest ports that want one
place are: a forward that a rule makes stand there has it, else the port that came first, for as long as it is there.
The others are told so.

A place is one or two listeners, since loopback is two addresses, and so is the wildcard. A static forward is shown
until the port that it stands for is open; then that takes its line.

A change costs what the places cost that it touches, not what all forwards cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from hostagent.forward_rules import BY_DEFAULT, LOOPBACK, LOOPBACK_6, RuleSet, StandingForward, match, parsed_address
from hostagent.forwards import Endpoint, HostEnd, SocketFile
from protocol.ports import Port, Protocol

Source = Port | StandingForward
"""What a forward exists for."""

_TWINS = {LOOPBACK: LOOPBACK_6, LOOPBACK_6: LOOPBACK, "0.0.0.0": "::", "::": "0.0.0.0"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class ListenerKey:
    """One host listener."""

    protocol: Protocol
    host: HostEnd

    def place(self) -> tuple[ListenerKey, ...]:
        """This listener and its twin: what is at one loopback or wildcard address is at the other as well."""
        if isinstance(self.host, SocketFile) or (twin := _TWINS.get(self.host.address)) is None:
            return (self,)
        return self, ListenerKey(self.protocol, Endpoint(twin, self.host.port))


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of one source."""

    rule: str
    listeners: tuple[ListenerKey, ...]
    """The host listeners that lead to it, the main one first; empty when there are none."""
    reason: str = ""
    """Why it is not forwarded."""
    rival: Source | None = None
    """What has the host endpoint already."""


@dataclass(slots=True)
class PlanChange:
    """What a change touched, in order. Whatever is not in it is as it was."""

    sources: dict[Source, None] = field(default_factory=dict)
    listeners: dict[ListenerKey, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Place:
    """Who wants one place on the host."""

    listeners: tuple[ListenerKey, ...]
    standing: list[StandingForward] = field(default_factory=list)
    ports: dict[Port, str] = field(default_factory=dict)
    """With the rules that lead them here, in the order of their coming."""

    def holder(self) -> Source | None:
        return self.standing[0] if self.standing else next(iter(self.ports), None)


class ForwardPlan:
    """All decisions, kept in step with what the guest has open."""

    def __init__(self, rules: RuleSet = BY_DEFAULT) -> None:
        self.decisions: dict[Source, Decision] = {}
        self.targets: dict[ListenerKey, Source] = {}
        self._rules = rules.in_order()
        self._places: dict[ListenerKey, _Place] = {}
        self._place_of: dict[Port, ListenerKey] = {}
        for standing in rules.standing():
            if not standing.reverse:
                self._place(ListenerKey(standing.protocol, standing.host)).standing.append(standing)
        for key in self._places:
            self._settle(key, PlanChange())

    def change(self, opened: Iterable[Port], closed: Iterable[Port]) -> PlanChange:
        """Take notice of ports that opened and closed; ports that are known, or are not, make no difference."""
        change = PlanChange()
        touched: dict[ListenerKey, None] = {}
        for port in closed:
            if self.decisions.pop(port, None) is not None:
                change.sources[port] = None
                if (key := self._place_of.pop(port, None)) is not None:
                    del self._places[key].ports[port]
                    touched[key] = None
        for port in opened:
            if port not in self.decisions:
                change.sources[port] = None
                if (key := self._open(port)) is not None:
                    touched[key] = None
        for key in touched:
            self._settle(key, change)
        return change

    def users(self, keys: Collection[ListenerKey]) -> set[Source]:
        """Everything whose forward is at one of `keys`."""
        places = (self._places[first] for first in {_first(key) for key in keys} if first in self._places)
        wanted = (source for place in places for source in (*place.standing, *place.ports))
        return {source for source in wanted if source in self.decisions}

    def _open(self, port: Port) -> ListenerKey | None:
        rule = match(port, self._rules)
        words = str(rule)
        if rule.ignore:
            self.decisions[port] = Decision(words, (), words)
            return None
        main = ListenerKey(port.protocol, rule.host_end(port.number))
        self.decisions[port] = Decision(words, main.place())
        self._place(main).ports[port] = words
        self._place_of[port] = first = _first(main)
        return first

    def _place(self, main: ListenerKey) -> _Place:
        first = _first(main)
        if (place := self._places.get(first)) is None:
            place = self._places[first] = _Place(first.place())
        return place

    def _settle(self, key: ListenerKey, change: PlanChange) -> None:
        """Decide anew who has one place."""
        place = self._places[key]
        change.listeners.update(dict.fromkeys(place.listeners))
        change.sources.update(dict.fromkeys((*place.standing, *place.ports)))
        holder = place.holder()
        if holder is None:
            del self._places[key]
            for listener in place.listeners:
                del self.targets[listener]
            return
        number = _number(holder)
        friends = [port for port in place.ports if port.number == number]
        for port, words in place.ports.items():
            listeners = self.decisions[port].listeners
            self.decisions[port] = (
                Decision(words, listeners) if port.number == number else _lost(words, listeners, holder)
            )
        for standing in place.standing:
            listeners = ListenerKey(standing.protocol, standing.host).place()
            if standing is not holder:
                self.decisions[standing] = _lost(standing.rule, listeners, holder)
            elif friends:
                self.decisions.pop(standing, None)
            else:
                self.decisions[standing] = Decision(standing.rule, listeners)
        for listener in place.listeners:
            self.targets[listener] = _nearest(listener.host, friends) if friends else holder


def _first(key: ListenerKey) -> ListenerKey:
    """The listener by which a place is known, whichever of its addresses a rule names."""
    return min(key.place(), key=lambda one: str(one.host))


def _number(source: Source) -> int | None:
    if isinstance(source, Port):
        return source.number
    return source.guest.port if isinstance(source.guest, Endpoint) else None


def _lost(rule: str, listeners: tuple[ListenerKey, ...], holder: Source) -> Decision:
    what = f"guest port {holder.number}" if isinstance(holder, Port) else f"{holder.guest} ({holder.rule})"
    return Decision(rule, listeners, f"{what} is forwarded there already: change one of the rules", rival=holder)


def _nearest(host: HostEnd, candidates: Sequence[Port]) -> Port:
    """The candidate of the host address's own family, one address before all addresses."""
    version = parsed_address(host.address).version if isinstance(host, Endpoint) else 4

    def distance(port: Port) -> tuple[bool, bool, Port]:
        bound = parsed_address(port.address)
        return bound.version != version, bound.is_unspecified, port

    return min(candidates, key=distance)
