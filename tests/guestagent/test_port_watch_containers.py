"""A container's port, from the kernel's event to the container's name: real sockets, rules and /proc, a fake Docker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from guestagent.container_lookup import ContainerLookup
from guestagent.podman_monitors import MonitorSearch
from guestagent.port_owner import OwnerSearch
from guestagent.port_watch import PortWatch
from guestagent.wakeup_netlink import NftablesSource
from protocol.ports import Port, PortKind, Protocol
from tests.fakes.container_engine import ContainerEngine, container_engine, listed
from tests.guestagent.network_namespace import network_namespace
from tests.guestagent.test_port_watch import RecordingSink, nft, real_sources, translating, watching

FOUR, SIX = (Port(Protocol.TCP, address, 8080) for address in ("0.0.0.0", "::"))
NAT = Port(Protocol.TCP, "0.0.0.0", 8080, PortKind.NAT)
RULE = "tcp dport 8080 dnat to 172.17.0.2:80"

PROXY = """
import socket, sys
open("/proc/self/comm", "w").write("docker-proxy")
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
with socket.create_server((sys.argv[2], 8080), family=family):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@contextmanager
def docker_proxy(address: str) -> Iterator[None]:
    """A process that is called docker-proxy, has its command line, and listens at `address`.

    It is started by this thread, which is the one in the namespace: trio would take another one for that.
    """
    command = [sys.executable, "-c", PROXY, "-host-ip", address, "-container-ip", "172.17.0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline()
        yield
        process.stdin.close()


@asynccontextmanager
async def docker(root: Path, *, pid: int) -> AsyncIterator[ContainerEngine]:
    async with container_engine(root / "run" / "docker.sock") as engine:
        (root / "run" / "docker.pid").write_text(f"{pid}\n")
        (root / "proc" / str(pid)).mkdir(parents=True)
        (root / "proc" / str(pid) / "comm").write_text("dockerd\n")
        yield engine


def watch_with(sink: RecordingSink, root: Path, events: bool = True) -> PortWatch:
    lookup = ContainerLookup(root, uid=os.geteuid(), search=OwnerSearch(), monitors=MonitorSearch())
    return PortWatch(sink, sources=real_sources() if events else [NftablesSource()], lookup=lookup)


@pytest.mark.usefixtures("namespace")
async def test_a_port_of_dockers_is_its_proxys_twice_and_has_the_containers_name(tmp_path: Path) -> None:
    """At 0.0.0.0 and ::, as the two proxies hold it; the rule for it adds no third."""
    sink = RecordingSink()
    watch = watch_with(sink, tmp_path)
    async with docker(tmp_path, pid=77) as engine, watching(watch):
        engine.containers = [listed("web", 8080)]
        nft(translating(RULE))
        await sink.until(lambda: sink.ports == {NAT})
        with docker_proxy("0.0.0.0"), docker_proxy("::"):
            await sink.until(lambda: sink.ports == watch.owners.keys() == {FOUR, SIX})
            await sink.until(lambda: {owner.unit for owner in watch.owners.values()} == {"docker/web"})
            assert {owner.process for owner in watch.owners.values()} == {"docker-proxy"}
    assert watch.counters().failed_name_lookups == 0


@pytest.mark.usefixtures("namespace")
async def test_a_rule_of_dockers_has_the_containers_name_and_keeps_it(tmp_path: Path) -> None:
    sink = RecordingSink()
    watch = watch_with(sink, tmp_path, events=False)
    async with docker(tmp_path, pid=77) as engine, watching(watch):
        engine.containers = [listed("web", 8080)]
        nft(translating(RULE))
        await sink.until(lambda: NAT in sink.owners and sink.owners[NAT].unit == "docker/web")
        assert sink.owners[NAT].process == "nftables rule"
        asked = len(engine.requests)
        other = Port(Protocol.TCP, "0.0.0.0", 81, PortKind.NAT)
        nft("add rule ip test prerouting tcp dport 81 redirect to :8081")
        await sink.until(lambda: other in sink.owners)
        assert sink.owners[NAT] == watch.owners[NAT]
        assert watch.owners[NAT].unit == "docker/web"
        assert len(engine.requests) == asked
        nft("flush chain ip test prerouting")
        await sink.until(lambda: not sink.ports)
        engine.containers = [listed("next", 8080)]
        nft(f"add rule ip test prerouting {RULE}")
        await sink.until(lambda: sink.ports == {NAT} and sink.owners[NAT].unit == "docker/next")


@pytest.mark.usefixtures("namespace")
async def test_a_docker_that_is_silent_delays_no_port(tmp_path: Path) -> None:
    sink = RecordingSink()
    watch = watch_with(sink, tmp_path)
    async with docker(tmp_path, pid=77) as engine, watching(watch):
        engine.silent = True
        with docker_proxy("0.0.0.0"):
            await sink.until(lambda: FOUR in sink.owners)
            with trio.fail_after(20):
                await engine.asked.wait()
            with docker_proxy("::"):
                await sink.until(lambda: SIX in sink.owners)
                assert {owner.unit for owner in sink.owners.values()} == {"docker/172.17.0.2"}
