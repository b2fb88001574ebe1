"""Reading the rules of the real kernel: complete or an error, and without changing anything."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from guestagent import nat_reader
from guestagent.nat_contents import RawRules
from guestagent.nat_reader import NatReader, PreparedSockets, RulesChangingError, RulesTooLargeError
from protocol.ports import Protocol
from tests.guestagent.nat_rule_sets import RULE_SETS, Loaded, expected, guest_namespace, interpret, read_rules
from tests.guestagent.network_namespace import network_namespace

(DOCKER,) = (rules for rules in RULE_SETS if str(rules) == "docker.iptables by iptables-nft")
LEGACY = [rules for rules in RULE_SETS if rules.tool.endswith("legacy")]


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with guest_namespace():
        yield


def test_where_there_are_no_rules_there_are_none_and_none_are_made() -> None:
    assert not interpret(read_rules()).dials
    assert Path("/proc/thread-self/net/ip_tables_names").read_text("ascii") == ""
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


def test_tables_that_translate_nothing_are_not_read() -> None:
    subprocess.run(["nft", "add table inet quiet; add set inet quiet blocked { type ipv4_addr; }"], check=True)
    assert read_rules().messages == ()


async def test_a_worker_thread_reads_the_namespace_of_its_caller() -> None:
    DOCKER.load()
    raw, cost = await NatReader().read()
    assert interpret(raw).dials == expected(DOCKER).dials
    assert cost >= 0


@pytest.mark.parametrize("rules", LEGACY, ids=str)
def test_both_kinds_of_iptables_are_read_together(rules: Loaded) -> None:
    rules.load()
    subprocess.run(
        ["nft", "table ip other { chain in { type nat hook prerouting priority 0; udp dport 7 dnat to 10.0.0.7; }; }"],
        check=True,
    )
    assert len(interpret(read_rules()).dials) == len(expected(rules).dials) + 1


def test_the_same_generation_is_not_dumped_again() -> None:
    DOCKER.load()
    reader = NatReader()
    first = read_rules(reader)
    assert read_rules(reader).messages is first.messages
    subprocess.run(["nft", "add table ip more"], check=True)
    again = read_rules(reader)
    assert again.messages is not first.messages
    assert interpret(again) == interpret(first)


@contextlib.contextmanager
def server_behind(bridge: str, address: str, port: int) -> Iterator[None]:
    """A server in a network namespace of its own, on the other side of `bridge`."""
    with contextlib.ExitStack() as stack:
        guest = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, guest)
        with network_namespace(), IPRoute() as inside:
            inside.link("add", ifname="inside", kind="veth", peer={"ifname": "outside", "net_ns_fd": guest})
            (index,) = inside.link_lookup(ifname="inside")
            inside.addr("add", index=index, address=address, prefixlen=16)
            inside.link("set", index=index, state="up")
            stack.enter_context(socket.create_server((address, port)))
        with IPRoute() as outside:
            (master,) = outside.link_lookup(ifname=bridge)
            outside.link("set", ifname="outside", master=master, state="up")
        yield


@pytest.mark.parametrize("name", ["docker.iptables by iptables-nft", "docker.nft by nft", "portmap.nft by nft",
                                  "netavark.nft by nft", "portmap.iptables by iptables-legacy"])  # fmt: skip
def test_the_target_answers_and_the_port_at_the_loopback_does_not(name: str) -> None:
    (rules,) = (rules for rules in RULE_SETS if str(rules) == name)
    rules.load()
    target = interpret(read_rules()).dials[Protocol.TCP, "0.0.0.0", 8080]
    with server_behind("docker0" if target[0].startswith("172") else "cni0", *target):
        socket.create_connection(target, timeout=10).close()
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            socket.create_connection(("127.0.0.1", 8080), timeout=0.2)


class InterruptedReader(NatReader):
    """Somebody changes the rules during each of the first `changes` dumps."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.changes = changes

    def _ask(self, link: object, *arguments: object) -> list[tuple[int, bytes]]:
        found = super()._ask(link, *arguments)  # type: ignore[arg-type]
        if self.changes:
            self.changes -= 1
            subprocess.run(["nft", f"add table ip change{self.changes}"], check=True)
        return found


def test_a_dump_under_which_the_rules_changed_is_taken_again() -> None:
    DOCKER.load()
    assert interpret(read_rules(InterruptedReader(1))).dials == expected(DOCKER).dials


def test_rules_that_never_stand_still_are_an_error() -> None:
    DOCKER.load()
    with pytest.raises(RulesChangingError):
        read_rules(InterruptedReader(1000))


def test_rules_without_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    DOCKER.load()
    monkeypatch.setattr(nat_reader, "MOST_BYTES", 1000)
    with pytest.raises(RulesTooLargeError):
        read_rules()


def test_large_rule_sets_of_both_kinds_are_read_whole() -> None:
    lines = [
        f"-A PREROUTING -p tcp --dport {10_000 + n} -j DNAT --to-destination 10.0.0.2:{n + 1}" for n in range(2000)
    ]
    text = "\n".join(("*nat", *lines, "COMMIT", ""))
    for tool in ("iptables-nft-restore", "iptables-legacy-restore"):
        with guest_namespace():
            subprocess.run([tool], input=text, text=True, check=True)
            assert len(interpret(read_rules()).dials) == 2000


def test_rules_that_are_rewritten_all_the_time_are_read_right_or_not_at_all() -> None:
    """Each state has the same ports with another target, so that a mixture of two states would show."""
    reader, stop = NatReader(), threading.Event()
    sockets: PreparedSockets

    def script(target: int) -> str:
        rules = "\n".join(f"tcp dport {port} dnat to 10.0.0.{target}:80;" for port in range(1000, 1300))
        chain = f"chain in {{ type nat hook prerouting priority 0;\n{rules}\n}}"
        return f"table ip storm\ndelete table ip storm\ntable ip storm {{\n{chain}\n}}\n"

    def rewrite() -> None:
        target = 0
        while not stop.is_set():
            target = target % 200 + 1
            subprocess.run(["nft", "--file", "-"], input=script(target), text=True, check=True)

    subprocess.run(["nft", "--file", "-"], input=script(1), text=True, check=True)
    writer = threading.Thread(target=rewrite)
    writer.start()
    seen: list[RawRules] = []
    try:
        for _ in range(20):
            with reader.prepared() as sockets:
                try:
                    seen.append(reader.read_blocking(sockets))
                except RulesChangingError:
                    continue
    finally:
        stop.set()
        writer.join()
    seen.append(read_rules(reader))
    for raw in seen:
        found = interpret(raw)
        assert len(found.dials) == 300
        assert len(set(found.dials.values())) == 1
