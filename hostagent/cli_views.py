"""What the command line prints for people: documents in, lines of text out. Pure.

Nothing that the guest chose reaches a terminal unescaped: every text goes through `plain`. Colour is put around words
of our own only. Tables are aligned text, in colour or not; where the width is known, a reason that does not fit beside
its row is wrapped below it, and where it is not (a pipe, a file) every row is one line that `grep` can find.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from hostagent.config.mistakes import printable

if TYPE_CHECKING:
    from hostagent.api_shapes import (
        CheckShape,
        EndpointShape,
        EventShape,
        Instance,
        PortShape,
        RuleList,
        SocketShape,
        TrafficShape,
    )

_ESCAPE_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
"""Control sequences, operating system commands and other escapes (ECMA-48 sections 5.4 and 5.6)."""

_COLOURS: Final = {
    "listening": 32, "running": 32, "ok": 32, "done": 32,
    "conflict": 33, "stalled": 33, "starting": 33, "stopping": 33, "degraded": 33, "warning": 33,
    "denied": 31, "failed": 31, "broken": 31, "problem": 31,
    "ignored": 2, "stopped": 2,
}  # fmt: skip
"""SGR parameters by state (ECMA-48 section 8.3.117)."""

_LOST: Final = "events before the next one are gone; `hostagent logs` may still have them"
_ANOTHER_LIFE: Final = "there was no such id yet in this instance's life; what is kept follows"

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_LOOPBACK: Final = ("127.0.0.1", "::1")
_LEAST_WRAPPED: Final = 40
"""Columns that a wrapped reason gets even on a narrow terminal."""


def plain(text: object) -> str:
    """The text without escape sequences, and with everything else that is not printable escaped."""
    return printable(_ESCAPE_SEQUENCE.sub("", str(text)))


def size(amount: float) -> str:
    """A number of bytes with three digits: `0 B`, `3.4 MiB`, `120 GiB`."""
    power = 0
    while amount >= 1000 and power < len(_UNITS) - 1:
        amount /= 1024
        power += 1
    digits = 0 if not power or amount >= 10 or amount == int(amount) else 1
    return f"{amount:.{digits}f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """A duration as one says it: `0.4 s`, `75 s`, `12 min`, `3 h`, `2 days`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, factor, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def coloured(word: str, colour: bool) -> str:
    """A state's name in its colour."""
    return f"\x1b[{_COLOURS[word]}m{word}\x1b[0m" if colour and word in _COLOURS else word


def port_lines(ports: Sequence[PortShape], *, width: int | None = None, colour: bool = False) -> list[str]:
    """The table of forwards; `width` is the terminal's, None for a file."""
    if not ports:
        return ["no ports are open in the guest"]
    # What is not forwarded by intention comes last: it must not push what is off a small screen.
    shown = sorted(_by_container(ports), key=lambda row: row[0]["state"] == "ignored")
    rows = [
        [
            port["state"],
            _endpoints(port["host"]),
            ", ".join(_endpoint(one["guest"]) for one in same),
            f"{port['protocol']} reverse" if port["kind"] == "reverse" else port["protocol"],
            _process(port),
            _connections(traffic),
            size(traffic["bytes_to_guest"]),
            size(traffic["bytes_to_host"]),
        ]
        for port, same, traffic in shown
    ]
    headers = ["STATE", "HOST", "GUEST", "PROTOCOL", "PROCESS", "CONNECTIONS", "TO GUEST", "TO HOST"]
    return _table(headers, rows, [port["reason"] for port, _, _ in shown], width, colour)


def port_change_lines(old: Sequence[PortShape], new: Sequence[PortShape]) -> list[str]:
    """A line for each port that came, went or changed its state; counters do not count."""
    before, after = _by_port(old), _by_port(new)
    lines = [f"gone  {_port_words(port)}" for key, port in before.items() if key not in after]
    for key, port in after.items():
        earlier = before.get(key)
        if earlier is None or (earlier["state"], earlier["reason"]) != (port["state"], port["reason"]):
            lines.append(f"{plain(port['state'])}  {_port_words(port)}" + _because(port["reason"]))
    return lines


def instance_lines(instances: Sequence[Instance], *, width: int | None = None, colour: bool = False) -> list[str]:
    """The table of instances."""
    if not instances:
        return ["there is no instance yet: `hostagent up` makes one"]
    rows = [
        [
            instance["name"],
            instance["state"],
            instance["arch"] or "-",
            str(instance["cpus"] or "-"),
            size(instance["memory"]) if instance["memory"] else "-",
            size(instance["disk"]) if instance["disk"] else "-",
        ]
        for instance in instances
    ]
    headers = ["NAME", "STATE", "ARCH", "CPUS", "MEMORY", "DISK"]
    return _table(headers, rows, [instance["error"] for instance in instances], width, colour)


