"""Who holds a host port: a name for `conflict`, as far as this host lets itself be asked."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import psutil

from hostagent.forward_plan import ListenerKey
from hostagent.forwards import HostEnd, SocketFile
from protocol.ports import Protocol

_AGENT = "hostagent.agent_main"
"""What `hostagent.agent_process` starts, with the instance's name as the last argument."""

_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  (compared with, never bound)


@dataclass(frozen=True, slots=True)
class PortHolder:
    """The process that has a port, in words; its number where it is known."""

    words: str
    pid: int | None = None

    def is_gone(self) -> bool:
        """Whether that process has ended, so that another one must have the port."""
        return self.pid is not None and not psutil.pid_exists(self.pid)


def port_holders(keys: Collection[ListenerKey]) -> dict[ListenerKey, PortHolder]:
    """Who has the port of each of `keys`. Looks through all processes, once: call it in a thread.

    Without root only the user's own processes can be seen (proc(5)): then it says so.
    """
    sockets = {kind: psutil.net_connections(kind) for kind in {_kind(key) for key in keys}}
    return {key: _holder(key, sockets[_kind(key)]) for key in keys}


def _kind(key: ListenerKey) -> str:
    return "unix" if isinstance(key.host, SocketFile) else str(key.protocol)


def _holder(key: ListenerKey, sockets: list[Any]) -> PortHolder:
    found = [sock for sock in sockets if sock.laddr and _clashes(key.host, sock.laddr)]
    # A connection's own end also keeps others from listening there, when no listener does; in TIME-WAIT it is nobody's.
    found.sort(key=lambda sock: (key.protocol is Protocol.TCP and sock.status != psutil.CONN_LISTEN, sock.pid is None))
    if not found:
        return PortHolder("a process that cannot be seen from here")
    pid = found[0].pid
    return PortHolder("another user's process") if pid is None else PortHolder(_describe(pid), pid)


def _clashes(host: HostEnd, address: Any) -> bool:
    if isinstance(host, SocketFile):
        return bool(address == host.path)
    return address.port == host.port and (address.ip == host.address or bool({address.ip, host.address} & _WILDCARDS))


def _describe(pid: int) -> str:
    if pid == os.getpid():
        return f"another forward of this instance (pid {pid})"
    try:
        process = psutil.Process(pid)
        name, arguments = process.name(), process.cmdline()
    except psutil.Error:
        return f"pid {pid}"
    if _AGENT in arguments:
        return f"the instance {arguments[-1]!r} (pid {pid})"
    return f"{name!r} (pid {pid})"
