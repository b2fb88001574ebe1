"""Keeps the host's listeners and the table of forwards in step with what the guest says and the rules want.

The guest's ports and the rules give a plan (`hostagent.forward_plan`); what a change touched in it is carried out:
listeners that nobody wants are closed, missing ones are opened, and what leads elsewhere now stays open. A listener
that cannot be had is tried again every `RETRY` seconds until it can. There is no event for that without root: the
kernel tells only CAP_NET_ADMIN about the end of other processes' sockets. A unix socket whose file was removed is
opened anew: the files are looked for every `FILE_CHECK` seconds, as long as there are any.

A change is carried out at once, unless the one before was a moment ago: then it waits, together with all that follow,
for as long as that one took. So a guest that changes ports without end gets half of a CPU, and the API and the streams
the other half. Listeners take at most half of the descriptors that this process may have, so that clients find some.

While the guest agent is away the listeners stay and their forwards are `stalled`; a guest that booted anew has none
of its old ports, so everything goes at once, except what rules alone make stand there. Connections outlive their
listener and the rule that made it.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Collection, Iterable

import trio

from hostagent.channel import Channel
from hostagent.forward_plan import Decision, ForwardPlan, ListenerKey, PlanChange, Source
from hostagent.forward_rules import RuleSet, StandingForward
from hostagent.forwards import Endpoint, Forward, ForwardKind, ForwardState, GuestEnd, SocketFile, Traffic
from hostagent.host_listener import FILE_CHECK, RETRY, HostListener
from hostagent.port_holder import port_holders
from hostagent.route import Route
from hostagent.tcp_listener import TcpService, accept_connections
from hostagent.udp_listener import UdpListener
from protocol.limits import MAX_PORTS
from protocol.ports import Port, PortOwner, Protocol
from protocol.stream_messages import SocketTarget, StreamKind, UnixTarget

LONGEST_REST = 2.0
"""Seconds that changes may have to wait for others that took long."""


class Forwarder:
    """The forwards of one instance. `changed` hears of every forward whose state changed, and of those that went."""

    def __init__(self, channel: Channel, rules: RuleSet, changed: Callable[[Forward, bool], None]) -> None:
        self._channel = channel
        self._rules = rules
        self._changed = changed
        self._plan = ForwardPlan(rules)
        self._ports: set[Port] = set()
        self._unplanned: set[Port] = set()
        """Ports that opened or closed, or both, since the plan was changed."""
        self._owners: dict[Port, PortOwner] = {}
        self._forwards: dict[Source, Forward] = {}
        self._listeners: dict[ListenerKey, HostListener] = {}
        self._unserved: set[Source] = set()
        """Sockets of the guest on which nobody listened when they were last dialled."""
        self._idle_traffic = Traffic()
        self._ready = trio.Event()
        self._news = trio.Event()
        self._failed = trio.Event()
        self._nameless = trio.Event()
        self._with_files = trio.Event()
        self._distrust = ""
        self._stale = trio.Event()
        self._rested = 0.0
        self._most_listeners = _most_listeners()
        self._listening = 0
        self._nursery: trio.Nursery | None = None
        self._connections: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as connections, trio.open_nursery() as nursery:
            self._connections, self._nursery = connections, nursery
            nursery.start_soon(self._apply_late)
            nursery.start_soon(self._name_holders)
            nursery.start_soon(self._watch_files)
            self._carry_out(PlanChange(dict.fromkeys(self._plan.decisions), dict.fromkeys(self._plan.targets)))
            task_status.started()
            await self._retry()

    @property
    def rules(self) -> RuleSet:
        """The rules that hold."""
        return self._rules

    @property
    def forwards(self) -> list[Forward]:
        """All forwards, in the order of their guest ports."""
        return sorted(self._forwards.values(), key=_order)

    # ------------------------------------------------------------------ what the guest and the user say

    def replace(self, ports: Iterable[Port]) -> None:
        """The guest's whole list of ports."""
        known, self._ports = self._ports, set(ports)
        self._unplanned |= known ^ self._ports
        self._owners = {port: owner for port, owner in self._owners.items() if port in self._ports}
        first = not self._ready.is_set()
        self._ready.set()
        self._apply_soon(at_once=first)
        if first:
            self._update_states(self._plan.decisions)

    def change(self, opened: Collection[Port], closed: Collection[Port]) -> bool:
        """Ports that opened and closed; False when there are more than `MAX_PORTS`, and new ones were left out."""
        for port in self._ports.intersection(closed):
            self._ports.discard(port)
            self._name_owner(port, None)
            if port in self._plan.decisions:
                self._unplanned.add(port)
            else:  # nobody has heard of it, and a guest that opens others instead must not fill the memory
                self._unplanned.discard(port)
        new = set(opened) - self._ports
        fits = len(self._ports) + len(new) <= MAX_PORTS
        if fits:
            self._ports |= new
            self._unplanned |= new
        self._apply_soon()
        return fits

    def name_owners(self, owners: Iterable[tuple[Port, PortOwner]]) -> None:
        """Who holds ports that are known already."""
        for port, owner in owners:
            if port in self._ports and self._owners.get(port) != owner:
                self._name_owner(port, owner)
                if (forward := self._forwards.get(port)) is not None:
                    self._changed(forward, True)

    def _name_owner(self, port: Port, owner: PortOwner | None) -> None:
        if owner is None:
            self._owners.pop(port, None)
        else:
            self._owners[port] = owner
        if (forward := self._forwards.get(port)) is not None:
            forward.owner = owner

    def stall(self, distrust: str = "") -> None:
        """The guest agent is away, or is not listened to because of `distrust`."""
        self._ready = trio.Event()
        self._distrust = distrust
        self._unserved.clear()
        self._update_states(self._plan.decisions)

    def set_rules(self, rules: RuleSet) -> None:
        """Let other rules hold from now on. A listener that both sets want stays open."""
        old, self._rules, self._plan = self._plan, rules, ForwardPlan(rules)
        in_order = [source for source in old.decisions if isinstance(source, Port) and source in self._ports]
        self._plan.change((*in_order, *sorted(self._ports.difference(in_order))), ())
        self._unplanned.clear()
        sources = dict.fromkeys((*old.decisions, *self._plan.decisions))
        self._carry_out(PlanChange(sources, dict.fromkeys((*old.targets, *self._plan.targets))))

    # ------------------------------------------------------------------ listeners

    def _apply_soon(self, *, at_once: bool = False) -> None:
        """Carry out what changed, now or after the rest that the last change earned."""
        if at_once or (trio.current_time() >= self._rested and not self._stale.is_set()):
            self._apply()
        else:
            self._stale.set()

    async def _apply_late(self) -> None:
        """Carry out what had to wait."""
        while True:
            await self._stale.wait()
            await trio.sleep_until(self._rested)
            self._stale = trio.Event()
            self._apply()

    def _apply(self) -> None:
        """Make the plan, the listeners and the table what the ports ask for."""
        began = trio.current_time()
        opened, closed = self._unplanned & self._ports, self._unplanned - self._ports
        self._unplanned = set()
        self._carry_out(self._plan.change(sorted(opened), closed))
        ended = trio.current_time()
        self._rested = ended + min(ended - began, LONGEST_REST)

    def _carry_out(self, change: PlanChange) -> None:
        for key in change.listeners:
            if key in self._listeners and key not in self._plan.targets:
                self._close(self._listeners.pop(key))
        for key in change.listeners:
            if key in self._plan.targets and key not in self._listeners:
                self._listeners[key] = HostListener(key)
                self._open(self._listeners[key])
        self._update_states(change.sources)
        self._news.set()
        self._news = trio.Event()

    def _open(self, listener: HostListener) -> None:
        if self._listening >= self._most_listeners:
            listener.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        elif listener.open():
            self._listening += 1
            assert self._nursery is not None
            assert listener.sock is not None
            self._nursery.start_soon(self._serve, listener.key, listener.sock)
            if isinstance(listener.key.host, SocketFile):
                self._with_files.set()
        if listener.missed:
            self._failed.set()

    def _close(self, listener: HostListener) -> None:
        if listener.sock is not None:
            listener.close()
            if self._listening == self._most_listeners:
                self._failed.set()  # there is room for another one
            self._listening -= 1

    async def _serve(self, key: ListenerKey, sock: socket.socket) -> None:
        """Serve one listener until its socket is closed."""
        assert self._connections is not None
        with sock:
            if key.protocol is Protocol.UDP:
                await UdpListener(sock, self._channel, lambda: self._route(key)).run()
                return
            service = TcpService(
                self._channel, lambda: self._route(key), self._connections, lambda: self._ready, lambda: self._news
            )
            await accept_connections(sock, service)

    def _route(self, key: ListenerKey) -> Route | None:
        """Where the listener leads; None in the moment between its end and its socket's."""
        source = self._plan.targets.get(key)
        if source is None:
            return None
        forward = self._forwards.get(source)
        traffic = self._idle_traffic if forward is None else forward.traffic
        wait = source.wait if isinstance(source, StandingForward) else 0.0
        end = _guest_end(source)
        if isinstance(end, SocketFile):
            return Route(
                StreamKind.UNIX, UnixTarget(end.path), traffic, wait, lambda served: self._note(source, served)
            )
        kind = StreamKind.UDP if key.protocol is Protocol.UDP else StreamKind.TCP
        return Route(kind, SocketTarget(end.address, end.port), traffic, wait)

    def _note(self, source: Source, served: bool) -> None:
        """Whether a dialled socket was served. Of ports the guest says it unasked. The rule may have gone meanwhile."""
        if served is (source in self._unserved) and source in self._plan.decisions:
            (self._unserved.discard if served else self._unserved.add)(source)
            self._update_states([source])

    async def _retry(self) -> None:
        """Try again what could not be had, for as long as it is wanted."""
        while True:
            await self._failed.wait()
            self._failed = trio.Event()
            self._nameless.set()
            await trio.sleep(RETRY)
            self._update_states(self._plan.users(self._open_missing()))

    async def _watch_files(self) -> None:
        """Open anew whatever lost its file. Who is connected stays so."""
        while True:
            await self._with_files.wait()
            self._with_files = trio.Event()
            await trio.sleep(FILE_CHECK)
            sockets = [listener for key, listener in self._listeners.items() if isinstance(key.host, SocketFile)]
            lost = [listener for listener in sockets if listener.lost]
            for listener in lost:
                self._close(listener)
                self._open(listener)
            self._update_states(self._plan.users([listener.key for listener in lost]))
            if any(listener.sock is not None for listener in sockets):
                self._with_files.set()

    async def _name_holders(self) -> None:
        """Find out who has what could not be had. On a busy host that takes longer than a port takes to become free."""
        while True:
            await self._nameless.wait()
            self._nameless = trio.Event()
            self._update_states(self._plan.users(await self._newly_named()))

    def _open_missing(self) -> list[ListenerKey]:
        """Try every listener again that could not be had; those about which there is something new to show."""
        changed = []
        for key, listener in list(self._listeners.items()):
            if listener.missed and (error := listener.error) is not None:
                if error.errno == errno.EMFILE and self._listening >= self._most_listeners:
                    continue
                self._open(listener)
                if listener.error is None or listener.error.errno != error.errno:
                    changed.append(key)
        return changed

    async def _newly_named(self) -> list[ListenerKey]:
        """Find out who has the ports that are taken, unless that is known and still true; which were asked for."""
        unknown = [
            key
            for key, listener in self._listeners.items()
            if listener.taken and (listener.holder is None or listener.holder.is_gone())
        ]
        if unknown:
            for key, holder in (await trio.to_thread.run_sync(port_holders, unknown)).items():
                if (listener := self._listeners.get(key)) is not None:
                    listener.holder = holder
        return unknown

    # ------------------------------------------------------------------ the table

    def _update_states(self, sources: Iterable[Source]) -> None:
        """Bring the lines of `sources` up to date; those that are no longer decided about go."""
        for source in sources:
            decision = self._plan.decisions.get(source)
            if decision is not None:
                self._update_state(source, decision)
            elif (gone := self._forwards.pop(source, None)) is not None:
                self._unserved.discard(source)
                self._changed(gone, False)

    def _update_state(self, source: Source, decision: Decision) -> None:
        state, reason = self._state(source, decision)
        hosts = tuple(key.host for key in decision.listeners if self._is_shown(key))
        forward = self._forwards.get(source)
        if forward is None:
            forward = self._forwards[source] = Forward(
                protocol=source.protocol,
                guest=_guest_end(source),
                host=hosts,
                state=state,
                reason=reason,
                rule=decision.rule,
                since=time.time(),
                kind=ForwardKind(source.kind.value) if isinstance(source, Port) else ForwardKind.STATIC,
                owner=self._owners.get(source) if isinstance(source, Port) else None,
            )
        elif (forward.state, forward.reason, forward.host, forward.rule) == (state, reason, hosts, decision.rule):
            return
        else:
            if forward.state is not state:
                forward.since = time.time()
            forward.state, forward.reason, forward.host, forward.rule = state, reason, hosts, decision.rule
        self._changed(forward, True)

    def _is_shown(self, key: ListenerKey) -> bool:
        listener = self._listeners.get(key)
        return listener is None or listener.shown

    def _state(self, source: Source, decision: Decision) -> tuple[ForwardState, str]:
        if decision.rival is not None:
            return ForwardState.CONFLICT, decision.reason
        if not decision.listeners:
            return ForwardState.IGNORED, decision.reason
        shown = [self._listeners[key] for key in decision.listeners if self._listeners[key].shown]
        if missed := [listener for listener in shown if listener.missed]:
            state, reason = missed[0].trouble()
            whole = len(missed) == len(shown)
            return (state, reason) if whole else (ForwardState.LISTENING, f"only partly: {reason}")
        if not self._ready.is_set() and self._distrust:
            return ForwardState.FAILED, self._distrust
        if not self._ready.is_set():
            return ForwardState.STALLED, "the guest agent is away: this heals by itself when it is back"
        if isinstance(source, StandingForward) and (missing := self._missing(source)):
            how = f"wait up to {source.wait:g} s for it" if source.wait else "are reset"
            return ForwardState.LISTENING, f"{missing}: connections {how}"
        return ForwardState.LISTENING, ""

    def _missing(self, source: StandingForward) -> str:
        """What is known to be missing in the guest."""
        if isinstance(source.guest, Endpoint):
            return "no program in the guest has the port yet"
        return f"no program in the guest served {source.guest} when last tried" if source in self._unserved else ""


def _guest_end(source: Source) -> GuestEnd:
    return Endpoint(source.address, source.number) if isinstance(source, Port) else source.guest


def _order(forward: Forward) -> tuple[object, ...]:
    """Ports by their numbers, then sockets by their paths."""
    if isinstance(forward.guest, SocketFile):
        return 1, 0, "", forward.guest.path
    return 0, forward.guest.port, forward.protocol, forward.guest.address, forward.kind


def _most_listeners() -> int:
    """How many listeners there may be, so that half of the descriptors are left for all else."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
