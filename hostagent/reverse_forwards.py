"""Reverse forwards: something on the host, reachable at an address or path in the guest.

Each is a wish for listeners in the guest (`protocol.listener_messages`). The wishes live here, the listeners in one
generation: every generation begins by asking for all of them again, so they heal as the guest agent does. What the
guest could not do is tried again every `RETRY` seconds, with a new number, so that an answer always belongs to the last
question.

The guest can open a stream that names a number which is listening; where that leads is looked up here. More than
`most_connections` at once are refused, so that a guest cannot use up the host agent's descriptors.

A guest's loopback is two addresses: a forward to one is asked for at both, and missed by nobody where the guest has no
IPv6. One that is taken at the second only is reported as "only partly".
"""

from __future__ import annotations

import errno
import itertools
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.forward_rules import StandingForward
from hostagent.forwards import Endpoint, Forward, ForwardKind, ForwardState, GuestEnd, SocketFile
from hostagent.reverse_connection import ReverseConnection
from hostagent.reverse_flows import ReverseFlow, ReverseFlows
from protocol.codec import check_sendable
from protocol.errors import LocalProtocolError
from protocol.listener_messages import Listen, ListenFailed, Listening, UnixAddress, Unlisten
from protocol.messages import Hello
from protocol.ports import Protocol
from protocol.stream_messages import ListenerTarget, SocketTarget, StreamKind
from protocol.streams import Stream

CAPABILITY = "listen"
RETRY = 0.5
"""Seconds until something that the guest could not do is asked for again."""

ASKED_AT_ONCE = 64
"""Listeners that are asked for again at once: thousands that cannot be had must cost little."""

OWNER_ONLY = 0o600
"""Mode of a socket's file in the guest: who may use it is the guest's user and root."""

_TWINS = {"127.0.0.1": "::1", "::1": "127.0.0.1", "0.0.0.0": "::", "::": "0.0.0.0"}  # noqa: S104
_NO_SUCH_FAMILY = {"EADDRNOTAVAIL", "EAFNOSUPPORT"}
_AWAY = "the guest agent is away: this heals by itself when it is back"
_ASKED = "the guest agent was asked and has not answered yet"


@dataclass(slots=True, eq=False)
class _Listener:
    """One address in the guest, and how far it has come."""

    place: GuestEnd
    number: int = 0
    """Of the last LISTEN; 0 when there is none."""
    listening: bool = False
    error: str = ""
    """The errno name of the last answer, when that was no."""
    reason: str = ""

    @property
    def missed(self) -> bool:
        """Whether it is not there and should be: all but the IPv6 half in a guest without IPv6."""
        return bool(self.error) and not (self.error in _NO_SUCH_FAMILY and _is_version_6(self.place))

    @property
    def shown(self) -> bool:
        """Whether there is such an address, as far as that goes unsaid."""
        return not self.error or self.missed


@dataclass(slots=True, eq=False)
class _Reverse:
    """One forward, with its listeners in the guest."""

    wish: StandingForward
    forward: Forward
    listeners: list[_Listener]
    flows: ReverseFlows | None = None
    unserved: bool = False
    """Whether nobody on the host served the last client."""


Key = tuple[Protocol, GuestEnd]


