"""Rule sets as people and engines write them, with the ports that they open, loaded into the real kernel or captured.

Each file of rule_sets/ says in its comments what is expected of it:

    # port: PROTOCOL ADDRESS PORT -> TARGET-ADDRESS TARGET-PORT (UNIT)
    # skipped: WHAT WAS NOT UNDERSTOOD

Those of iptables are loaded by both of its kinds. The captures are what a kernel answered after that; make them anew
with `python -m tests.guestagent.nat_rule_sets` (as root).
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from guestagent.nat_contents import Interpreter, RawRules, RawTable
from guestagent.nat_ports import Dial, NatPorts, OwnAddress, PortKey
from guestagent.nat_reader import NatReader
from protocol.ports import Protocol
from tests.guestagent.network_namespace import network_namespace

FOLDER = Path(__file__).with_name("rule_sets")
CAPTURES = FOLDER / "captures.json"

LOADERS = {
    ".nft": {"nft": ["nft", "--file", "-"]},
    ".iptables": {"iptables-nft": ["iptables-nft-restore"], "iptables-legacy": ["iptables-legacy-restore"]},
    ".ip6tables": {"ip6tables-nft": ["ip6tables-nft-restore"], "ip6tables-legacy": ["ip6tables-legacy-restore"]},
}

ADDRESSES = (
    ("docker0", "172.17.0.1", 16),
    ("cni0", "10.88.0.1", 16),
    ("eth0", "192.168.5.15", 24),
    ("eth0", "fd00:5::15", 64),
)
"""The interfaces that the rule sets speak of."""

_PORT = re.compile(r"^# port: (tcp|udp) (\S+) (\d+) -> (\S+) (\d+)(?: \((.*)\))?$", re.MULTILINE)
_SKIPPED = re.compile(r"^# skipped: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rule set and the tool that loads it."""

    file: Path
    tool: str

    def __str__(self) -> str:
        return f"{self.file.name} by {self.tool}"

    def load(self) -> None:
        """Into this network namespace."""
        command = LOADERS[self.file.suffix][self.tool]
        subprocess.run(command, input=self.file.read_bytes(), check=True)


RULE_SETS = [
    Loaded(file, tool)
    for file in sorted(FOLDER.iterdir())
    if file.suffix in LOADERS
    for tool in LOADERS[file.suffix]
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """What a rule set's comments say."""

    dials: dict[PortKey, Dial]
    units: dict[PortKey, str]
    skipped: set[str]


def expected(rules: Loaded) -> Expected:
    """Out of the file's comments."""
    text = rules.file.read_text("utf-8")
    found = _PORT.findall(text)
    keys: list[PortKey] = [(Protocol(protocol), address, int(number)) for protocol, address, number, *_ in found]
    return Expected(
        {key: (line[3], int(line[4])) for key, line in zip(keys, found, strict=True)},
        {key: line[5] for key, line in zip(keys, found, strict=True)},
        set(_SKIPPED.findall(text)),
    )


def interpret(raw: RawRules, interpreter: Interpreter | None = None) -> NatPorts:
    """The ports, without pauses."""
    *_, last = (interpreter or Interpreter()).read(raw)
    assert last is not None
    return last


def read_rules(reader: NatReader | None = None) -> RawRules:
    """The rules of this network namespace."""
    reader = reader or NatReader()
    with reader.prepared() as sockets:
        return reader.read_blocking(sockets)


@contextlib.contextmanager
def guest_namespace() -> Iterator[None]:
    """A network namespace with `ADDRESSES`."""
    with network_namespace(), IPRoute() as route:
        for name in dict.fromkeys(interface for interface, _, _ in ADDRESSES):
            route.link("add", ifname=name, kind="bridge")
            route.link("set", ifname=name, state="up")
        for interface, address, prefix in ADDRESSES:
            (index,) = route.link_lookup(ifname=interface)
            route.addr("add", index=index, address=address, prefixlen=prefix)
        yield


def captures() -> dict[str, RawRules]:
    """What a kernel answered, by the rule set's name."""
    return {name: _unpack(packed) for name, packed in json.loads(CAPTURES.read_text("ascii")).items()}


def _pack(raw: RawRules) -> str:
    fields = {
        "generation": raw.generation,
        "messages": [[kind, payload.hex()] for kind, payload in raw.messages],
        "tables": [[table.ipv6, table.info.hex(), table.entries.hex()] for table in raw.tables],
        "addresses": [[one.interface, str(one.address)] for one in raw.addresses],
        "interfaces": raw.interfaces,
    }
    return base64.b64encode(zlib.compress(json.dumps(fields).encode(), 9)).decode()


def _unpack(packed: str) -> RawRules:
    fields = json.loads(zlib.decompress(base64.b64decode(packed)))
    return RawRules(
        fields["generation"],
        tuple((kind, bytes.fromhex(payload)) for kind, payload in fields["messages"]),
        tuple(RawTable(ipv6, bytes.fromhex(info), bytes.fromhex(rules)) for ipv6, info, rules in fields["tables"]),
        tuple(OwnAddress(name, ipaddress.ip_address(address)) for name, address in fields["addresses"]),
        tuple((index, name) for index, name in fields["interfaces"]),
    )


def main() -> None:
    """Capture anew what the kernel of this machine answers."""
    found = {}
    for rules in RULE_SETS:
        with guest_namespace():
            rules.load()
            found[str(rules)] = _pack(read_rules())
    CAPTURES.write_text(json.dumps(found, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