def check_lines(checks: Sequence[CheckShape], *, width: int | None = None, colour: bool = False) -> list[str]:
    """What `doctor` found, with the next steps below."""
    longest = max((len(check["name"]) for check in checks), default=0)
    lines = []
    for check in checks:
        state = coloured(check["state"], colour) + " " * (len("problem") - len(check["state"]))
        lines.append(f"{state}  {check['name']:{longest}}  {plain(check['reason'])}")
        lines += _wrapped(check["next_step"], longest + 11, width, "-> ")
    return lines


def status_lines(document: Mapping[str, Any], now: float, *, colour: bool = False) -> list[str]:
    """A status as an indented list of everything that it says."""
    return list(_members(document, "", now, colour))


def event_line(event: EventShape) -> str:
    """One event as `time kind key=value …`, its message last."""
    fields = {key: value for key, value in event.items() if key not in ("id", "time", "kind")}
    words = [f"{plain(key)}={_value(value)}" for key, value in fields.items() if _wanted(key, value)]
    words += [plain(fields[key]) for key in ("message", "reason", "detail", "traceback") if fields.get(key)]
    if event["kind"] == "lost":
        words.append(_LOST if fields.get("missed") else _ANOTHER_LIFE)
    return f"{moment(event['time'])}  {plain(event['kind']):7}  {' '.join(words)}".rstrip()


def moment(unix_time: float) -> str:
    """Date and time of day here, to the millisecond."""
    try:
        return datetime.fromtimestamp(unix_time).astimezone().isoformat(" ", "milliseconds")[:23]
    except (ValueError, OverflowError, OSError):
        return "(no time)"


def rule_lines(rules: RuleList, *, width: int | None) -> list[str]:
    """The rules in the order in which they are asked."""
    rows = [(rule["name"] or rule["origin"], str(rule["ports"]), plain(rule["text"])) for rule in rules["rules"]]
    widths = [max(map(cells, column)) for column in zip(("RULE", "PORTS", ""), *rows, strict=True)]
    lines = [_row(("RULE", "PORTS", "WHAT IT SAYS"), [widths[0], widths[1], 0])]
    for name, ports, text in rows:
        begin = _row((name, ports), widths[:2]) + "  "
        wrapped = _wrapped(text, 0, None if width is None else width - cells(begin), "") or [""]
        lines += [(begin if number == 0 else " " * cells(begin)) + line for number, line in enumerate(wrapped)]
    return lines


def _wanted(key: str, value: object) -> bool:
    return value not in ("", None, []) and key not in ("message", "reason", "detail", "traceback")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ",".join(plain(item) for item in value)
    text = plain(value)
    return repr(text) if " " in text else text


def _members(value: Mapping[str, Any], indent: str, now: float, colour: bool) -> Iterator[str]:
    for key, member in value.items():
        label = f"{indent}{plain(key).replace('_', ' ')}:"
        if isinstance(member, Mapping) and member:
            yield label
            yield from _members(member, indent + "  ", now, colour)
        elif isinstance(member, list) and member and isinstance(member[0], Mapping):
            yield label
            yield from (f"{indent}  - {_item(item, now)}" for item in member)
        elif member not in (None, "", [], {}):
            yield f"{label} {_scalar(key, member, now, colour)}"


def _item(item: Mapping[str, Any], now: float) -> str:
    """One of several in a row, led by its name, without what is empty."""
    words = [f"{plain(k)} {_scalar(k, v, now, False)}" for k, v in item.items() if k != "name" and v not in ("", None)]
    return (f"{plain(item['name'])}: " if "name" in item else "") + ", ".join(words)


def _scalar(key: str, value: object, now: float, colour: bool) -> str:
    if key == "state":
        return coloured(plain(value), colour)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key == "since":
            return f"{moment(value)} ({duration(max(0.0, now - value))} ago)"
        if key in ("memory", "disk") or key.endswith("_bytes") or key.startswith("bytes_"):
            return size(value)
    return ", ".join(map(plain, value)) if isinstance(value, list) else plain(value)


def _endpoint(endpoint: EndpointShape | SocketShape) -> str:
    if "path" in endpoint:
        return endpoint["path"]
    address = endpoint["address"]
    return f"[{address}]:{endpoint['port']}" if ":" in address else f"{address}:{endpoint['port']}"


