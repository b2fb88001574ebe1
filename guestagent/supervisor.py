"""Starts the agent, and starts it again within a moment when it dies.

Theory of operation. Python's start and the agent's imports take seconds under emulation, which is how long a killed
agent's forwards would be away. So the process that systemd starts is not the agent. It imports what the agent needs,
forks, and waits; the child is the agent. When the child dies, the next one is forked from what is in memory already:
milliseconds. The supervisor holds no descriptor, no thread and no event loop, and does nothing that could fail.

- What the supervisor has in memory is frozen out of the garbage collector's sight before the fork, so that parent and
  child share the pages for as long as they live.
- Signals are blocked and taken one by one (sigtimedwait(2)), so nothing can come in between a look and a wait.
- SIGTERM and SIGINT are passed on as SIGTERM, and the agent's exit status becomes ours. An agent that does not end
  within `STOP_BOUND` is killed. It is in a process group of its own, so that Ctrl-C reaches it once, through us.
- The agent gets SIGTERM when we die (PR_SET_PDEATHSIG): it never outlives us, and still ends its commands.
- The commands of a killed agent become our children (PR_SET_CHILD_SUBREAPER), are hung up, and killed when that does
  not end them, as the agent does with a command whose user has left. What they left running in the background stays.
- An agent that hangs (`heartbeat`) is asked where it stands, in its log, and killed: from there on it is a dead one.
- An agent that dies again and again gets pauses, and after `MOST_QUICK_DEATHS` we end too, with its status: then
  systemd starts all of it anew, from the disk.

Rejected: systemd's own restart alone (seconds, see above); a second agent kept running in reserve (the virtio port
can be opened once, and memory would double).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from guestagent import heartbeat
from guestagent.command_groups import HANGUP_SECONDS, CommandGroups, children_since
from guestagent.heartbeat import Heartbeat, Watchdog

STOP_BOUND = 8.0
"""Seconds that an agent which was told to end may take; systemd kills us after 10 (TimeoutStopSec)."""

LAST_WORDS = 2.0
"""Seconds that an agent which hangs has to write down where."""

QUICK = 1.0
"""Seconds of life below which a death counts as one of a row."""

MOST_QUICK_DEATHS = 10
FIRST_PAUSE, MOST_PAUSE = 0.05, 1.0

BUG = 70
"""EX_SOFTWARE of sysexits.h."""

TELL_WHERE: Final = signal.SIGUSR1
"""Makes an agent write the stack of each thread to stderr (faulthandler), whatever it is doing."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_TAKEN: Final = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Deaths:
    """How long to wait before the next agent, from how long the last ones lived."""

    quick: int = 0
    """Of them in a row."""

    def pause_after(self, lifetime: float) -> float | None:
        """Seconds to wait; None when it is no use any more."""
        if lifetime >= QUICK:
            self.quick = 0
            return 0.0
        self.quick += 1
        if self.quick > MOST_QUICK_DEATHS:
            return None
        return float(min(MOST_PAUSE, FIRST_PAUSE * 2 ** (self.quick - 1)))


