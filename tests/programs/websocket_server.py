"""A WebSocket server behind nginx, both in the guest, with wsproto on the host."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from wsproto.events import CloseConnection

from tests.programs import web_server
from tests.programs.case import Program
from tests.programs.guest import HTTP, LOOPBACKS, ProgramGuest
from tests.programs.websocket import WebSocket, open_websocket

PORT = 8765
UNIT = "websocket-echo"
MESSAGES = 300
OPEN = 30

SERVER = f"""
import asyncio, websockets
async def echo(connection):
    try:
        async for message in connection:
            if message == "leave":
                await connection.close(4001, "as you wish")
            elif message == "how did it end?":
                await connection.send(repr(ends))
            else:
                await connection.send(message)
    except websockets.ConnectionClosed:
        pass  # with a code that means more than goodbye
    ends.append((connection.close_code, connection.close_reason))
ends = []
async def main():
    async with websockets.serve(echo, "127.0.0.1", {PORT}, max_size=None):
        await asyncio.Future()
asyncio.run(main())
"""

WAYS = [(host, port, path) for host in LOOPBACKS for port, path in ((HTTP, "/echo"), (PORT, "/"))]
"""Through nginx and straight to the server, by both address families."""


@contextmanager
def running(guest: ProgramGuest) -> Iterator[None]:
    """The server and nginx in front of it."""
    guest.put(SERVER, "/root/websocket_echo.py")
    guest.shell(f"systemd-run --quiet --unit {UNIT} /usr/bin/python3 /root/websocket_echo.py")
    with web_server.running(guest):
        guest.listening(PORT)
        yield
    guest.stop(UNIT)
    guest.gone([PORT])


PROGRAM = Program("WebSockets (python3-websockets behind nginx)", running)


def ask(socket: WebSocket, message: str | bytes) -> str | bytes:
    """What comes back for a message."""
    socket.say(message)
    return socket.hear()


@PROGRAM.case("text, binary of 1 MiB, empty messages, ping and pong, through nginx and straight, by IPv4 and IPv6")
def messages(guest: ProgramGuest) -> None:
    data = hashlib.shake_256(b"message").digest(1 << 20)
    for way in WAYS:
        with open_websocket(*way) as socket:
            assert ask(socket, "ein Wörtchen") == "ein Wörtchen"
            assert ask(socket, "") == ""
            began = time.monotonic()
            assert ask(socket, data) == data
            guest.note(f"1 MiB there and back in {time.monotonic() - began:.2f} s")
            assert socket.ping(b"are you there?") == b"are you there?"
            assert socket.close(1000, "").code == 1000


@PROGRAM.case("the code and the reason of a close arrive, whichever side it comes from")
def closes(guest: ProgramGuest) -> None:
    for way in WAYS:
        with open_websocket(*way) as socket:
            answer = socket.close(4321, "enough of this")
            assert (answer.code, answer.reason) == (4321, "enough of this")
        with open_websocket(*way) as socket:
            socket.say("leave")
            said = socket.receive(CloseConnection)
            assert (said.code, said.reason) == (4001, "as you wish")
            socket.send(said.response())
            socket.ended()
        with open_websocket(*way) as socket:
            ends = str(ask(socket, "how did it end?"))
            assert ends.endswith("(4321, 'enough of this'), (4001, 'as you wish')]"), ends


@PROGRAM.case(f"{MESSAGES} messages under way at once come back in order")
def many_messages(guest: ProgramGuest) -> None:
    with open_websocket("127.0.0.1", HTTP, "/echo") as socket:
        began = time.monotonic()
        for number in range(MESSAGES):
            socket.say(f"{number} " + "m" * (number * 7 % 2_000))
        for number in range(MESSAGES):
            assert socket.hear() == f"{number} " + "m" * (number * 7 % 2_000)
        guest.note(f"{MESSAGES / (time.monotonic() - began):.0f} a second")


@PROGRAM.case(f"{OPEN} WebSockets open at once, each with its own messages")
def many_sockets(guest: ProgramGuest) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_websocket(*WAYS[number % len(WAYS)])) for number in range(OPEN)]
        for number, socket in enumerate(sockets):
            socket.say(f"I am {number}")
        for number, socket in enumerate(sockets):
            assert socket.hear() == f"I am {number}"


@PROGRAM.case("the server is stopped: nginx closes the WebSocket, and the client sees it")
def server_stopped(guest: ProgramGuest) -> None:
    with open_websocket("127.0.0.1", HTTP, "/echo") as socket:
        assert ask(socket, "still there?") == "still there?"
        guest.shell(f"systemctl kill --signal KILL {UNIT}")
        socket.ended()
    guest.gone([PORT])
    guest.shell(
        f"systemctl reset-failed {UNIT}; systemd-run --quiet --unit {UNIT} /usr/bin/python3 /root/websocket_echo.py"
    )
    guest.listening(PORT)
