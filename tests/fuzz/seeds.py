"""What honest peers, kernels and users say: the inputs that the fuzzer begins with."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from guestagent import netlink
from guestagent.audit_records import GET, NETFILTER_CFG
from guestagent.socket_table import BY_FAMILY
from protocol.codec import encode
from protocol.framing import FLUSH, FrameEncoder, Preamble, PreambleKind
from protocol.listener_messages import Listen, ListenFailed, Listening, UnixAddress, Unlisten
from protocol.messages import (
    Clock,
    Hello,
    Message,
    Ping,
    Pong,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    Status,
    StatusRequest,
)
from protocol.ports import Port, PortKind, PortOwner, Protocol, WakeupSource
from protocol.stream_messages import (
    CommandTarget,
    Credit,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    ListenerTarget,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
    TerminalSize,
    UnixTarget,
)
from tests.guestagent.nat_rule_sets import captures

WEB = Port(Protocol.TCP, "0.0.0.0", 8_080)
NAMES = Port(Protocol.UDP, "fd00::53", 53, PortKind.NAT)
COMMAND = CommandTarget(("sh", "-c", "true"), (("LANG", "C"),), "ada", "/home/ada", TerminalSize(24, 80))
HELLO = Hello(1, 1, frozenset({"tcp", "udp", "exec"}), "0.1.0", "5d1f", "Debian 12")

FROM_GUEST: tuple[Message, ...] = (
    *(HELLO, Ping(7), Pong(7), Opened(1, 65_536), Opened(3, 0), Refused(3, "ECONNREFUSED", "nobody listens")),
    *(Data(1, b"hello"), Data(3, b""), ErrorOutput(3, b"oh"), Exit(3, 0, None), Exit(3, None, "KILL")),
    *(EndOfData(1), Reset(1, "gone"), Credit(1, 65_536), PortsSnapshot((WEB, NAMES), last=True)),
    *(PortsChanged((WEB,), (NAMES,)), PortOwners(((WEB, PortOwner("nginx", 812, 33, "nginx.service")),))),
    Status((WakeupSource("audit", False, "compiled out", 0),), (("misses", 0),)),
    *(Listening(1), ListenFailed(2, "EADDRINUSE", "taken by sshd")),
    Open(2, StreamKind.TCP, ListenerTarget(1), 65_536),
)
FROM_HOST: tuple[Message, ...] = (
    *(HELLO, Open(1, StreamKind.TCP, SocketTarget("127.0.0.1", 80), 65_536), Open(3, StreamKind.EXEC, COMMAND, 65_536)),
    *(Open(5, StreamKind.UNIX, UnixTarget("/run/docker.sock"), 1), Open(7, StreamKind.UDP, SocketTarget("::1", 53), 0)),
    *(Data(1, b"GET /"), EndOfData(1), Credit(1, 100), Signal(3, "INT"), Resize(3, TerminalSize(50, 132))),
    *(Reset(1, "the client left"), StatusRequest(), Clock(1_700_000_000_000_000_000), PowerOff(reboot=True), Ping(1)),
    *(Listen(1, StreamKind.TCP, SocketTarget("0.0.0.0", 3_128)), Unlisten(1)),
    Listen(2, StreamKind.UNIX, UnixAddress("/run/agent.sock", 0o600, "ada")),
)

BODIES = [encode(message) for message in (*FROM_GUEST, *FROM_HOST)]

SEED = 0x91267E8A
"""The generation of the test vectors of SPEC.md."""


def _framed(bodies: list[bytes]) -> bytes:
    encoder = FrameEncoder(SEED)
    return b"".join(encoder.encode(body) for body in bodies)


FRAMES = [
    _framed(BODIES[:5]),
    _framed([b"\x92\x01\x07", b"x" * 300]) + Preamble(PreambleKind.SYNC, bytes(range(16))).encode(),
    Preamble(PreambleKind.ANSWER, bytes(range(16)), bytes(range(16, 32))).encode() + FLUSH[:64],
    _framed([b"a"]) + Preamble(PreambleKind.LOST, bytes(16)).encode(),
]


def in_parts(bodies: list[bytes]) -> bytes:
    """Several bodies as one input of the fuzzer: each behind its length."""
    return b"".join(len(body).to_bytes(2, "big") + body for body in bodies)


def conversation(messages: tuple[Message, ...]) -> list[bytes]:
    """Conversations of growing length."""
    bodies = [encode(message) for message in messages]
    return [in_parts(bodies[:count]) for count in range(1, len(bodies) + 1, 2)] + [in_parts([bodies[0], bodies[-1]])]


def _diag(family: int, state: int, port: int, address: bytes) -> bytes:
    identity = struct.pack("!HH", port, 0) + address.ljust(16, b"\0") + bytes(16) + bytes(4) + b"\1" * 8
    return struct.pack("=BBBB", family, state, 0, 0) + identity + struct.pack("=IIIII", 0, 0, 0, 1_000, 4_711)


DIAG = [
    netlink.pack(BY_FAMILY, 2, 7, _diag(2, 10, 80, b"\x7f\0\0\1"))
    + netlink.pack(BY_FAMILY, 2, 7, _diag(10, 10, 443, bytes(15) + b"\1")),
    netlink.pack(BY_FAMILY, 2, 7, _diag(10, 7, 53, bytes(10) + b"\xff\xff\x7f\0\0\1"))
    + netlink.pack(netlink.DONE, 2, 7, bytes(4)),
    netlink.pack(netlink.ERROR, 0, 7, struct.pack("=i", -16) + bytes(16)),
]
AUDIT = [
    netlink.pack(GET, 0, 7, struct.pack("=IIIIIIIIII", 1, 1, 1, 0, 0, 64, 0, 0, 0, 0)),
    netlink.pack(netlink.ERROR, 0, 7, struct.pack("=i", 0) + bytes(16)),
    netlink.pack(
        NETFILTER_CFG, 0, 0, b"audit(1700000000.000:1): table=nat:3 family=2 entries=1 op=nft_register_rule\0"
    ),
]
_CAPTURES = captures()
RULES = _CAPTURES["by_hand.nft by nft"]
TABLE = _CAPTURES["by_hand.iptables by iptables-legacy"].tables[0]
NFTABLES = [
    b"".join(netlink.pack(kind, 2, 7, payload + bytes(-len(payload) % 4)) for kind, payload in rules.messages)
    for rules in _CAPTURES.values()
    if rules.messages
]
IPTABLES = [rules.tables[0].entries for rules in _CAPTURES.values() if rules.tables and not rules.tables[0].ipv6]
PROC_NET = [
    b"""  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10
   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:0 0 0 0 4712
