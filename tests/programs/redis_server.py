"""Redis of the distribution, with the usual client library on the host."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.programs.case import Program
from tests.programs.guest import LOOPBACKS, ProgramGuest
from tests.programs.port_watch import Ports, lines_for

PORT = 6379
SERVICE = "redis-server"
PIPELINED = 10_000
MESSAGES = 1_000


# The library's types leave open whether a result has to be awaited.
def connect(host: str = "127.0.0.1") -> Any:
    """A client with connections of its own, which tells of every failure instead of trying again."""
    never = Retry(NoBackoff(), 0)
    return redis.Redis(host=host, port=PORT, socket_timeout=60, socket_connect_timeout=30, retry=never)


@contextmanager
def running(guest: ProgramGuest) -> Iterator[None]:
    """The server as the distribution sets it up."""
    guest.start(SERVICE)
    guest.listening(PORT)
    yield
    guest.stop(SERVICE)
    guest.gone([PORT])


PROGRAM = Program("Redis 7", running)


@PROGRAM.case("its port is listed with process and unit, and answers at 127.0.0.1 and ::1")
def listed(guest: ProgramGuest) -> None:
    owner = guest.listening(PORT)["owner"]
    assert (owner["process"], owner["unit"]) == ("redis-server", f"{SERVICE}.service")
    for host in LOOPBACKS:
        with connect(host) as client:
            assert client.ping() is True


@PROGRAM.case(f"{PIPELINED:,} commands in one pipeline, none of whose answers is waited for")
def pipeline(guest: ProgramGuest) -> None:
    with connect() as client:
        began = time.monotonic()
        with client.pipeline(transaction=False) as commands:
            for number in range(PIPELINED // 2):
                commands.set(f"key {number}", f"value {number} " + "v" * (number % 61))
                commands.incrby("sum", number)
            answers = commands.execute()
        guest.note(f"{PIPELINED / (time.monotonic() - began):,.0f} a second")
        assert answers[::2] == [True] * (PIPELINED // 2)
        assert answers[-1] == sum(range(PIPELINED // 2))
        found = client.mget([f"key {number}" for number in range(PIPELINED // 2)])
        assert found == [f"value {number} {'v' * (number % 61)}".encode() for number in range(PIPELINED // 2)]


@PROGRAM.case(f"{MESSAGES:,} messages to two subscribers, all of them and in order")
def publish(guest: ProgramGuest) -> None:
    with connect() as client, connect("::1") as other:
        with client.pubsub() as one, other.pubsub() as two:
            for subscriber in (one, two):
                subscriber.subscribe("news")
                assert subscriber.get_message(timeout=30)["type"] == "subscribe"
            began = time.monotonic()
            with connect() as sender, sender.pipeline(transaction=False) as commands:
                for number in range(MESSAGES):
                    commands.publish("news", number)
                assert commands.execute() == [2] * MESSAGES
            for subscriber in (one, two):
                heard = [subscriber.get_message(timeout=30)["data"] for _ in range(MESSAGES)]
                assert heard == [str(number).encode() for number in range(MESSAGES)]
            guest.note(f"both after {time.monotonic() - began:.1f} s")


@PROGRAM.case("a client that waits for a list is woken by another one's entry")
def woken(guest: ProgramGuest) -> None:
    with connect() as waiting, connect() as other:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append((waiting.blpop(["queue"], timeout=30), time.monotonic())))
        thread.start()
        while not other.info("clients")["blocked_clients"]:
            assert thread.is_alive()
        began = time.monotonic()
        other.rpush("queue", b"\x00\xffentry")
        thread.join(30)
        ((answer, when),) = got
        guest.note(f"woken after {(when - began) * 1000:.0f} ms")
        assert answer == (b"queue", b"\x00\xffentry")


@PROGRAM.case("a value of 8 MiB in and out")
def large_value(guest: ProgramGuest) -> None:
    data = hashlib.shake_256(b"large").digest(8 << 20)
    with connect() as client:
        began = time.monotonic()
        client.set("large", data)
        stored = time.monotonic()
        found = client.get("large")
        guest.note(f"in {stored - began:.1f} s, out {time.monotonic() - stored:.1f} s")
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


@PROGRAM.case(
    "a client shuts the server down: others see its end, then the one that systemd starts in its place",
    quick=False,
)
def shut_down(guest: ProgramGuest) -> None:
    before = guest.listening(PORT)["owner"]["pid"]
    with connect() as client, connect("::1") as other:
        assert other.ping() is True
        client.shutdown(nosave=True)
        with pytest.raises(redis.ConnectionError):
            other.ping()

        def has_another(ports: Ports) -> bool:
            lines = lines_for(ports, PORT, "tcp")
            return len(lines) == len(LOOPBACKS) and all(
                line["state"] == "listening" and line["owner"] and line["owner"]["pid"] != before for line in lines
            )

        guest.ports.wait(has_another, "another process has the port at both addresses, and the host leads there")
        assert other.ping() is True