class ReverseForwards:
    """The reverse forwards of one instance. `changed` hears of each whose state changed, and of those that went."""

    def __init__(
        self,
        channel: Channel,
        wishes: Iterable[StandingForward],
        changed: Callable[[Forward, bool], None],
        *,
        user: str = "",
        most_connections: int,
    ) -> None:
        self._channel = channel
        self._changed = changed
        self._user = user
        self._most_connections = most_connections
        self._numbers = itertools.count(1)
        self._by_key: dict[Key, _Reverse] = {}
        self._by_number: dict[int, tuple[_Reverse, _Listener]] = {}
        self._failed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._alive = 0
        self._trouble = _AWAY
        self._first_wishes = tuple(wishes)
        channel.accept = self._accept

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self.change(self._first_wishes)
            task_status.started()
            await self._retry()

    @property
    def forwards(self) -> list[Forward]:
        """All of them, in the order of their rules."""
        return [reverse.forward for reverse in self._by_key.values()]

    # ------------------------------------------------------------------ wishes

    def change(self, wishes: Iterable[StandingForward]) -> None:
        """Make the reverse ones of `wishes` the forwards.

        What stays is not touched, and connections of what goes go on.
        """
        wanted: dict[Key, StandingForward] = {}
        for wish in wishes:
            if wish.reverse:
                wanted.setdefault((wish.protocol, wish.guest), wish)
        for key, reverse in list(self._by_key.items()):
            if key not in wanted or wanted[key].host != reverse.wish.host:
                self._remove(key)
        for key, wish in wanted.items():
            known = self._by_key.get(key)
            if known is None:
                self._add(key, wish)
            elif known.forward.rule != wish.rule:
                known.wish, known.forward.rule = wish, wish.rule
                self._changed(known.forward, True)
        self._channel.flush()

    def _add(self, key: Key, wish: StandingForward) -> None:
        forward = Forward(
            protocol=wish.protocol,
            guest=wish.guest,
            host=(wish.host,),
            state=ForwardState.STALLED,
            reason=self._trouble,
            rule=wish.rule,
            since=time.time(),
            kind=ForwardKind.REVERSE,
        )
        reverse = _Reverse(wish, forward, [_Listener(place) for place in _places(wish.guest)])
        if wish.protocol is Protocol.UDP and isinstance(wish.host, Endpoint):
            reverse.flows = ReverseFlows(self._channel, wish.host, forward.traffic)
        self._by_key[key] = reverse
        self._changed(forward, True)
        if not self._trouble:
            self._ask_for(reverse)

    def _remove(self, key: Key) -> None:
        reverse = self._by_key.pop(key)
        for listener in reverse.listeners:
            if self._by_number.pop(listener.number, None) is not None and self._channel.running:
                self._channel.connection.send(Unlisten(listener.number))
        if reverse.flows is not None:
            reverse.flows.end_all("the forward was removed")
        self._changed(reverse.forward, False)

    # ------------------------------------------------------------------ the guest

    def start(self, peer: Hello) -> None:
        """A generation began: ask for everything."""
        self._trouble = ""
        if CAPABILITY not in peer.capabilities:
            self._trouble = (
                f"guest agent {peer.agent_version} knows no reverse forwards: `hostagent down` and `hostagent up` "
                "install the agent that does"
            )
        for reverse in self._by_key.values():
            if self._trouble:
                self._update(reverse)
            else:
                self._ask_for(reverse)
        self._channel.flush()

    def stall(self) -> None:
        """The guest agent is away, and its listeners with it."""
        self._trouble = _AWAY
        self._by_number.clear()
        for reverse in self._by_key.values():
            reverse.listeners = [_Listener(place) for place in _places(reverse.wish.guest)]
            self._update(reverse)

    def answer(self, message: Listening | ListenFailed) -> None:
        """What became of a LISTEN. An answer to one that was taken back since means nothing."""
        if (known := self._by_number.get(message.listener)) is None:
            return
        reverse, listener = known
        if isinstance(message, Listening):
            listener.listening, listener.error, listener.reason = True, "", ""
        else:
            del self._by_number[message.listener]
            listener.listening, listener.error, listener.reason = False, message.error or "EIO", message.reason
            if listener.missed:
                self._failed.set()
        self._update(reverse)

    def _ask_for(self, reverse: _Reverse) -> None:
        for listener in reverse.listeners:
            self._ask(reverse, listener)
        self._update(reverse)

    def _ask(self, reverse: _Reverse, listener: _Listener) -> None:
        listener.number = next(self._numbers)
        message = self._listen_message(listener.number, reverse.wish.protocol, listener.place)
        try:
            check_sendable(message)
            self._channel.connection.send(message)
        except LocalProtocolError as exc:
            listener.error, listener.reason = "EINVAL", str(exc)
            return
        self._by_number[listener.number] = reverse, listener

    def _listen_message(self, number: int, protocol: Protocol, place: GuestEnd) -> Listen:
        if isinstance(place, SocketFile):
            return Listen(number, StreamKind.UNIX, UnixAddress(place.path, OWNER_ONLY, self._user))
        return Listen(number, StreamKind(protocol.value), SocketTarget(place.address, place.port))

    async def _retry(self) -> None:
        """Ask again for what could not be had, for as long as it is wanted."""
        while True:
            await self._failed.wait()
            self._failed = trio.Event()
            await trio.sleep(RETRY)
            if not self._trouble:
                self._ask_again()

    def _ask_again(self) -> None:
        """Ask for those of what could not be had that were asked for longest ago, and come back for the others."""
        missed = [
            (reverse, listener)
            for reverse in self._by_key.values()
            for listener in reverse.listeners
            if listener.missed and listener.number not in self._by_number
        ]
        missed.sort(key=lambda pair: pair[1].number)
        for reverse, listener in missed[:ASKED_AT_ONCE]:
            self._ask(reverse, listener)
        if len(missed) > ASKED_AT_ONCE:
            self._failed.set()
        self._channel.flush()

    # ------------------------------------------------------------------ the guest's clients

    def _accept(self, stream: Stream) -> StreamHandler | None:
        """Whoever serves a stream that the guest opened; None when it was refused."""
        target = stream.target
        if not isinstance(target, ListenerTarget):
            return None
        known = self._by_number.get(target.listener)
        connection = self._channel.connection
        if known is None or self._nursery is None:
            connection.refuse_stream(stream, "ECONNREFUSED", "there is no such listener any more")
            return None
        reverse, _ = known
        if stream.kind is not _kind(reverse.wish):
            return None
        if self._alive >= self._most_connections:
            connection.refuse_stream(stream, "EMFILE", "too many connections from the guest")
            return None
        try:
            handler = self._begin(reverse, stream)
        except OSError as exc:
            error = errno.errorcode.get(exc.errno or errno.EIO, "EIO")
            connection.refuse_stream(stream, error, exc.strerror or error)
            return None
        self._alive += 1
        self._nursery.start_soon(self._serve, handler)
        return handler

    def _begin(self, reverse: _Reverse, stream: Stream) -> ReverseConnection | ReverseFlow:
        if reverse.flows is not None:
            return reverse.flows.begin(stream)
        return ReverseConnection(
            self._channel,
            stream,
            reverse.wish.host,
            reverse.forward.traffic,
            lambda served: self._note(reverse, served),
        )

    async def _serve(self, handler: ReverseConnection | ReverseFlow) -> None:
        try:
            await handler.run()
        finally:
            self._alive -= 1

    # ------------------------------------------------------------------ the table

    def _note(self, reverse: _Reverse, served: bool) -> None:
        """What a client found. Its forward may have gone meanwhile."""
        reverse.unserved = not served
        if self._by_key.get((reverse.wish.protocol, reverse.wish.guest)) is reverse:
            self._update(reverse)

    def _update(self, reverse: _Reverse) -> None:
        forward = reverse.forward
        state, reason = self._state(reverse)
        if (forward.state, forward.reason) == (state, reason):
            return
        if forward.state is not state:
            forward.since = time.time()
        forward.state, forward.reason = state, reason
        self._changed(forward, True)

    def _state(self, reverse: _Reverse) -> tuple[ForwardState, str]:
        if self._trouble:
            return (ForwardState.STALLED if self._trouble is _AWAY else ForwardState.FAILED), self._trouble
        shown = [listener for listener in reverse.listeners if listener.shown]
        troubles = [listener for listener in shown if listener.error]
        if not troubles:
            if all(listener.listening for listener in shown):
                return ForwardState.LISTENING, _missing(reverse)
            return ForwardState.STALLED, _ASKED
        state, reason = _trouble(troubles[0])
        if any(listener.listening for listener in shown):
            return ForwardState.LISTENING, f"only partly: {reason}"
        return state, reason