"""
]
CGROUPS = [
    b"0::/system.slice/nginx.service\n",
    b"12:memory:/docker/" + b"a" * 64 + b"\n0::/user.slice/user-1000.slice/session-2.scope\n",
]
ENGINES = [
    (Path(__file__).parent.parent / "guestagent" / "engines" / "docker-20.10.http").read_bytes(),
    b'HTTP/1.0 200 OK\r\nContent-Length: 60\r\n\r\n[{"Id": "0123456789ab", "Names": ["/web"], "Ports": [], "x": 1}]',
    b'{"container_id":"0123456789ab","container_ip_v4":"10.88.0.2","container_ip_v6":null,"dns_server_ips":[]}',
    b'{"Namespace":"default","ID":"0123456789ab","Networks":{"bridge":{}},"ExtraHosts":null,"Name":"web"}',
]
QMP = [
    b"""{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": []}}
{"return": {}, "id": 0}
{"return": {"status": "running"}, "id": 1}
{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true}}
""",
    b'{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": 1}\r\n',
]
CONFIGS = [
    b"""cpus: 2
memory: 2GiB
images:
  - build: debian-12
portForwards:
  - guestPort: 80
    hostPort: 8080
  - guestPortRange: [9000, 9009]
    ignore: true
""",
    b"""images: &a
- location: "https://a.b/x"
  arch: x86_64
  digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"
env: {A: b}
portForwards:
- {guestSocket: /run/x.sock, hostSocket: /tmp/x.sock, proto: tcp}
- {guestIP: any, static: true, guestPort: 0x50, hostIP: 0.0.0.0}
""",
    b"""'cpus': !!int '2'
? [a]
: *b
mounts:
- location: '~'
  writable: yes
""",
]
EXEC = [
    json.dumps(text).encode()
    for text in (
        {
            "type": "start",
            "arguments": ["ls"],
            "environment": {"A": "b"},
            "user": "",
            "directory": "/",
            "terminal": None,
        },
        *({"type": "resize", "rows": 24, "columns": 80}, {"type": "signal", "name": "INT"}, {"type": "end-of-input"}),
        *({"type": "started", "credit": 5}, {"type": "exit", "status": 7}),
        {"type": "error", "message": "no", "hint": "so"},
    )
] + [b"\0input", b"\1output", b"\2error output"]
