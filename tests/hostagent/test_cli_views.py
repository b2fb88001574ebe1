from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent import cli_views
from hostagent.api_shapes import CheckShape, EndpointShape, Instance, OwnerShape, PortShape
from hostagent.control_api import port_shape
from hostagent.forwards import ForwardKind, ForwardState, SocketFile
from tests.fakes.running_instance import web_forward

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egro\r\n\0"


def instance(**changes: Any) -> Instance:
    shape = Instance(
        name="box",
        state="running",
        pid=1,
        arch="x86_64",
        cpus=2,
        memory=2 << 30,
        disk=20 << 30,
        directory="/h/box",
        error="",
    )
    return cast("Instance", {**shape, **changes})


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KiB"),
        (1_024, "1 KiB"),
        (3_400_000, "3.2 MiB"),
        (2 << 30, "2 GiB"),
        (120 << 30, "120 GiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_sizes(amount: int, text: str) -> None:
    assert cli_views.size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (75, "75 s"), (720, "12 min"), (10_800, "3 h"), (1e6, "12 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert cli_views.duration(seconds) == text


def test_ports_as_a_table() -> None:
    ports = [port_shape(web_forward()), port_shape(web_forward(ForwardState.CONFLICT, "taken", 80))]
    assert cli_views.port_lines(ports) == [
        "STATE      HOST            GUEST         PROTOCOL  PROCESS        CONNECTIONS  TO GUEST  TO HOST  REASON",
        "listening  localhost:8080  0.0.0.0:8080  tcp       python3 (812)  1 of 12      1.2 KiB   3.2 MiB",
        "conflict   localhost:80    0.0.0.0:80    tcp       python3 (812)  1 of 12      1.2 KiB   3.2 MiB  taken",
    ]


def test_what_is_ignored_comes_last() -> None:
    states = (ForwardState.IGNORED, ForwardState.LISTENING, ForwardState.IGNORED, ForwardState.FAILED)
    ports = [port_shape(web_forward(state, "", 80 + at)) for at, state in enumerate(states)]
    rows = [line.split()[:2] for line in cli_views.port_lines(ports)[1:]]
    assert [state for state, _ in rows] == ["listening", "failed", "ignored", "ignored"]


def test_a_reverse_forward_says_so() -> None:
    forward = replace(
        web_forward(),
        guest=SocketFile("/run/agent.sock"),
        host=(SocketFile("/home/ada/.agent.sock"),),
        kind=ForwardKind.REVERSE,
        owner=None,
    )
    shape = port_shape(forward)
    assert cli_views.port_lines([shape])[1].split()[:5] == [
        "listening", "/home/ada/.agent.sock", "/run/agent.sock", "unix", "reverse",
    ]  # fmt: skip
    assert cli_views.port_change_lines([], [shape]) == ["listening  unix /home/ada/.agent.sock <- /run/agent.sock"]


def test_a_reason_that_does_not_fit_is_wrapped_below() -> None:
    reason = "port 80 is taken by 'nginx' (pid 3): stop it, or forward the guest port to another host port"
    lines = cli_views.port_lines([port_shape(web_forward(ForwardState.CONFLICT, reason))], width=60)
    assert " ".join(line.strip().removeprefix("-> ") for line in lines[2:]) == reason
    assert all(len(line) <= 60 for line in lines[2:])


def test_a_reason_that_fits_is_beside() -> None:
    lines = cli_views.port_lines([port_shape(web_forward(ForwardState.DENIED, "no"))], width=200)
    assert lines[1].endswith("  no")


def test_colour_is_around_our_own_words_and_keeps_the_columns() -> None:
    ports = [port_shape(web_forward()), port_shape(web_forward(ForwardState.IGNORED))]
    with_colour = cli_views.port_lines(ports, colour=True)
    assert "\x1b[32mlistening\x1b[0m  localhost" in with_colour[1]
    bare = [line.replace("\x1b[32m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in with_colour]
    assert bare == cli_views.port_lines(ports)


def test_wide_characters_keep_the_columns() -> None:
    port = port_shape(web_forward())
    wide = PortShape(**{**port, "owner": OwnerShape(process="日本", pid=812, uid=0, unit="")})
    lines = cli_views.port_lines([port, wide])
    assert (
        lines[2].index("1 of 12")
        == lines[1].index("1 of 12") - len("日本") + (len("python3") - 4 - 3) + len("日本") - 2
    )


def test_a_port_that_a_rule_opens_names_the_rule() -> None:
    port = port_shape(web_forward())
    rules = [OwnerShape(process="iptables rule", pid=0, uid=0, unit=unit) for unit in ("", "cbr/0123456789ab")]
    unnamed, named = (cli_views.port_lines([PortShape(**{**port, "owner": rule})])[1] for rule in rules)
    assert "  iptables rule  " in unnamed
    assert "  iptables rule (cbr/0123456789ab)  " in named


def test_a_port_of_a_container_names_the_container() -> None:
    port = port_shape(web_forward())
    proxy = OwnerShape(process="docker-proxy", pid=812, uid=0, unit="docker/web")
    assert "  docker-proxy (docker/web)  " in cli_views.port_lines([PortShape(**{**port, "owner": proxy})])[1]


def test_a_containers_port_at_several_addresses_is_one_row_where_it_leads_to_one_place() -> None:
    port = port_shape(web_forward())

    def published(address: str, **different: object) -> PortShape:
        owner = OwnerShape(process="docker-proxy", pid=len(address), uid=0, unit="docker/web")
        guest = EndpointShape(address=address, port=8080)
        return PortShape(**{**port, "guest": guest, "owner": owner, **different})  # type: ignore[typeddict-item]

    four, six = published("0.0.0.0"), published("::")
    (_, row) = cli_views.port_lines([four, six])
    assert "localhost:8080  0.0.0.0:8080, [::]:8080  tcp" in row
    assert "  2 of 24  " in row
    server = published("::", owner=port["owner"])
    stalled = published("::", state="stalled")
    elsewhere = published("::", host=[EndpointShape(address="127.0.0.1", port=9)])
    nowhere = published("::", host=[])
    for other in (server, stalled, elsewhere, nowhere, published("::", protocol="udp")):
        assert len(cli_views.port_lines([four, other])) == 3
    assert len(cli_views.port_lines([nowhere, nowhere, server, server])) == 5


def test_other_endpoints_are_spelled_out() -> None:
    port = port_shape(web_forward())
    several = PortShape(
        **{**port, "host": [EndpointShape(address="::", port=1), EndpointShape(address="10.0.0.1", port=2)]}
    )
    nowhere = PortShape(**{**port, "host": [], "owner": None})
    lines = cli_views.port_lines([several, nowhere])
    assert "[::]:1, 10.0.0.1:2" in lines[1]
    assert lines[2].split()[1] == "-"


def test_refusals_and_drops_are_shown() -> None:
    forward = web_forward()
    forward.traffic.connections_refused = 3
    forward.traffic.datagrams_dropped = 4
    assert "1 of 12, 3 refused, 4 dropped" in cli_views.port_lines([port_shape(forward)])[1]


def test_changes_of_ports() -> None:
    web, other = port_shape(web_forward()), port_shape(web_forward(port=9090))
    moved = port_shape(web_forward(ForwardState.STALLED, "the guest agent is away"))
    busy = PortShape(**{**web, "traffic": {**web["traffic"], "connections": 9}})
    assert cli_views.port_change_lines([web], [busy]) == []
    assert cli_views.port_change_lines([web], [moved, other]) == [
        "stalled  tcp localhost:8080 -> 0.0.0.0:8080  python3 (812)  (the guest agent is away)",
        "listening  tcp localhost:9090 -> 0.0.0.0:9090  python3 (812)",
    ]
    assert cli_views.port_change_lines([web], []) == ["gone  tcp localhost:8080 -> 0.0.0.0:8080  python3 (812)"]


def test_instances_as_a_table() -> None:
    broken = instance(name="old", state="broken", arch="", cpus=0, memory=0, disk=0, error="its plan cannot be read")
    assert cli_views.instance_lines([instance(), broken]) == [
        "NAME  STATE    ARCH    CPUS  MEMORY  DISK    REASON",
        "box   running  x86_64  2     2 GiB   20 GiB",
        "old   broken   -       -     -       -       its plan cannot be read",
    ]


def test_nothing_is_said_in_words() -> None:
    assert "hostagent up" in cli_views.instance_lines([])[0]
    assert cli_views.port_lines([]) == ["no ports are open in the guest"]


def test_checks_with_their_next_steps() -> None:
    checks = [
        CheckShape(name="QEMU", state="ok", reason="/usr/bin/qemu", next_step=""),
        CheckShape(name="disk space", state="problem", reason="full", next_step="free some"),
    ]
    assert cli_views.check_lines(checks) == [
        "ok       QEMU        /usr/bin/qemu",
        "problem  disk space  full",
        "                     -> free some",
    ]


SOURCES = [
    {"name": "tracefs", "live": False, "reason": "locked down", "wakeups": 0},
    {"name": "sock_diag", "live": True, "reason": "", "wakeups": 4},
]


def test_a_status_says_everything_in_it() -> None:
    document = {
        "state": "running",
        "since": 1_000.0,
        "memory": 1 << 30,
        "error": "",
        "guest_agent": {"present": True, "sources": SOURCES},
        "capabilities": ["tcp", "udp"],
    }
    lines = cli_views.status_lines(document, 1_060.0)
    assert lines[0] == "state: running"
    assert lines[1].startswith("since: 19")
    assert lines[1].endswith("(60 s ago)")
    assert lines[2:] == [
        "memory: 1 GiB",
        "guest agent:",
        "  present: yes",
        "  sources:",
        "    - tracefs: live no, reason locked down, wakeups 0",
        "    - sock_diag: live yes, wakeups 4",
        "capabilities: tcp, udp",
    ]


def test_an_event_as_a_line() -> None:
    event: Any = {"id": 3, "time": 0.0, "kind": "phase", "phase": "hello", "seconds": 1.23456, "reason": "a b"}
    assert cli_views.event_line(event).endswith("  phase    phase=hello seconds=1.235 a b")


@pytest.mark.parametrize(("missed", "words"), [(3, "missed=3 events before"), (None, "there was no such id yet")])
def test_events_that_are_gone_are_said_in_words(missed: int | None, words: str) -> None:
    event: Any = {"id": 3, "time": 0.0, "kind": "lost", "missed": missed}
    assert f"  lost     {words}" in cli_views.event_line(event)


def test_moments_that_no_calendar_has_are_no_error() -> None:
    assert cli_views.moment(float("inf")) == "(no time)"


def test_escape_sequences_are_removed_and_the_rest_is_shown() -> None:
    assert cli_views.plain("\x1b[0;32m  OK  \x1b[0m\x1b]0;title\x07 done\x07") == "  OK   done\\x07"


@given(st.text())
def test_plain_text_is_printable(text: str) -> None:
    assert cli_views.plain(text).isprintable()


def test_no_view_lets_a_guests_escape_sequence_through() -> None:
    forward = web_forward(ForwardState.CONFLICT, HOSTILE)
    port = PortShape(**{**port_shape(forward), "owner": OwnerShape(process=HOSTILE, pid=1, uid=0, unit=HOSTILE)})
    event: Any = {"id": 1, "time": 0.0, "kind": HOSTILE, HOSTILE: HOSTILE, "message": HOSTILE, "list": [HOSTILE]}
    status = {HOSTILE: HOSTILE, "a": {HOSTILE: [HOSTILE]}, "b": [{HOSTILE: HOSTILE}], "state": HOSTILE}
    lines = [
        *cli_views.port_lines([port]),
        *cli_views.port_lines([port], width=60),
        *cli_views.port_change_lines([], [port]),
        *cli_views.instance_lines([instance(name=HOSTILE, state=HOSTILE, error=HOSTILE)]),
        *cli_views.check_lines([CheckShape(name="x", state="ok", reason=HOSTILE, next_step=HOSTILE)], width=60),
        *cli_views.status_lines(status, 0.0),
        cli_views.event_line(event),
    ]
    assert all(line.isprintable() for line in lines)