def most_connections() -> int:
    """How many connections the guest may have to the host: a quarter of the descriptors."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4


def _places(guest: GuestEnd) -> list[GuestEnd]:
    """Where to listen for `guest`: loopback is two addresses, and so is the wildcard."""
    if isinstance(guest, SocketFile) or (twin := _TWINS.get(guest.address)) is None:
        return [guest]
    return [guest, Endpoint(twin, guest.port)]


def _is_version_6(place: GuestEnd) -> bool:
    return isinstance(place, Endpoint) and place.address in ("::1", "::")


def _kind(wish: StandingForward) -> StreamKind:
    return StreamKind.UNIX if isinstance(wish.guest, SocketFile) else StreamKind(wish.protocol.value)


def _missing(reverse: _Reverse) -> str:
    """What is known to be missing on the host."""
    return (
        f"nobody on the host served {reverse.wish.host} when last tried: connections are reset"
        if reverse.unserved
        else ""
    )


def _trouble(listener: _Listener) -> tuple[ForwardState, str]:
    """State and reason, with the next step, of a listener that the guest could not have."""
    said = f": {listener.reason}" if listener.reason else ""
    match listener.error:
        case "EADDRINUSE":
            return ForwardState.CONFLICT, (
                f"in the guest {listener.place} is taken{said}: this is there as soon as that has gone"
            )
        case "EACCES" | "EPERM":
            return ForwardState.DENIED, f"the guest does not allow {listener.place}{said}"
        case "ENOENT":
            return ForwardState.FAILED, f"in the guest {said.removeprefix(': ')}; tried again every {RETRY} s"
        case _:
            return ForwardState.FAILED, (
                f"{listener.place} in the guest: {listener.error}{said}; tried again every {RETRY} s"
            )
