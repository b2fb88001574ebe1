"""Wake-ups from audit: any netfilter change, iptables-legacy included, in any namespace.

Auditing is enabled only if it was off, and put back at the end unless an audit daemon has come in the meantime. A lock
file remembers that we enabled it: it is locked for as long as we live, so that whoever finds it unlocked knows that we
were killed, and turns auditing off in our place at its own end.

No rule is added and no daemon is registered, so the price is what the kernel then logs by itself without a daemon: a
line for each rule change, login and service start. Where auditing is locked, compiled out or out of reach, nftables'
own notices (`wakeup_netlink`) remain.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Self

from guestagent import audit_records
from guestagent.audit_records import AuditReply, AuditStatus, Enabled
from guestagent.netlink import KernelDataError
from guestagent.wakeup_netlink import follow, only_kind, open_multicast
from guestagent.wakeups import NOTHING, SourceState, SourceUnavailableError, Watch, explain, went_live

_NETLINK_AUDIT = 9
_READ_LOG_GROUP = 1  # AUDIT_NLGRP_READLOG, needs CAP_AUDIT_READ
_ANSWER_TIMEOUT = struct.pack("@ll", 0, 500_000)  # struct timeval; the kernel answers while send() runs or just after
LOCK = Path("/run/hostagent-audit.lock")
"""Exists while auditing is on because of us. /run forgets it with the boot, as the kernel forgets the switch."""

_ANSWER_SIZE = 8 * 1024
_UNRELATED = 16


class AuditSource:
    """Audit's NETFILTER_CFG records."""

    def __init__(self, *, may_enable: bool = True, lock: Path = LOCK) -> None:
        self._may_enable = may_enable
        self._lock = lock
        self._state = SourceState("audit NETFILTER_CFG", NOTHING, NOTHING, rules=True)

    @property
    def states(self) -> tuple[SourceState, ...]:
        """One state; it sees no sockets."""
        return (self._state,)

    async def run(self, watch: Watch) -> NoReturn:
        """Listen until cancelled, with auditing enabled. Raises `SourceUnavailableError`."""
        try:
            program = only_kind(audit_records.NETFILTER_CFG)
            with (
                open_multicast(_NETLINK_AUDIT, (_READ_LOG_GROUP,), program) as listener,
                _Control() as control,
                control.enabled(may_enable=self._may_enable, lock=self._lock),
            ):
                went_live(self._state, watch)
                await follow(listener, self._state, watch, lambda _: NOTHING)
        except OSError as exc:
            raise SourceUnavailableError(explain(exc, "audit")) from exc
        except KernelDataError as exc:
            raise SourceUnavailableError(f"audit: {exc}") from exc


class _Control:
    """Requests to audit, each answered before the next."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_AUDIT)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @contextlib.contextmanager
    def enabled(self, *, may_enable: bool, lock: Path) -> Iterator[None]:
        """Auditing is on inside the block, and afterwards as it was before."""
        with contextlib.ExitStack() as stack:
            if self.status().enabled is Enabled.OFF:
                if not may_enable:
                    raise SourceUnavailableError("audit: auditing is off, and hostagent is told to leave it so")
                lock.touch(mode=0o600)
                responsible = _try_lock(lock, stack)
                self._set(Enabled.ON)
            else:
                responsible = lock.exists() and _try_lock(lock, stack)
            try:
                yield
            finally:
                if responsible:
                    self._put_back()
                    lock.unlink(missing_ok=True)

    def _put_back(self) -> None:
        after = self.status()
        if after.enabled is Enabled.ON and not after.daemon:
            self._set(Enabled.OFF)

    def status(self) -> AuditStatus:
        """Ask the kernel. Raises `OSError` or `KernelDataError`."""
        self._sequence += 1
        reply = self._ask(audit_records.status_request(self._sequence))
        if reply.status is None:
            raise KernelDataError("audit answered a question for its status without one")
        return reply.status

    def _set(self, enabled: Enabled) -> None:
        self._sequence += 1
        self._ask(audit_records.enable_request(enabled, self._sequence))

    def _ask(self, request: bytes) -> AuditReply:
        self._socket.send(request)
        for _ in range(_UNRELATED):
            reply = audit_records.parse_reply(self._socket.recv(_ANSWER_SIZE), self._sequence)
            if reply is None:
                continue
            if reply.errno:
                raise OSError(reply.errno, os.strerror(reply.errno))
            return reply
        raise KernelDataError("audit did not answer")


def _try_lock(lock: Path, stack: contextlib.ExitStack) -> bool:
    """Hold `lock` until `stack` ends; False when a living process holds it."""
    file = stack.enter_context(lock.open("rb"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
