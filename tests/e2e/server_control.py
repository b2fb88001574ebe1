"""The host's end of a guest_server.py: its requests as methods."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import trio

AGENT = r"^(\S*/)?guestagent$"
"""Command line of the guest agent and its supervisor."""


class GuestServerError(Exception):
    """The guest server could not do what was asked; `error` is an errno name or the name of the exception."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(f"{error}: {message}")
        self.error = error


@dataclass(frozen=True, slots=True)
class Ran:
    """How a shell command in the guest ended; `output` is stdout and stderr together."""

    status: int
    output: str


class ControlLine:
    """Requests over `stream`, one at a time; safe to call from several tasks."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._pending = b""
        self._turn = trio.Lock()

    async def request(self, do: str, *, seconds: float = 60.0, **fields: Any) -> dict[str, Any]:
        """The fields of the answer; raises `GuestServerError`, and `trio.TooSlowError` after `seconds`."""
        async with self._turn:
            with trio.fail_after(seconds):
                await self._stream.send_all(json.dumps({"do": do, **fields}).encode() + b"\n")
                answer: dict[str, Any] = json.loads(await self._line())
        if not answer.pop("ok"):
            raise GuestServerError(answer["error"], answer["message"])
        return answer

    async def _line(self) -> bytes:
        while b"\n" not in self._pending:
            data = await self._stream.receive_some()
            if not data:
                raise trio.BrokenResourceError("the guest server's control line ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line


class GuestServer(ControlLine):
    """The requests of a guest_server.py."""

    async def tcp(self, kind: str, host: str, port: int = 0, backlog: int = 512) -> int:
        """Listen; the port."""
        return int((await self.request("tcp", kind=kind, host=host, port=port, backlog=backlog))["port"])

    async def udp(self, kind: str, host: str, port: int = 0) -> int:
        """Bind; the port."""
        return int((await self.request("udp", kind=kind, host=host, port=port))["port"])

    async def bind(self, host: str, port: int = 0) -> int:
        """Bind TCP without listening; the port."""
        return int((await self.request("bind", host=host, port=port))["port"])

    async def listen(self, kind: str, port: int) -> None:
        """Listen with what `bind` bound."""
        await self.request("listen", kind=kind, port=port)

    async def unix(self, kind: str, path: str) -> None:
        """Listen at `path`."""
        await self.request("unix", kind=kind, path=path)

    async def close_path(self, path: str) -> None:
        """Close the listener of `path`, and leave its file."""
        await self.request("close_path", path=path)

    async def ask(self, where: str | tuple[str, int], text: str) -> str:
        """What a client in the guest is answered at a path or at an address and port."""
        return str((await self.request("ask", where=where, text=text))["answer"])

    async def ask_udp(self, host: str, port: int, *sizes: int) -> list[int]:
        """Sizes of what came back to a client in the guest that sent datagrams of `sizes` to an echo."""
        found: list[int] = (await self.request("ask_udp", seconds=60, host=host, port=port, sizes=sizes))["sizes"]
        return found

    async def close(self, port: int, host: str = "") -> None:
        """Close every listener and UDP socket of `port`, or only that on the address `host`."""
        await self.request("close", port=port, host=host)

    async def counters(self) -> dict[str, int]:
        """Counters since the server's start; one that never counted is missing."""
        return await self.request("stat")

    async def processes(self, pattern: str) -> list[dict[str, Any]]:
        """Processes whose command line matches `pattern`: pid, parent, memory (KiB), ticks, command."""
        found: list[dict[str, Any]] = (await self.request("processes", pattern=pattern))["processes"]
        return found

    async def agent(self) -> dict[str, Any]:
        """The guest agent's process: the child of its supervisor, whose command line is the same."""
        found = await self.processes(AGENT)
        pids = {process["pid"] for process in found}
        (agent,) = (process for process in found if process["parent"] in pids)
        return agent

    async def agent_memory(self) -> int:
        """KiB of agent and supervisor together."""
        return sum(int(process["memory"]) for process in await self.processes(AGENT))

    async def netlink(self, messages: bytes, answers: int, protocol: int = 12) -> None:
        """Send `messages` to the kernel, by default to netfilter, and have so many of them acknowledged."""
        await self.request("netlink", protocol=protocol, messages=messages.hex(), answers=answers)

    async def run(self, command: str, limit: float = 30.0) -> Ran:
        """Run `command` with the guest's /bin/sh, at most `limit` seconds."""
        return Ran(**await self.request("run", seconds=limit + 5, command=command, limit=limit))
