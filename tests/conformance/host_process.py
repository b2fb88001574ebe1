"""The host's side of our forwarder as a process: `python -m tests.conformance.host_process CHANNEL CONTROL`.

Serves the channel at CHANNEL and answers requests, a JSON object per line, on the unix socket CONTROL. Prints "ready"
when it has the guest's ports, and ends when its standard input does, so that it never outlives who started it. A
process of its own, because then the cases see nothing but sockets, and its memory is nobody else's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hostagent import udp_listener
from hostagent.forwards import Endpoint, Forward, ForwardState
from protocol.ports import Port, Protocol
from tests.conformance.bench import raise_descriptor_limit
from tests.conformance.forwarder import Counters
from tests.e2e.host_side import HostSide, host_side

PATIENCE = 20.0
"""Bound on what should happen at once; it only has to hold on a machine that is busy with something else as well."""


def _key(row: Sequence[Any]) -> tuple[str, str]:
    protocol, address, number = row
    return protocol, str(Endpoint(address, number))


class Requests:
    """What can be asked; each public method is a request."""

    def __init__(self, side: HostSide) -> None:
        self._side = side

    def _forwards(self) -> dict[tuple[str, str], Forward]:
        return {(one.protocol, str(one.guest)): one for one in self._side.forwarder.forwards}

    async def listening(self, ports: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Wait until all of `ports` are forwarded in whole."""

        def all_there() -> bool:
            forwards = self._forwards()
            found = [forwards.get(_key(row)) for row in ports]
            return all(one is not None and one.state is ForwardState.LISTENING and not one.reason for one in found)

        await self._side.wait_until(all_there, PATIENCE)
        return {}

    async def gone(self, ports: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Wait until none of `ports` has a forward."""

        def none_there() -> bool:
            forwards = self._forwards()
            return not any(_key(row) in forwards for row in ports)

        await self._side.wait_until(none_there, PATIENCE)
        return {}

    async def pretend(self, port: Sequence[Any], present: bool) -> dict[str, Any]:
        """Act as if the guest had opened or closed `port`."""
        changed = [Port(Protocol(port[0]), port[1], port[2])]
        assert self._side.forwarder.change(*([changed, []] if present else [[], changed]))
        return await (self.listening if present else self.gone)([port])

    async def counters(self, port: Sequence[Any]) -> dict[str, Any]:
        """The counters of the forward of `port`."""
        traffic = dataclasses.asdict(self._forwards()[_key(port)].traffic)
        return {field.name: traffic[field.name] for field in dataclasses.fields(Counters)}

    async def flow_idle(self, idle: float) -> dict[str, Any]:
        """Set the seconds after which UDP flows end; answers what it was."""
        before, udp_listener.IDLE = udp_listener.IDLE, idle
        return {"before": before}

    async def wakeups(self) -> dict[str, Any]:
        """The guest agent's sources of wake-ups that are not live, and how many ports no wake-up announced."""
        status = await self._side.fresh_status()
        away = {source.name: source.reason for source in status.sources if not source.live}
        return {"away": away, "misses": dict(status.counters)["misses"]}


async def _answer(requests: Requests, line: bytes) -> bytes:
    request = json.loads(line)
    try:
        result = await getattr(requests, request.pop("do"))(**request)
    except (trio.TooSlowError, KeyError) as exc:
        seen = ", ".join(f"{one.protocol} {one.guest} {one.state}" for one in requests._side.forwarder.forwards[:20])
        return json.dumps(
            {"ok": False, "error": type(exc).__name__, "message": f"{request}; there are {seen}"}
        ).encode()
    return json.dumps({"ok": True, **result}).encode()


async def _serve(requests: Requests, stream: trio.SocketStream) -> None:
    pending = b""
    async with stream:
        async for data in stream:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                await stream.send_all(await _answer(requests, line) + b"\n")


async def _end_with_standard_input(scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(0)
        if not os.read(0, 1024):
            scope.cancel()


async def run(channel: Path, control: Path) -> None:
    """Serve until standard input ends."""
    async with host_side(channel) as side, trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_standard_input, nursery.cancel_scope)
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(control))
        listener.listen()
        print("ready", flush=True)
        await trio.serve_listeners(partial(_serve, Requests(side)), [trio.SocketListener(listener)])


if __name__ == "__main__":
    raise_descriptor_limit()
    trio.run(run, Path(sys.argv[1]), Path(sys.argv[2]))
