"""Keeps the host's listeners and the table of forwards in step with what the guest says.

The guest's ports and the rules give a plan (`hostagent.forward_rules`); the difference between the plan and the
listeners that are there is carried out: those that nobody wants are closed, missing ones are opened. A listener that
cannot be had is tried again every `RETRY` seconds until it can. There is no event for that without root: the kernel
tells only CAP_NET_ADMIN about the end of other processes' sockets.

A change is carried out at once, unless the one before was a moment ago: then it waits, together with all that follow,
for as long as that one took. So a guest that changes ports without end gets half of a CPU, and the API and the streams
the other half. Listeners take at most half of the descriptors that this process may have, so that clients find some.

While the guest agent is away the listeners stay and their forwards are `stalled`; a guest that booted anew has none
of its old ports, so everything goes at once.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Collection, Iterable

import trio

from hostagent.channel import Channel
from hostagent.forward_rules import Decision, ListenerKey, Plan, RuleSet, plan
from hostagent.forwards import Endpoint, Forward, ForwardKind, ForwardState, Traffic
from hostagent.port_holder import PortHolder, port_holders
from hostagent.stream_socket import listen
from hostagent.tcp_listener import accept_connections
from hostagent.udp_listener import UdpListener
from protocol.limits import MAX_PORTS
from protocol.ports import Port, PortOwner, Protocol
from protocol.stream_messages import SocketTarget

RETRY = 0.5

LONGEST_REST = 0.25
"""Seconds that changes may have to wait for others that took long."""

_NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_TWINS = {"::1", "::"}
"""Addresses of which a forward has the IPv4 one as well: missed by nobody where the host has no IPv6."""


class _Listener:
    """One wanted host listener: its socket's task, or why there is none."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.error: OSError | None = None
        self.holder: PortHolder | None = None

    def close(self) -> None:
        """Free the port at once; its task notices."""
        if self.sock is not None:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class Forwarder:
    """The forwards of one instance. `changed` hears of every forward whose state changed, and of those that went."""

    def __init__(self, channel: Channel, rules: RuleSet, changed: Callable[[Forward, bool], None]) -> None:
        self._channel = channel
        self._rules = dataclasses.replace(rules, rules=tuple(rule for rule in rules.rules if not rule.host_socket))
        self._changed = changed
        self._ports: set[Port] = set()
        self._owners: dict[Port, PortOwner] = {}
        self._forwards: dict[Port, Forward] = {}
        self._listeners: dict[ListenerKey, _Listener] = {}
        self._plan = Plan({}, {})
        self._idle_traffic = Traffic()
        self._ready = trio.Event()
        self._failed = trio.Event()
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
            task_status.started()
            await self._retry()

    @property
    def forwards(self) -> list[Forward]:
        """All forwards, in the order of their guest ports."""
        return [self._forwards[port] for port in sorted(self._forwards, key=lambda p: (p.number, p))]

    # ------------------------------------------------------------------ what the guest says

    def replace(self, ports: Iterable[Port]) -> None:
        """The guest's whole list of ports."""
        self._ports = set(ports)
        self._owners = {port: owner for port, owner in self._owners.items() if port in self._ports}
        first = not self._ready.is_set()
        self._ready.set()
        self._apply_soon(at_once=first)

    def change(self, opened: Collection[Port], closed: Collection[Port]) -> bool:
        """Ports that opened and closed; False when there are more than `MAX_PORTS`, and new ones were left out."""
        self._ports.difference_update(closed)
        for port in closed:
            self._name_owner(port, None)
        new = set(opened) - self._ports
        fits = len(self._ports) + len(new) <= MAX_PORTS
        if fits:
            self._ports |= new
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

    def stall(self) -> None:
        """The guest agent is away."""
        self._ready = trio.Event()
        self._update_states()

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
        """Make the listeners and the table what the ports and rules ask for."""
        began = trio.current_time()
        self._plan = plan(self._ports, self._rules)
        for key in self._listeners.keys() - self._plan.targets.keys():
            self._close(key)
        for key in self._plan.targets:
            if key not in self._listeners:
                self._listeners[key] = _Listener()
                self._open(key)
        for port in self._forwards.keys() - self._plan.decisions.keys():
            self._changed(self._forwards.pop(port), False)
        self._update_states()
        ended = trio.current_time()
        self._rested = ended + min(ended - began, LONGEST_REST)

    def _open(self, key: ListenerKey) -> None:
        listener = self._listeners[key]
        try:
            listener.sock = self._listen(key)
        except OSError as exc:
            listener.error = exc
            if not _is_missed_by_nobody(key, listener):
                self._failed.set()
            return
        listener.error = None
        listener.holder = None
        self._listening += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, key, listener.sock)

    def _listen(self, key: ListenerKey) -> socket.socket:
        if self._listening >= self._most_listeners:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return listen(key)

    def _close(self, key: ListenerKey) -> None:
        listener = self._listeners.pop(key)
        if listener.sock is not None:
            listener.close()
            self._listening -= 1

    async def _serve(self, key: ListenerKey, sock: socket.socket) -> None:
        """Serve one listener until its socket is closed."""
        assert self._connections is not None
        with sock:
            if key.protocol is Protocol.TCP:
                await accept_connections(
                    sock,
                    self._channel,
                    lambda: self._target(key),
                    lambda: self._traffic(key),
                    self._connections,
                    lambda: self._ready,
                )
            else:
                await UdpListener(sock, self._channel, lambda: self._target(key), lambda: self._traffic(key)).run()

    def _target(self, key: ListenerKey) -> SocketTarget:
        port = self._plan.targets[key]
        return SocketTarget(port.address, port.number)

    def _traffic(self, key: ListenerKey) -> Traffic:
        port = self._plan.targets.get(key)
        forward = None if port is None else self._forwards.get(port)
        return self._idle_traffic if forward is None else forward.traffic

    async def _retry(self) -> None:
        """Try again what could not be had, for as long as it is wanted."""
        while True:
            await self._failed.wait()
            self._failed = trio.Event()
            if await self._name_holders():
                self._update_states()
            await trio.sleep(RETRY)
            if self._open_missing():
                self._update_states()

    def _open_missing(self) -> bool:
        """Try every listener again that could not be had; whether that changed anything to be shown."""
        changed = False
        for key, listener in list(self._listeners.items()):
            error = listener.error
            if error is not None and not _is_missed_by_nobody(key, listener):
                self._open(key)
                changed |= listener.error is None or listener.error.errno != error.errno
        return changed

    async def _name_holders(self) -> bool:
        """Find out who has the ports that are taken, unless that is known and still true; whether there was any."""
        taken = {
            key: listener
            for key, listener in self._listeners.items()
            if listener.error is not None and listener.error.errno == errno.EADDRINUSE
        }
        unknown = [key for key, listener in taken.items() if listener.holder is None or listener.holder.is_gone()]
        if unknown:
            for key, holder in (await trio.to_thread.run_sync(port_holders, unknown)).items():
                taken[key].holder = holder
        return bool(unknown)

    # ------------------------------------------------------------------ the table

    def _update_states(self) -> None:
        for port, decision in self._plan.decisions.items():
            state, reason = self._state(decision)
            hosts = tuple(key.host for key in decision.listeners if self._shown(key))
            forward = self._forwards.get(port)
            if forward is None:
                forward = self._forwards[port] = Forward(
                    protocol=port.protocol,
                    guest=Endpoint(port.address, port.number),
                    host=hosts,
                    state=state,
                    reason=reason,
                    rule=decision.rule,
                    since=time.time(),
                    kind=ForwardKind(port.kind.value),
                    owner=self._owners.get(port),
                )
            elif (forward.state, forward.reason, forward.host) == (state, reason, hosts):
                continue
            else:
                if forward.state is not state:
                    forward.since = time.time()
                forward.state, forward.reason, forward.host, forward.rule = state, reason, hosts, decision.rule
            self._changed(forward, True)

    def _shown(self, key: ListenerKey) -> bool:
        """Whether the address exists on this host, as far as that goes unsaid."""
        listener = self._listeners.get(key)
        return listener is None or not _is_missed_by_nobody(key, listener)

    def _state(self, decision: Decision) -> tuple[ForwardState, str]:
        if decision.rival is not None:
            return ForwardState.CONFLICT, decision.reason
        if not decision.listeners:
            return ForwardState.IGNORED, decision.reason
        troubles = [
            (self._listeners[key], key)
            for key in decision.listeners
            if self._listeners[key].error is not None and self._shown(key)
        ]
        if troubles:
            whole = len(troubles) == sum(1 for key in decision.listeners if self._shown(key))
            state, reason = _trouble(*troubles[0])
            return (state, reason) if whole else (ForwardState.LISTENING, f"only partly: {reason}")
        if not self._ready.is_set():
            return ForwardState.STALLED, "the guest agent is away: this heals by itself when it is back"
        return ForwardState.LISTENING, ""


