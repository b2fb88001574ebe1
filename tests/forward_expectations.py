"""The rules of forward_expectations.yaml, and what the comments beside them expect of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hostagent.config.loader import load_config
from hostagent.config.rules import SocketVariables, rule_set
from hostagent.forward_rules import RuleSet
from hostagent.forwards import Endpoint, HostEnd, SocketFile
from protocol.ports import Port, Protocol

FILE = Path(__file__).with_suffix(".yaml")

_LINE = re.compile(
    r"^ *# (?P<word>forward|ignore): (?P<protocol>tcp|udp) (?P<guest>\S+)(?: -> (?P<host>\S+))?$", re.MULTILINE
)
_ENDPOINT = re.compile(r"\[?([0-9a-f.:]+?)\]?:([0-9]+)")


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line: where a port of the guest is found on the host, or that it is not."""

    port: Port
    host: HostEnd | None

    def __str__(self) -> str:
        return f"{self.port.protocol} {Endpoint(self.port.address, self.port.number)} -> {self.host or 'ignored'}"


def rules(folder: Path) -> RuleSet:
    """The rules, for an instance in `folder`."""
    variables = SocketVariables(host={"Dir": str(folder)}, guest={})
    return rule_set(load_config(FILE.read_bytes(), FILE.name).config, variables)


def expectations(folder: Path) -> list[Expectation]:
    """Every line; raises `AssertionError` for one that says nothing."""
    text = FILE.read_text(encoding="utf-8")
    found = [_expectation(match, folder) for match in _LINE.finditer(text)]
    assert len(found) == len(re.findall(r"# (?:forward|ignore):", text)), "a line has a slip in it"
    assert len({one.port for one in found}) == len(found), "a port is expected twice"
    return found


def _expectation(match: re.Match[str], folder: Path) -> Expectation:
    guest = _endpoint(match["guest"])
    port = Port(Protocol(match["protocol"]), guest.address, guest.port)
    if match["word"] == "ignore":
        assert match["host"] is None
        return Expectation(port, None)
    host: HostEnd = SocketFile(str(folder / match["host"])) if "/" in match["host"] else _endpoint(match["host"])
    return Expectation(port, host)


def _endpoint(text: str) -> Endpoint:
    match = _ENDPOINT.fullmatch(text)
    assert match, text
    return Endpoint(match[1], int(match[2]))
