"""A running guest, used through the command line: its ports, its shell, what `hostagent` says about it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest

from tests.e2e.vm import PORT_SECONDS, Vm, wait_until

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(1500)]

HTTP_PORT = 8080


def get(host: str, port: int) -> int:
    """The status of GET /; raises `OSError` where nobody listens."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        return response.status


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether an HTTP server answers there."""
    try:
        return get(host, port) == 200
    except OSError:
        return False


def refused(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) != 0


@contextlib.contextmanager
def web_server(vm: Vm, port: int = HTTP_PORT) -> Iterator[subprocess.Popen[bytes]]:
    """`python3 -m http.server` in the guest, usable."""
    with vm.running("python3", "-m", "http.server", str(port)) as server:
        wait_until(lambda: answers(port), seconds=30)
        yield server
    wait_until(lambda: refused(port))


def test_up_again_is_a_no_op_that_says_so(vm: Vm) -> None:
    events = vm.up()
    (notice,) = [event["message"] for event in events if event["event"] == "notice"]
    assert notice == "vm is running already"
    assert [event["phase"] for event in events if event["event"] == "phase"] == ["validate", "validate"]


def test_a_web_server_of_the_guest_is_there_on_both_loopbacks(vm: Vm) -> None:
    with web_server(vm):
        assert get("127.0.0.1", HTTP_PORT) == 200
        assert get("::1", HTTP_PORT) == 200
        assert get("localhost", HTTP_PORT) == 200
        wait_until(lambda: (vm.port(HTTP_PORT) or {}).get("owner"))
        port = vm.port(HTTP_PORT)
        assert port is not None
        assert port["state"] == "listening"
        assert port["owner"]["process"] == "python3"
        assert {(end["address"], end["port"]) for end in port["host"]} == {("127.0.0.1", 8080), ("::1", 8080)}
        assert port["traffic"]["connections_total"] >= 3
        assert port["traffic"]["bytes_to_host"] > 300
        shown = next(line for line in vm.at.run("ports").splitlines() if "8080" in line)
        assert shown.split()[:5] == ["listening", "localhost:8080", "0.0.0.0:8080", "tcp", "python3"]
    assert refused(HTTP_PORT, "::1")
    assert vm.port(HTTP_PORT) is None


def test_watching_ports_shows_them_come_and_go(vm: Vm) -> None:
    with vm.at.start("ports", "--watch", "--json") as watch:
        assert watch.stdout is not None
        json.loads(watch.stdout.readline())
        with web_server(vm, 8181):
            pass
        seen = []
        for line in watch.stdout:
            seen.append(any(port["guest"]["port"] == 8181 for port in json.loads(line)["ports"]))
            if seen[-2:] == [True, False]:
                break
        watch.terminate()
        watch.communicate(timeout=30)


DATABASE = r"""
import socketserver, sqlite3, sys
database = sqlite3.connect(":memory:", check_same_thread=False)
class Session(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            try:
                rows = database.execute(line.decode()).fetchall()
                database.commit()
                self.wfile.write((repr(rows) + "\n").encode())
            except sqlite3.Error as error:
                self.wfile.write(f"error {error}\n".encode())
socketserver.ThreadingTCPServer(("127.0.0.1", 5432), Session).serve_forever()
"""


def test_a_database_keeps_what_several_connections_tell_it(vm: Vm) -> None:
    """SQLite behind a socket: what the image has without a network to install from."""
    with vm.running("python3", "-c", DATABASE):
        wait_until(lambda: not refused(5432), seconds=30)

        def ask(*statements: str) -> list[str]:
            with socket.create_connection(("127.0.0.1", 5432), 10) as session:
                stream = session.makefile("rw", encoding="utf-8")
                found = []
                for statement in statements:
                    stream.write(statement + "\n")
                    stream.flush()
                    found.append(stream.readline().rstrip("\n"))
                stream.detach()
                return found

        assert ask("create table t (n integer, s text)") == ["[]"]
        for number in range(20):
            assert ask(f"insert into t values ({number}, '{'x' * 5000}')") == ["[]"]
        assert ask("select count(*), sum(n), sum(length(s)) from t", "nonsense")[0] == "[(20, 190, 100000)]"


DNS_SERVER = """
from dnslib.server import DNSServer, BaseResolver
from dnslib import RR
import time
class Fixed(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        name = str(request.q.qname)
        count = 40 if name.startswith("many") else 1
        for number in range(count):
            reply.add_answer(*RR.fromZone(f"{name} 60 A 192.0.2.{number + 1}"))
        return reply
servers = [DNSServer(Fixed(), port=5300, address="127.0.0.1", tcp=tcp) for tcp in (False, True)]
for server in servers: server.start_thread()
while True: time.sleep(100)
"""


def test_a_name_server_answers_over_udp_and_tcp(vm: Vm) -> None:
    folder = Path(dnslib.__file__).parent
    packed = subprocess.run(
        ["tar", "-C", folder.parent, "-c", "--exclude=__pycache__", folder.name], capture_output=True, check=True
    )
    vm.shell("mkdir -p /root/dns && tar -C /root/dns -x", stdin=packed.stdout)
    vm.put(DNS_SERVER.encode(), "/root/dns/server.py")
    with vm.running("python3", "/root/dns/server.py"):
        wait_until(lambda: vm.port(5300, "udp") and vm.port(5300), seconds=60)
        for host in ("127.0.0.1", "::1"):
            for tcp in (False, True):
                for name, count in (("one.test", 1), ("many.test", 40)):
                    question = dnslib.DNSRecord.question(name)
                    packet = question.send(host, 5300, tcp=tcp, timeout=10, ipv6=":" in host)
                    reply = dnslib.DNSRecord.parse(packet)
                    assert reply.header.id == question.header.id
                    assert (str(reply.q.qname), len(reply.rr)) == (f"{name}.", count)
                    assert str(reply.rr[0].rdata) == "192.0.2.1"


def test_shell_keeps_streams_apart_and_passes_the_status_on(vm: Vm) -> None:
    done = vm.at.try_run("shell", "--", "sh", "-c", "cat; echo wrong >&2; exit 37", stdin=b"in \x00\xff\n")
    assert (done.returncode, done.stdout, done.stderr) == (37, b"in \x00\xff\n", b"wrong\n")
    for script, status in (("true", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
        assert vm.at.try_run("shell", "--", "sh", "-c", script).returncode == status
    missing = vm.at.try_run("shell", "--", "no-such-program")
    assert missing.returncode == 127
    assert b"No such file or directory" in missing.stderr
    data = os.urandom(3_000_000)
    done = vm.at.try_run("shell", "--", "cat", stdin=data)
    assert done.stdout == data


def test_words_of_a_command_arrive_as_they_are(vm: Vm) -> None:
    words = ["a b", "", "$HOME", "`id`", "'", '"', "--", "-x", "ü", "*", "\\", "new\nline"]
    script = "import sys, json; print(json.dumps(sys.argv[1:]))"
    assert json.loads(vm.at.run("shell", "--", "python3", "-c", script, *words)) == words


def test_shell_on_a_terminal_is_a_terminal_in_the_guest(vm: Vm) -> None:
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (33, 101))
    script = "stty size; tty; read line; echo got:$line; exit 5"
    process = vm.at.start("shell", "--", "sh", "-c", script, stdin=there, stdout=there, stderr=there)
    os.close(there)
    said = b""
    with process:
        os.write(here, b"hello\r")
        while select.select([here], [], [], 60)[0]:
            try:
                said += os.read(here, 4096)
            except OSError:  # EIO: nobody has the other end any more (pty(7))
                break
        assert process.wait(30) == 5
    os.close(here)
    text = said.decode()
    assert "33 101" in text
    assert "/dev/pts/" in text
    assert "got:hello" in text


HOLDER = """
import socket, sys
one = socket.create_server(("127.0.0.1", 8282))
other = socket.create_server(("::1", 8282), family=socket.AF_INET6)
print("up", flush=True)
sys.stdin.read()
"""


def test_a_taken_host_port_is_told_with_its_owner_and_had_when_free(vm: Vm) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with vm.running("python3", "-m", "http.server", "8282"):
            wait_until(lambda: "pid" in str((vm.port(8282) or {}).get("reason")), seconds=30)
            port = vm.port(8282)
            assert port is not None
            assert port["state"] == "conflict"
            assert str(holder.pid) in port["reason"]
            holder.kill()
            holder.wait()
            took = wait_until(lambda: answers(8282))
            print(f"a freed host port is had after {took:.2f} s")
            assert took < 3  # 1 s is promised
            wait_until(lambda: (vm.port(8282) or {}).get("state") == "listening")


def test_status_list_logs_and_events_tell_what_is(vm: Vm) -> None:
    status = vm.status()
    assert (status["state"], status["arch"], status["cpus"]) == ("running", "x86_64", 2)
    assert status["guest_agent"]["present"] is True
    assert status["guest_agent"]["version"] == status["guest_agent"]["seed_version"]
    sources = {source["name"]: source for source in status["guest_agent"]["sources"]}
    assert not {name: source["reason"] for name, source in sources.items() if not source["live"]}
    (instance,) = vm.at.document("list")["instances"]
    assert (instance["name"], instance["state"], instance["error"]) == ("vm", "running", "")
    assert "running" in vm.at.run("status")
    assert "vm" in vm.at.run("list")
    kinds = {event["kind"] for event in vm.at.documents("events")}
    assert {"phase", "state", "guest", "forward"} <= kinds
    assert vm.at.run("events")
    assert "running" in vm.at.run("logs")
    # The agent is ready before cloud-init says its first word, and the kernel says none.
    wait_until(lambda: "Cloud-init" in vm.at.run("logs", "--serial"), seconds=120)
    assert vm.at.try_run("logs", "--qemu").returncode == 0


CLIENTS = """
import socket
for _ in range(100):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"a question", ("127.0.0.1", 9))
"""


def test_clients_over_udp_cost_no_look_at_the_sockets(vm: Vm) -> None:
    """As when names are looked up: their sockets are bound too, to a port that the kernel chooses."""

    def binds() -> int:
        sources = {source["name"]: source["wakeups"] for source in vm.status()["guest_agent"]["sources"]}
        return int(sources["kprobe udp_lib_get_port"])

    before = binds()
    vm.shell("python3 -", stdin=CLIENTS.encode())
    assert binds() - before < 10  # what the rest of the system binds meanwhile


def test_packages_bring_along_what_debian_recommends(vm: Vm) -> None:
    """As on every Debian: without what docker.io recommends, the apparmor package, it starts no container."""
    assert vm.shell('eval "$(apt-config shell value APT::Install-Recommends/b)"; echo "$value"') == "true\n"


def test_nothing_was_missed_and_nothing_is_left(vm: Vm) -> None:
    counters = vm.status()["guest_agent"]["counters"]
    assert counters["misses"] == 0
    wait_until(lambda: vm.status()["guest_agent"]["counters"]["streams"] == 0, seconds=PORT_SECONDS)
