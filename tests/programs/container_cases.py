"""What is tried with every container engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.programs.case import Case, Program
from tests.programs.container_clients import hear, heard_everywhere, refused
from tests.programs.container_engine import Engine
from tests.programs.guest import LOOPBACKS, ProgramGuest

TCP, UDP = 7_080, 7_053
OTHER = 7_081
RANGE = range(7_100, 7_105)
LARGE = 8 << 20
BOTH = ((TCP, "tcp"), (UDP, "udp"))
PUBLISH_BOTH = f"--publish {TCP}:80 --publish {UDP}:53/udp"


def assert_both_answer(name: str) -> None:
    """The container is at both of its published ports, on both loopbacks."""
    for port, protocol in BOTH:
        assert heard_everywhere(port, protocol) == {name}


EngineTry = Callable[[Engine, ProgramGuest], None]
CASES: list[tuple[str, EngineTry, bool]] = []


def case(name: str, *, most_important: bool = False) -> Callable[[EngineTry], EngineTry]:
    """Makes a case for every engine of a function."""

    def add(run: EngineTry) -> EngineTry:
        CASES.append((name, run, most_important))
        return run

    return add


def add_cases(program: Program, engine: Engine, *, quick: bool) -> None:
    """Give `program` all of the cases; `quick`: the tests have the most important of them."""
    for name, run, most_important in CASES:
        program.cases.append(Case(name, partial(run, engine), quick and most_important))


@case(
    "a TCP and a UDP port are published: each listed once, with the container's name, and used",
    most_important=True,
)
def published(engine: Engine, guest: ProgramGuest) -> None:
    with engine.container(guest, "web", PUBLISH_BOTH):
        for port, protocol in BOTH:
            line = guest.listening(port, protocol)
            guest.note(f"{protocol}: {line['kind']} of {line['owner']['process']}")
            guest.belongs_to(f"{engine.name}/web", port, protocol)
            (row,) = guest.rows(port, protocol)
            assert f"{engine.name}/web" in row
        assert_both_answer("web")
        engine.ends(guest, "stop web", BOTH)
        assert refused(TCP)


@case("a container is stopped, started and restarted: its ports go and come with it")
def restarted(engine: Engine, guest: ProgramGuest) -> None:
    with engine.container(guest, "again", PUBLISH_BOTH):
        engine.ends(guest, "stop again", BOTH)
        for words in ("start again", "restart again"):
            engine.serve(guest, "again", words)
            for port, protocol in BOTH:
                guest.listening(port, protocol)
            assert_both_answer("again")
        engine.ends(guest, "kill again", BOTH)


@case("a port published at 127.0.0.1 alone, beside one at all addresses")
def loopback_only(engine: Engine, guest: ProgramGuest) -> None:
    with engine.container(guest, "local", f"--publish 127.0.0.1:{OTHER}:80 --publish {TCP}:80"):
        for port in (OTHER, TCP):
            guest.listening(port)
        addresses = {line["guest"]["address"] for line in guest.ports.listening(OTHER)}
        assert addresses == {"127.0.0.1"}
        assert heard_everywhere(OTHER) == heard_everywhere(TCP) == {"local"}
        engine.ends(guest, "stop local", [(OTHER, "tcp"), (TCP, "tcp")])


@case(f"a range of {len(RANGE)} ports, and one that the engine chooses")
def port_range(engine: Engine, guest: ProgramGuest) -> None:
    ports = f"{RANGE[0]}-{RANGE[-1]}"
    with engine.container(guest, "many", f"--publish {ports}:{ports} --publish 80", f"tcp:80 tcp:{ports}"):
        chosen = int(engine.ask(guest, "port many 80/tcp").splitlines()[0].rpartition(":")[2])
        for port in (*RANGE, chosen):
            guest.listening(port)
            assert heard_everywhere(port) == {"many"}
        guest.note(f"it chose {chosen}")
        engine.ends(guest, "stop many", [(port, "tcp") for port in (*RANGE, chosen)])


@case("two containers on a network of their own, each with its port")
def own_network(engine: Engine, guest: ProgramGuest) -> None:
    engine.ask(guest, "network create own")
    with engine.container(guest, "one", f"--network own --publish {TCP}:80"):
        with engine.container(guest, "two", f"--network own --publish {OTHER}:80"):
            for port, name in ((TCP, "one"), (OTHER, "two")):
                guest.listening(port)
                guest.belongs_to(f"{engine.name}/{name}", port)
                assert heard_everywhere(port) == {name}
            engine.ends(guest, "kill one", [(TCP, "tcp")])
            assert heard_everywhere(OTHER) == {"two"}
    engine.ask(guest, "network rm own")


@case("on the guest's own network: the port is the container's process's")
def host_network(engine: Engine, guest: ProgramGuest) -> None:
    with engine.container(guest, "direct", "--network host", f"tcp:{OTHER} udp:{UDP}"):
        for port, protocol in ((OTHER, "tcp"), (UDP, "udp")):
            guest.listening(port, protocol)
            guest.belongs_to(f"{engine.name}/direct", port, protocol)
            assert heard_everywhere(port, protocol) == {"direct"}
        engine.ends(guest, "kill direct", [(OTHER, "tcp"), (UDP, "udp")])


@case(f"{LARGE >> 20} MiB to a container and back, the client's end before the server's")
def large(engine: Engine, guest: ProgramGuest) -> None:
    with engine.container(guest, "echo", f"--publish {TCP}:80"):
        guest.listening(TCP)
        for host in LOOPBACKS:
            began = time.monotonic()
            assert hear(host, TCP, LARGE) == "echo"
            guest.note(f"{LARGE / 1e6 / (time.monotonic() - began):.1f} MB/s each way")