def _endpoints(endpoints: Sequence[EndpointShape | SocketShape]) -> str:
    """Where a forward listens, both loopback addresses as the one name that stands for them."""
    ports = [endpoint for endpoint in endpoints if "port" in endpoint]
    if len({port["port"] for port in ports}) == 1 and tuple(port["address"] for port in ports) == _LOOPBACK:
        return f"localhost:{ports[0]['port']}"
    return ", ".join(map(_endpoint, endpoints)) or "-"


def _process(port: PortShape) -> str:
    owner = port["owner"]
    if not owner:
        return "-"
    if not owner["pid"]:  # no process, but a rule; its unit is what it says of itself, or a container
        return f"{owner['process']} ({owner['unit']})" if owner["unit"] else owner["process"]
    if container := _container(port):  # whose name says more than the number of an engine's process
        return f"{owner['process']} ({container})"
    return f"{owner['process']} ({owner['pid']})"


def _by_container(ports: Sequence[PortShape]) -> list[tuple[PortShape, list[PortShape], TrafficShape]]:
    """The rows of the table: the first port of each, all of them, and the sum of their traffic.

    A port is a row, unless a container has it at several addresses (engines publish at 0.0.0.0 and ::, by a process
    each), they lead to one place on the host and are in one state.
    """
    rows: dict[object, list[PortShape]] = {}
    for number, port in enumerate(ports):
        container = _container(port)
        place = (container, port["protocol"], _endpoints(port["host"]), port["state"], port["reason"])
        rows.setdefault(place if container and port["host"] else number, []).append(port)
    return [(same[0], same, _sum([port["traffic"] for port in same])) for same in rows.values()]


def _container(port: PortShape) -> str:
    """The container of an owner that is a process; a rule's unit may be any text."""
    owner = port["owner"]
    return owner["unit"] if owner and owner["pid"] and "/" in owner["unit"] else ""


def _sum(counters: Sequence[TrafficShape]) -> TrafficShape:
    total = dict.fromkeys(counters[0], 0)
    for traffic in counters:
        for name, count in traffic.items():
            total[name] += cast("int", count)
    return cast("TrafficShape", total)


def _connections(traffic: TrafficShape) -> str:
    refused = f", {traffic['connections_refused']} refused" if traffic["connections_refused"] else ""
    dropped = f", {traffic['datagrams_dropped']} dropped" if traffic["datagrams_dropped"] else ""
    return f"{traffic['connections']} of {traffic['connections_total']}{refused}{dropped}"


def _by_port(ports: Sequence[PortShape]) -> dict[tuple[str, str, str], PortShape]:
    return {(port["protocol"], _endpoint(port["guest"]), port["kind"]): port for port in ports}


def _port_words(port: PortShape) -> str:
    owner = f"  {_process(port)}" if port["owner"] else ""
    arrow = "<-" if port["kind"] == "reverse" else "->"
    return plain(f"{port['protocol']} {_endpoints(port['host'])} {arrow} {_endpoint(port['guest'])}{owner}")


def _because(reason: str) -> str:
    return f"  ({plain(reason)})" if reason else ""


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], reasons: Sequence[str], width: int | None, colour: bool
) -> list[str]:
    """Aligned columns; the column STATE in colour, and each row's reason behind or below it."""
    table = [list(headers), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(cells(row[column]) for row in table) for column in range(len(headers))]
    state = headers.index("STATE")
    lines = [_row(table[0], widths) + ("  REASON" if any(reasons) and width is None else "")]
    for row, reason in zip(table[1:], reasons, strict=True):
        whole = _row(row, widths)
        line = _row(row, widths, state) if colour else whole
        beside = f"{line}{' ' * (sum(widths) + 2 * len(widths) - cells(whole))}{plain(reason)}"
        if not reason:
            lines.append(line.rstrip())
        elif width is None or sum(widths) + 2 * len(widths) + cells(plain(reason)) <= width:
            lines.append(beside)
        else:
            lines += [line.rstrip(), *_wrapped(reason, 2, width, "-> ")]
    return lines


def _row(row: Sequence[str], widths: Sequence[int], coloured_column: int = -1) -> str:
    padded = [
        coloured(cell, column == coloured_column) + " " * (width - cells(cell))
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded)


def _wrapped(text: str, indent: int, width: int | None, mark: str) -> list[str]:
    """The text in lines of at most `width` columns, behind `mark`; one line where the width is unknown."""
    if not text:
        return []
    first, later = " " * indent + mark, " " * (indent + len(mark))
    if width is None:
        return [first + plain(text)]
    limit = max(width, indent + _LEAST_WRAPPED)
    return textwrap.wrap(plain(text), limit, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def cells(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