def _most_listeners() -> int:
    """How many listeners there may be, so that half of the descriptors are left for all else."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def _is_missed_by_nobody(key: ListenerKey, listener: _Listener) -> bool:
    """Whether this is the IPv6 half of a forward on a host without IPv6."""
    return listener.error is not None and listener.error.errno in _NO_IPV6 and _address(key) in _TWINS


def _address(key: ListenerKey) -> str:
    return key.host.address if isinstance(key.host, Endpoint) else ""


def _trouble(listener: _Listener, key: ListenerKey) -> tuple[ForwardState, str]:
    """State and reason of a listener that could not be opened."""
    exc = listener.error
    assert exc is not None
    match exc.errno:
        case errno.EADDRINUSE:
            holder = listener.holder.words if listener.holder else "another process"
            return ForwardState.CONFLICT, f"{key.host} is taken by {holder}: it is forwarded as soon as that ends"
        case errno.EACCES | errno.EPERM:
            number = key.host.port if isinstance(key.host, Endpoint) else 0
            return ForwardState.DENIED, (
                f"{key.host} is privileged: `sudo sysctl net.ipv4.ip_unprivileged_port_start={number}` allows "
                "it, or a rule with another hostPort"
            )
        case errno.EADDRNOTAVAIL:
            return ForwardState.FAILED, (
                f"this host has no address {_address(key)}: it is forwarded as soon as it has, or change hostIP"
            )
        case errno.EMFILE | errno.ENFILE:
            return ForwardState.FAILED, (
                "the host agent may not open more files: close ports in the guest, or raise the limit (`ulimit -n`) "
                "and start the instance again"
            )
        case _:
            return ForwardState.FAILED, f"{key.host}: {exc.strerror}; tried again every {RETRY} s"
