"""The ends of a forward as one types them: "8080", "3000-3009", "any:80", "[::1]:80", "0.0.0.0:53", "/run/docker.sock".

`localhost` is both loopback addresses, as `hostagent ports` shows them: what a rule means that names no address. Only
the shape is read here, into the keys of `portForwards`; what may stand there is for the schema to say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hostagent.errors import UserError

if TYPE_CHECKING:
    from hostagent.api_shapes import RuleRequest

_END = re.compile(
    r"(?:(?P<address>\[[^\[\]]+\]|[^:/\[\]]+):)?(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?|(?P<only>\[[^\[\]]+\]|any|localhost)"
)
_LOOPBACK = "localhost"
_AS_DOCKER = re.compile(  # HOST:GUEST/PROTOCOL
    r"(?:(?P<host>[0-9-]+):)?(?P<guest>[0-9-]+)(?:/(?P<protocol>tcp|udp))?"
)
_HINT = "write PORT, FIRST-LAST, ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or a socket's path with a / in it"


def rule_request(guest: str, host: str | None) -> RuleRequest:
    """The keys that say which guest end leads to which host end; raises `UserError`."""
    request = _keys(guest, "guest")
    if host is not None:
        request |= _keys(host, "host")
    return request


def _keys(text: str, side: str) -> RuleRequest:
    if (docker := _AS_DOCKER.fullmatch(text)) and (docker["host"] or docker["protocol"]):
        ends = " ".join(filter(None, (docker["guest"], docker["host"])))
        protocol = f" --proto {docker['protocol']}" if docker["protocol"] else ""
        hint = f"the guest's port comes first, and the protocol is an option: {ends}{protocol}"
        raise UserError(f"{text!r} is no end of a forward", hint)
    if "/" in text or (side == "host" and text.endswith(".sock")):
        return {f"{side}Socket": text}  # type: ignore[misc]  # mypy knows no computed keys
    if (match := _END.fullmatch(text)) is None:
        raise UserError(f"{text!r} is no end of a forward", _HINT)
    keys: dict[str, object] = {}
    address = match["address"] or match["only"]
    if address == "any" and side == "host":
        raise UserError("'any' is an address of the guest only", "0.0.0.0 is every address of the host")
    if address and address.lower() != _LOOPBACK:
        keys[f"{side}IP"] = address.strip("[]")
        if address == "0.0.0.0" and side == "guest":  # noqa: S104  (words, nothing is bound)
            keys["guestIPMustBeZero"] = True
    if match["last"]:
        keys[f"{side}PortRange"] = [int(match["first"]), int(match["last"])]
    elif match["first"]:
        keys[f"{side}Port"] = int(match["first"])
    return keys  # type: ignore[return-value]  # as above