def supervise(agent: Callable[[], int], groups: CommandGroups, beats: Heartbeat) -> int:
    """Run `agent` in a child, again whenever it dies or hangs, until a signal asks for the end; the exit status.

    The calling process must have one thread. `agent` runs with the signals as the caller had them, writes its commands
    into `groups`, and counts `beats`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        gc.collect()
        gc.freeze()
        return _Supervisor(agent, groups, beats, before).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Supervisor:
    """What is known about the agent, its deaths, and the commands that are being ended."""

    def __init__(self, agent: Callable[[], int], groups: CommandGroups, beats: Heartbeat, mask: set[int]) -> None:
        self._agent = agent
        self._groups = groups
        self._beats = beats
        self._watchdog = Watchdog()
        self._mask = mask
        self._deaths = Deaths()
        self._pid = 0
        """The agent's; 0 while there is none."""
        self._began = 0.0
        self._asked = False
        self._last: int | None = None
        """Our exit status, once there will be no other agent."""
        self._doomed: set[int] = set()
        self._due: dict[Callable[[], None], float] = {}

    def run(self) -> int:
        """Serve until the agent shall not be started again, and its commands have ended."""
        self._start()
        while self._last is None or self._doomed:
            number = self._wait()
            if number == signal.SIGCHLD:
                if (status := self._agent_status()) is not None:
                    self._after(status)
                self._reap()
            elif number is not None:
                self._ask()
        return self._last

    def _wait(self) -> int | None:
        """The next signal, or None after something that was due was done."""
        if not self._due:
            return signal.sigwaitinfo(_TAKEN).si_signo
        action, when = min(self._due.items(), key=lambda item: item[1])
        taken = signal.sigtimedwait(_TAKEN, max(0.0, when - time.monotonic()))
        if taken is not None:
            return taken.si_signo
        del self._due[action]
        action()
        return None

    # ------------------------------------------------------------------ the agent

    def _start(self) -> None:
        us = os.getpid()
        self._began = time.monotonic()
        try:
            self._pid = os.fork()
        except OSError as exc:  # no memory, or no more processes: that may pass
            _log.error("the agent cannot be started now: %s", exc.strerror)
            self._due[self._start] = self._began + MOST_PAUSE
            return
        if self._pid == 0:
            _be_agent(self._agent, us, self._mask)
        self._watchdog = Watchdog()
        self._due[self._look] = self._began + heartbeat.LOOK

    def _agent_status(self) -> int | None:
        """The wait status of an agent that has ended."""
        if not self._pid:
            return None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return status if pid else None

    def _after(self, status: int) -> None:
        """Do what follows from the agent's end."""
        self._pid = 0
        self._due.pop(self._kill, None)
        self._due.pop(self._look, None)
        self._hang_up()
        code = os.waitstatus_to_exitcode(status)
        how = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
        pause = self._deaths.pause_after(time.monotonic() - self._began)
        if self._asked or pause is None:
            self._last = code if code >= 0 else 128 - code
        if self._asked:
            _log.log(logging.WARNING if code else logging.INFO, "the agent %s", how)
        elif pause is None:
            _log.critical("the agent %s, as it did %d times before: starting all anew", how, MOST_QUICK_DEATHS)
            self._last = self._last or BUG
        else:
            _log.error("the agent %s: starting it again", how)
            self._due[self._start] = time.monotonic() + pause

    def _ask(self) -> None:
        """End, as soon as the agent has."""
        if self._asked:
            return
        self._asked = True
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            self._due[self._kill] = time.monotonic() + STOP_BOUND
        else:
            self._due.pop(self._start, None)
            self._last = self._last or 0

    def _look(self) -> None:
        """End an agent that hangs."""
        if not self._watchdog.hangs(self._beats.count):
            self._due[self._look] = time.monotonic() + heartbeat.LOOK
            return
        _log.error("the agent hangs; where it does:")
        os.kill(self._pid, TELL_WHERE)
        self._due[self._kill] = min(time.monotonic() + LAST_WORDS, self._due.get(self._kill, math.inf))

    def _kill(self) -> None:
        _log.error("the agent does not end; killing it")
        os.kill(self._pid, signal.SIGKILL)

    # ------------------------------------------------------------------ its commands

    def _hang_up(self) -> None:
        """Hang up the commands of an agent that is dead. Before any of them is reaped, so that each is still itself."""
        left = self._groups.take()
        found = {group for group in left.groups if _is_child(group)}
        if left.starting_since is not None:
            found.update(children_since(os.getpid(), left.starting_since))
        for group in found:
            _signal_group(group, signal.SIGHUP)
            _signal_group(group, signal.SIGCONT)  # a stopped process hears nothing else
        self._doomed |= found
        if found:
            self._due[self._kill_doomed] = time.monotonic() + HANGUP_SECONDS

    def _kill_doomed(self) -> None:
        for group in self._doomed:
            _signal_group(group, signal.SIGKILL)
        self._doomed.clear()

    def _reap(self) -> None:
        """Collect what others left to us."""
        with contextlib.suppress(ChildProcessError):
            for pid in _ended_children(self._pid):
                os.waitpid(pid, 0)
                self._doomed.discard(pid)


def _be_agent(agent: Callable[[], int], supervisor: int, mask: set[int]) -> NoReturn:
    """What the child does, to its end."""
    code = BUG
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:  # it died before
            os._exit(BUG)
        os.setpgid(0, 0)
        faulthandler.register(TELL_WHERE)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = agent()
    except BaseException:
        _log.critical("the agent ends because of a bug", exc_info=True)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)  # what the supervisor would do at its end is not the child's to do


def _ended_children(agent: int) -> Iterator[int]:
    """Children of ours that wait to be collected, without the agent, whose end has an order."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == agent:
            return  # SIGCHLD tells of it: it came after the look at the agent, and so is still pending
        yield ended.si_pid


def _is_child(pid: int) -> bool:
    """Whether `pid` is a child of ours, alive or to be collected: then no other process can have its number."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, number)  # it has not come as far as leading its own


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
