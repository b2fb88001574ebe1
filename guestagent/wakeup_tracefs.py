"""Wake-ups from the kernel's tracer: TCP listen and close, and UDP bind, of every process and namespace.

One tracing instance of our own (so that nobody else's tracing is seen or disturbed) carries two events:

- `sock/inet_sock_set_state`, filtered in the kernel to "becomes a listener" and "a listener closes". A listener's
  accepted connections start as clones of it, so `oldstate==10` alone would fire for each of them.
- a kprobe on `udp_lib_get_port`, which every UDP bind passes, explicit or implicit. It says *that*, not where. Binds
  that let the kernel choose the port (`snum` is 0) are clients', nearly always: each name that a program looks up makes
  two. They are filtered in the kernel, and a server that lets it choose is found by the tick.

Both fire before the socket can be found in a dump (a few microseconds: before inet_hash() in inet_csk_listen_start(),
before the hash insertion in udp_lib_get_port()); the port watch looks again shortly after for that reason. Each line
names the thread that did it, which spares the search for the owner.

The instance and the kprobe outlive a killed process, since neither belongs to a descriptor. So both have fixed names
and what a predecessor left is removed before they are made. An instance that is still read by someone cannot be removed
(EBUSY): then another agent is alive, and this source stays down.

Only one instance, because before Linux 6.6 each one costs about 9 MB of kernel memory for its directories.
Rejected: `trace_pipe_raw` (binary, one descriptor per CPU, wins nothing at this rate); eBPF (a compiler or a
pre-linked object, BTF, and the same privileges); syscall tracepoints on bind (slow down every system call).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import NoReturn

import trio

from guestagent.wakeups import (
    NOTHING,
    TCP,
    TCP_AND_UDP,
    UDP,
    SourceState,
    SourceUnavailableError,
    Watch,
    explain,
    went_live,
)

TRACEFS = Path("/sys/kernel/tracing")

_TCP_EVENT = "sock/inet_sock_set_state"
_TCP_FILTER = "newstate==10||(oldstate==10&&newstate==7)"  # TCP_LISTEN is 10, TCP_CLOSE is 7 (net/tcp_states.h)
_UDP_FUNCTION = "udp_lib_get_port"
_UDP_EVENT = "udp_bind"
_BUFFER_KIB = "64"  # per CPU; what overflows has long woken us
_READ_SIZE = 16 * 1024
_PAGE_IS_FULL = 3 * 1024  # one read gives at most a page of whole lines; a shorter one was the last
_READS_PER_WAKEUP = 8
_THREAD = re.compile(rb"-([0-9]{1,10}) +\[[0-9]+\]")


class TracefsSource:
    """The tracing instance `name` below `root`, as a wake-up source."""

    def __init__(self, root: Path = TRACEFS, name: str = "hostagent") -> None:
        self._root = root
        self._name = name
        self._instance = root / "instances" / name
        self._tcp = SourceState("tracefs inet_sock_set_state", TCP, TCP)
        self._udp = SourceState("kprobe udp_lib_get_port", UDP, NOTHING)

    @property
    def states(self) -> tuple[SourceState, ...]:
        """TCP and UDP apart: a kernel without kprobes still traces TCP."""
        return (self._tcp, self._udp)

    async def run(self, watch: Watch) -> NoReturn:
        """Trace until cancelled. Raises `SourceUnavailableError` when neither event can be had."""
        try:
            # In a thread, since making an instance takes the kernel up to a second under emulation.
            pipe, refusals = await trio.to_thread.run_sync(self._open)
        except OSError as exc:
            raise SourceUnavailableError(explain(exc, "tracefs")) from exc
        try:
            for state in self.states:
                if reason := refusals.get(state.name):
                    state.down(reason)
                else:
                    went_live(state, watch)
            await self._read(pipe, watch)
        except OSError as exc:
            raise SourceUnavailableError(explain(exc, "tracefs")) from exc
        finally:
            os.close(pipe)
            with contextlib.suppress(OSError):  # somebody looks into it right now: the next start removes it
                self._remove()

    async def _read(self, pipe: int, watch: Watch) -> NoReturn:
        while True:
            await trio.lowlevel.wait_readable(pipe)
            text = self._drain(pipe)
            tcp, udp = b" inet_sock_set_state: " in text, b" udp_bind: " in text
            self._tcp.wakeups += tcp
            self._udp.wakeups += udp
            pause = watch.wake(TCP_AND_UDP if tcp and udp else TCP if tcp else UDP if udp else NOTHING)
            watch.note_threads([int(digits) for digits in dict.fromkeys(_THREAD.findall(text))])
            if pause > 0:
                await trio.sleep(pause)

    def _drain(self, pipe: int) -> bytes:
        parts = []
        for _ in range(_READS_PER_WAKEUP):
            try:
                part = os.read(pipe, _READ_SIZE)
            except BlockingIOError:
                break
            if not part:  # only when someone wrote 0 to the instance's tracing_on
                raise SourceUnavailableError("tracefs: somebody turned tracing off in our instance")
            parts.append(part)
            if len(part) < _PAGE_IS_FULL:
                break
        return b"".join(parts)

    def _open(self) -> tuple[int, dict[str, str]]:
        """The pipe of a fresh instance, and why an event is missing by the name of its state. Raises `OSError`."""
        _mount(self._root)
        self._remove()
        self._instance.mkdir()
        try:
            return self._trace()
        except BaseException:
            self._remove()
            raise

    def _trace(self) -> tuple[int, dict[str, str]]:
        refusals = {}
        for state, setup in ((self._tcp, self._trace_tcp), (self._udp, self._trace_udp)):
            try:
                setup()
            except OSError as exc:
                refusals[state.name] = explain(exc, state.name)
        if len(refusals) == len(self.states):
            raise SourceUnavailableError("; ".join(refusals.values()))
        self._set("buffer_size_kb", _BUFFER_KIB)
        if (self._instance / "buffer_percent").exists():  # since 5.0; at 0 a single line makes the pipe readable
            self._set("buffer_percent", "0")
        return os.open(self._instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK), refusals

    def _trace_tcp(self) -> None:
        self._set(f"events/{_TCP_EVENT}/filter", _TCP_FILTER)
        self._set(f"events/{_TCP_EVENT}/enable", "1")

    def _trace_udp(self) -> None:
        # The relays' own sockets are bound when they are connected: without this each new flow would cost a dump.
        wanted = f"common_pid!={os.getpid()}"
        try:
            self._probe_udp(" snum=$arg2:u16")
            wanted += "&&snum!=0"
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            self._probe_udp("")  # before Linux 4.20, and on some architectures, arguments cannot be had by number
        self._set(f"events/{self._name}/{_UDP_EVENT}/filter", wanted)
        self._set(f"events/{self._name}/{_UDP_EVENT}/enable", "1")

    def _probe_udp(self, arguments: str) -> None:
        _write(self._root / "kprobe_events", f"p:{self._name}/{_UDP_EVENT} {_UDP_FUNCTION}{arguments}\n")

    def _set(self, file: str, text: str) -> None:
        _write(self._instance / file, text)

    def _remove(self) -> None:
        """Remove the instance, then the kprobe that it used. Raises `OSError` (EBUSY) when somebody reads it."""
        try:
            self._instance.rmdir()
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        try:
            _write(self._root / "kprobe_events", f"-:{self._name}/{_UDP_EVENT}\n")
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
                raise


def _write(path: Path, text: str) -> None:
    # Opening kprobe_events with O_TRUNC removes everybody's kprobes. One write(), since each is one command.
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def _mount(root: Path) -> None:
    """Mount tracefs where it belongs unless it is there. It stays: it is part of any system, and others may use it."""
    if (root / "instances").is_dir():
        return
    import ctypes  # only a system without systemd comes here

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tracefs", os.fsencode(root), b"tracefs", 0, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(root))
