"""One wanted host listener: its socket, or why there is none, in the words of a forward's state."""

from __future__ import annotations

import errno
import socket

import trio

from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint, ForwardState
from hostagent.port_holder import PortHolder
from hostagent.socket_file import SocketFileListener
from hostagent.stream_socket import listen

RETRY = 0.5
"""Seconds between two tries to have what could not be had."""

FILE_CHECK = 1.0
"""Seconds between two looks whether the files of sockets are still there."""

_NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_TWINS = {"::1", "::"}
"""Addresses of which a forward has the IPv4 one as well: missed by nobody where the host has no IPv6."""


class HostListener:
    """The listener at `key`. Opening and closing it take effect at once."""

    def __init__(self, key: ListenerKey) -> None:
        self.key = key
        self.sock: socket.socket | None = None
        self.error: OSError | None = None
        self.holder: PortHolder | None = None
        """Who has the port, as far as that was asked."""

    def open(self) -> bool:
        """Try to have it; whether that worked. Otherwise `error` says why not."""
        try:
            self.sock = listen(self.key)
        except OSError as exc:
            self.error = exc
            return False
        self.error = self.holder = None
        return True

    def close(self) -> None:
        """Free the port; whoever serves it notices."""
        if self.sock is not None:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
            self.sock = None

    @property
    def lost(self) -> bool:
        """Whether it listens where no client finds it: somebody removed or replaced its file."""
        return isinstance(self.sock, SocketFileListener) and not self.sock.has_its_file()

    @property
    def missed(self) -> bool:
        """Whether it is not there and should be: all but the IPv6 half of a forward on a host without IPv6."""
        if self.error is None:
            return False
        host = self.key.host
        return not (self.error.errno in _NO_IPV6 and isinstance(host, Endpoint) and host.address in _TWINS)

    @property
    def shown(self) -> bool:
        """Whether the address exists on this host, as far as that goes unsaid."""
        return self.error is None or self.missed

    @property
    def taken(self) -> bool:
        """Whether somebody else has it."""
        return self.error is not None and self.error.errno == errno.EADDRINUSE

    def trouble(self) -> tuple[ForwardState, str]:
        """State and reason, with the next step, of a listener that is missed."""
        assert self.error is not None
        host = self.key.host
        match self.error.errno:
            case errno.EADDRINUSE:
                holder = self.holder.words if self.holder else "another process"
                return ForwardState.CONFLICT, f"{host} is taken by {holder}: it is forwarded as soon as that ends"
            case errno.EACCES | errno.EPERM if isinstance(host, Endpoint):
                return ForwardState.DENIED, (
                    f"{host} is privileged: `sudo sysctl net.ipv4.ip_unprivileged_port_start={host.port}` allows it, "
                    "or a rule with another hostPort"
                )
            case errno.EADDRNOTAVAIL if isinstance(host, Endpoint):
                return ForwardState.FAILED, (
                    f"this host has no address {host.address}: it is forwarded as soon as it has, or change hostIP"
                )
            case errno.EMFILE | errno.ENFILE:
                return ForwardState.FAILED, (
                    "the host agent may not open more files: close ports in the guest, or raise the limit "
                    "(`ulimit -n`) and start the instance again"
                )
            case _:
                return ForwardState.FAILED, f"{host}: {self.error.strerror}; tried again every {RETRY} s"
