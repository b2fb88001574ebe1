"""Who holds a host port: a name for `conflict`, as far as this host lets itself be asked."""

from __future__ import annotations

import psutil

from hostagent.forward_rules import ListenerKey
from protocol.ports import Protocol

_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  (compared with, never bound)


def port_holder(key: ListenerKey) -> str:
    """The process that has `key`'s port, in words. Looks through all processes: call it in a thread.

    Without root only the user's own processes can be seen (proc(5)): then it says so.
    """
    kind = "tcp" if key.protocol is Protocol.TCP else "udp"
    for connection in psutil.net_connections(kind):
        if not connection.laddr or connection.laddr.port != key.host.port:
            continue
        if kind == "tcp" and connection.status != psutil.CONN_LISTEN:
            continue
        if connection.laddr.ip == key.host.address or connection.laddr.ip in _WILDCARDS:
            return "another user's process" if connection.pid is None else _describe(connection.pid)
    return "a process that cannot be seen from here"


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        name, arguments = process.name(), process.cmdline()
    except psutil.Error:
        return f"pid {pid}"
    if "hostagent" in " ".join(arguments[:3]) and "run-agent" in arguments:
        return f"the instance {arguments[-1]!r} (pid {pid})"
    return f"{name!r} (pid {pid})"
