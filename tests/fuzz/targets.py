"""What is fuzzed: each target takes bytes, and either understands them or raises what its module documents.

A target returns an outcome: a few words that tell how far the input got. Anything but the documented error leaves it,
and is a finding. What must hold of everything understood is asserted here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from guestagent import netlink
from guestagent.audit_records import parse_reply
from guestagent.container_questions import ContainerList, question_about
from guestagent.engine_answers import body_untrusted, containers_untrusted, name_untrusted, published_untrusted
from guestagent.nat_contents import RawRules
from guestagent.nat_rules import RulesTooComplexError
from guestagent.netlink import KernelDataError
from guestagent.port_owner import container_unit, unit_of
from guestagent.socket_table import DiagRecords, PortTable, parse_destroyed, parse_diag, parse_proc_net
from hostagent import exec_frames
from hostagent.config.loader import HostDefaults, load_config
from hostagent.config.mistakes import ConfigError
from hostagent.qemu.qmp import QmpConnection, State
from protocol.codec import decode_untrusted, encode
from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Role
from protocol.errors import RemoteProtocolError
from protocol.framing import FrameDecoder, FrameEncoder, Preamble, PreambleKind, generation_seed
from protocol.limits import MAX_BODY
from protocol.ports import Port, PortOwner, Protocol
from protocol.stream_messages import SocketTarget, StreamKind
from tests.fuzz import seeds
from tests.guestagent.nat_rule_sets import interpret


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    name: str
    seeds: Sequence[bytes]
    run: Callable[[bytes], str]


_VARYING = re.compile(r"b['\"].*|'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|\d+")


def _refused(exc: Exception) -> str:
    return "refused: " + _VARYING.sub("#", str(exc))[:60]


def _framing(data: bytes) -> str:
    decoder = FrameDecoder()
    decoder.begin(seeds.SEED)
    outcome: list[str] = []
    for at in range(0, len(data), 97):
        decoder.receive_data(data[at : at + 97])
        while True:
            try:
                outcome += [type(item).__name__ for item in decoder.items_untrusted()]
                break
            except RemoteProtocolError as exc:
                outcome.append(_refused(exc))
    return ", ".join(sorted(set(outcome)))


def _message(data: bytes) -> str:
    try:
        message = decode_untrusted(data)
    except RemoteProtocolError as exc:
        return _refused(exc)
    assert decode_untrusted(encode(message)) == message
    return type(message).__name__


def _parts(data: bytes) -> Iterable[bytes]:
    """Bodies that stand behind their lengths; at least the ends of frames are always right."""
    while data:
        size = int.from_bytes(data[:2], "big") % MAX_BODY
        yield data[2 : 2 + size] or b"\0"
        data = data[2 + size :]


class _Peer:
    """The other end of a connection, whose frames are right whatever they say."""

    def __init__(self, role: Role) -> None:
        markers = iter(range(1, 1_000))
        self.connection = Connection(role, seeds.HELLO, random=lambda size: bytes([next(markers) % 256]) * size)
        self.outcome: set[str] = set()
        self._role = role
        self._encoder = FrameEncoder(0)

    def begin(self) -> None:
        """A new generation, as far as the markers go."""
        self.connection.connected(0.0)
        marker = b"p" * 16
        if self._role is Role.HOST:
            preamble = next(item for item in _heard(self.connection.data_to_send()) if isinstance(item, Preamble))
            answer = Preamble(PreambleKind.ANSWER, marker, preamble.marker)
            self._take(self.connection.receive_data(answer.encode(), 0.0))
            self._encoder = FrameEncoder(generation_seed(preamble.marker, marker))
        else:
            self.connection.data_to_send()
            self._take(self.connection.receive_data(Preamble(PreambleKind.SYNC, marker).encode(), 0.0))
            preamble = next(item for item in _heard(self.connection.data_to_send()) if isinstance(item, Preamble))
            self._encoder = FrameEncoder(generation_seed(marker, preamble.marker))

    def say(self, body: bytes) -> None:
        """One body; what it makes the connection say is read."""
        self._take(self.connection.receive_data(self._encoder.encode(body), 0.0))
        while self.connection.data_to_send():
            pass

    def _take(self, events: list[Event]) -> None:
        for event in events:
            ended = isinstance(event, GenerationEnded)
            self.outcome.add(f"ended: {_VARYING.sub('#', event.reason)[:80]}" if ended else type(event).__name__)  # type: ignore[union-attr]


def _heard(data: bytes) -> Iterable[bytes | Preamble]:
    decoder = FrameDecoder()
    decoder.receive_data(data)
    return decoder.items_untrusted()


def _connection(role: Role) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        peer = _Peer(role)
        peer.begin()
        for number, body in enumerate(_parts(data)):
            peer.say(body)
            if number == 0 and peer.connection.running:
                peer.connection.open_stream(StreamKind.TCP, SocketTarget("127.0.0.1", 80))
                peer.connection.open_stream(StreamKind.EXEC, seeds.COMMAND)
                peer.connection.data_to_send()
        outcome = ", ".join(sorted(peer.outcome))
        peer.connection.disconnected("the input is over")
        assert not list(peer.connection.streams)
        peer.outcome.clear()
        peer.begin()
        peer.say(encode(seeds.HELLO))
        assert GenerationStarted.__name__ in peer.outcome, "it does not begin anew"
        return outcome

    return run


def _kernel(parse: Callable[[bytes], str]) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        try:
            return parse(data)
        except KernelDataError as exc:
            return _refused(exc)

    return run


def _netlink(data: bytes) -> str:
    messages = list(netlink.unpack(data))
    return f"{min(len(messages), 3)} messages, errno {bool([netlink.error_number(m) for m in messages if m.kind == 2])}"


def _sock_diag(data: bytes) -> str:
    parse_destroyed(data)
    part = parse_diag(data, 7)
    found = []
    table = PortTable()
    for protocol in Protocol:
        sockets = DiagRecords(protocol).sockets(frozenset(part.records))
        assert all(0 < socket.number <= 65_535 for socket in sockets)
        found.append(sorted({socket.state for socket in sockets}))
        table.update(protocol, sockets)
        table.update(protocol, frozenset())
    assert not table.ports
    return f"{found}, done {part.done}, interrupted {part.interrupted}, error {bool(part.errno)}"


def _proc_net(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return str([sorted({socket.state for socket in parse_proc_net(protocol, text)}) for protocol in Protocol])


def _audit(data: bytes) -> str:
    reply = parse_reply(data, 7)
    return f"{reply is not None and (bool(reply.errno), reply.status is not None)}"


def _translations(rules: RawRules) -> str:
    try:
        found = interpret(rules)
    except RulesTooComplexError as exc:
        return _refused(exc)
    assert all(0 < number <= 65_535 and 0 < dial[1] <= 65_535 for (_, _, number), dial in found.dials.items())
    assert all(owner.unit.isprintable() and len(owner.unit) <= 255 for owner in found.owners.values())
    return f"{min(len(found.dials), 3)} ports, {_VARYING.sub('#', ', '.join(sorted(found.skipped)))[:60]}"


def _nftables(data: bytes) -> str:
    messages = tuple((message.kind, message.payload) for message in netlink.unpack(data))
    return _translations(replace(seeds.RULES, messages=messages, tables=()))


def _iptables(data: bytes) -> str:
    return _translations(replace(seeds.RULES, messages=(), tables=(replace(seeds.TABLE, entries=data),)))


def _unit(data: bytes) -> str:
    unit = unit_of(data.decode("utf-8", "replace"))
    assert unit.isprintable()
    assert len(unit.encode()) <= 255
    return f"{unit.rpartition('.')[2][:10]}, {len(unit) // 64}"


def _engine(data: bytes) -> str:
    outcome = []
    for parse in (_containers, _address, _name):
        try:
            outcome.append(parse(data)[:40])
        except RemoteProtocolError as exc:
            outcome.append(_refused(exc))
    return min(outcome, key=lambda one: (one.startswith("refused"), one))


def _containers(data: bytes) -> str:
    containers = list(containers_untrusted(body_untrusted(data)))
    known = ContainerList(filter(None, containers))
    for owner in (PortOwner("dockerd", 1, 0), PortOwner("x", 1, 0, "docker/b560cac189f6"), PortOwner("rule", 0, 0)):
        question = question_about(Port(Protocol.TCP, "0.0.0.0", 8_080), owner, "172.17.0.2", frozenset())
        assert question
        unit = container_unit("docker", known.name_for(question))
        assert unit.isprintable()
        assert len(unit.encode()) <= 255
    return f"{min(len(containers), 3)} containers, {containers.count(None)} not understood"


def _address(data: bytes) -> str:
    return f"{len(published_untrusted(data)[1])} addresses"


def _name(data: bytes) -> str:
    return f"a name, {name_untrusted(data).isprintable()}"


def _qmp(data: bytes) -> str:
    connection = QmpConnection()
    outcome: list[str] = []
    try:
        for at in range(0, len(data), 16):
            outcome += [type(message).__name__ for message in connection.receive_data(data[at : at + 16])]
            if connection.state is State.NEGOTIATING and outcome == ["Greeting"]:
                connection.negotiate()
                outcome.append("negotiating")
            elif connection.state is State.READY and outcome[-1] == "Reply":
                connection.command("query-status")
    except RemoteProtocolError as exc:
        outcome.append(_refused(exc))
        assert connection.state is State.FAILED
    return ", ".join(sorted(set(outcome)))


def _shown(exc: ConfigError) -> str:
    assert f"{exc.message}{exc.hint}".replace("\n", "").isprintable()
    return _refused(exc)


def _config(data: bytes) -> str:
    try:
        loaded = load_config(data, "config.yaml", HostDefaults("x86_64", 2))
    except ConfigError as exc:
        return _shown(exc)
    return f"accepted, {min(len(loaded.warnings), 3)} warnings, {min(len(loaded.config.port_forwards), 3)} rules"


def _exec_frames(data: bytes) -> str:
    outcome = []
    forms: list[bytes | str] = [data, data.decode("utf-8", "replace")]
    for message in forms:
        for parse in (exec_frames.client_frame_untrusted, exec_frames.server_frame_untrusted):
            try:
                frame = parse(message)
            except RemoteProtocolError as exc:
                outcome.append(_refused(exc))
            else:
                assert parse(exec_frames.encode(frame)) == frame
                outcome.append(type(frame).__name__)
    return ", ".join(sorted(set(outcome)))  # names of frames before refusals


TARGETS: tuple[Target, ...] = (
    Target("framing", seeds.FRAMES, _framing),
    Target("messages", seeds.BODIES, _message),
    Target("conversation with a guest", seeds.conversation(seeds.FROM_GUEST), _connection(Role.HOST)),
    Target("conversation with a host", seeds.conversation(seeds.FROM_HOST), _connection(Role.GUEST)),
    Target("netlink", [*seeds.DIAG, *seeds.AUDIT], _kernel(_netlink)),
    Target("sock_diag", seeds.DIAG, _kernel(_sock_diag)),
    Target("proc_net", seeds.PROC_NET, _kernel(_proc_net)),
    Target("audit", seeds.AUDIT, _kernel(_audit)),
    Target("nftables", seeds.NFTABLES, _kernel(_nftables)),
    Target("iptables", seeds.IPTABLES, _kernel(_iptables)),
    Target("control groups", seeds.CGROUPS, _unit),
    Target("container engines", seeds.ENGINES, _engine),
    Target("QMP", seeds.QMP, _qmp),
    Target("configuration", seeds.CONFIGS, _config),
    Target("exec frames", seeds.EXEC, _exec_frames),
)
