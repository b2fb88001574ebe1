"""Every test runs a real supervisor with real children; only what the agent does is the test's own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from guestagent.supervisor import FIRST_PAUSE, MOST_PAUSE, MOST_QUICK_DEATHS, QUICK, Deaths

ROOT = Path(__file__).resolve().parents[2]
BOUND = 30.0
"""Seconds that anything here may take on a busy machine."""

DRIVER = """
import os, signal, subprocess, sys, time
from guestagent import heartbeat, supervisor
from guestagent.command_groups import CommandGroups

groups, beats = CommandGroups(), heartbeat.Heartbeat()

def say(*words):
    print(*words, flush=True)

def agent():
    say("agent", os.getpid())
{agent}

{set_up}
sys.exit(supervisor.supervise(agent, groups, beats))
"""
WAIT = """
    signal.sigwait({signal.SIGTERM})
    return 0
"""
BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})"  # what a sigwait(3) of the agent needs


class Supervised:
    """A running supervisor, and what its agents print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> list[str]:
        """The words of the next line; empty at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def agent(self) -> int:
        """The next agent's process id."""
        word, pid = self.line()
        assert word == "agent"
        return int(pid)

    def next_agent(self) -> tuple[int, str]:
        """The next agent's process id, and what was written before it started."""
        assert self.process.stdout is not None
        before = ""
        for line in self.process.stdout:
            if line.startswith("agent "):
                return int(line.split()[1]), before
            before += line
        raise AssertionError(f"no agent follows: {before}")

    def signalled(self, number: int) -> int:
        """The exit status after signal `number`."""
        self.process.send_signal(number)
        return self.process.wait(BOUND)

    def children(self) -> set[int]:
        """Processes that the supervisor has, alive or not collected."""
        return {child.pid for child in psutil.Process(self.process.pid).children()}


@contextmanager
def supervised(agent: str = WAIT, set_up: str = BLOCK) -> Iterator[Supervised]:
    script = DRIVER.format(agent=agent, set_up=set_up)
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Supervised(process)
        finally:
            if process.poll() is None:
                end_all_of(process)


def end_all_of(process: subprocess.Popen[str]) -> None:
    """Kill the supervisor last: what its agents leave becomes its own, and so is found, whenever it was started."""
    process.send_signal(signal.SIGSTOP)
    while left := [child for child in psutil.Process(process.pid).children(recursive=True) if is_alive(child)]:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and does not only wait to be collected."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for_end(pid: int) -> None:
    """Wait until the process has ended (pidfd_open(2)); whether anybody collects it does not matter."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], BOUND)[0], f"process {pid} still runs"
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until `condition` is true, for what no event tells."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def ending(pid: int) -> Iterator[int]:
    """A process that is killed at the end of the block, whatever the test found."""
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_killed_agent_is_started_again_by_the_same_supervisor() -> None:
    with supervised() as it:
        pids = [it.agent()]
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
            os.kill(pids[-1], number)
            began = time.monotonic()
            pids.append(it.agent())
            print(f"started again after {(time.monotonic() - began) * 1e3:.0f} ms")
        assert len(set(pids)) == 4
        assert it.children() == {pids[-1]}
        assert it.signalled(signal.SIGTERM) == 0


def test_an_agent_that_ends_unasked_is_started_again() -> None:
    with supervised() as it:
        first = it.agent()
        os.kill(first, signal.SIGTERM)
        assert it.agent() != first
        assert it.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_passed_on_and_so_is_the_status(number: signal.Signals) -> None:
    agent = """
    say(signal.sigwait({signal.SIGTERM, signal.SIGINT}).name)
    return 3
"""
    with supervised(agent, "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})") as it:
        it.agent()
        assert it.signalled(number) == 3
        assert it.line() == ["SIGTERM"]
        assert it.line() == []


def test_a_bug_in_the_agent_has_a_status_of_its_own() -> None:
    with supervised("    raise ValueError(1)", "supervisor.MOST_PAUSE = 0.01") as it:
        pids = [it.agent() for _ in range(MOST_QUICK_DEATHS + 1)]
        assert it.process.wait(BOUND) == 70
        assert len(set(pids)) == len(pids)
        assert it.line() == []


def test_the_status_of_an_agent_that_dies_in_a_row_becomes_ours() -> None:
    with supervised("    os.kill(os.getpid(), signal.SIGKILL)", "supervisor.MOST_PAUSE = 0.01") as it:
        assert it.process.wait(BOUND) == 128 + signal.SIGKILL


def test_no_agent_outlives_its_supervisor() -> None:
    with supervised(set_up="") as it, ending(it.agent()) as agent:
        it.process.kill()
        wait_for_end(agent)


def test_an_agent_that_does_not_end_is_killed() -> None:
    agent = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("deaf")
    while True:
        signal.pause()
"""
    with supervised(agent, "supervisor.STOP_BOUND = 0.1") as it:
        it.agent()
        assert it.line() == ["deaf"]
        assert it.signalled(signal.SIGTERM) == 128 + signal.SIGKILL


def test_a_stopped_agent_ends_with_its_supervisor() -> None:
    with supervised(set_up="supervisor.STOP_BOUND = 0.1") as it:
        agent = it.agent()
        os.kill(agent, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(agent).status() == psutil.STATUS_STOPPED)  # a SIGTERM may overtake it
        assert it.signalled(signal.SIGTERM) == 128 + signal.SIGKILL


QUICK_LOOKS = "os.dup2(1, 2); heartbeat.LOOK = 0.2; supervisor.LAST_WORDS = 0.5"


def test_an_agent_that_hangs_says_where_and_is_replaced() -> None:
    agent = """
    def deep_inside():
        while True:
            signal.pause()
    deep_inside()
"""
    with supervised(agent, QUICK_LOOKS) as it:
        first = it.agent()
        second, said = it.next_agent()
        assert any(line.split()[-1:] == ["deep_inside"] for line in said.splitlines())  # the traceback's line
        assert second != first


def test_a_stopped_agent_is_replaced() -> None:
    agent = """
    while True:
        beats.beat()
        time.sleep(0.001)
"""
    with supervised(agent, QUICK_LOOKS) as it:
        first = it.agent()
        os.kill(first, signal.SIGSTOP)
        assert it.next_agent()[0] != first


def test_the_end_in_a_pause_is_at_once() -> None:
    with supervised("    return 5", "supervisor.FIRST_PAUSE = supervisor.MOST_PAUSE = 1000") as it:
        wait_for_end(it.agent())
        assert it.signalled(signal.SIGTERM) in (0, 5)  # whichever it hears of first


COMMAND = """
    def command(script):
        entry = groups.reserve()
        process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        process.stdout.readline()
        return entry, process
"""


def test_commands_of_a_killed_agent_are_hung_up_and_what_is_in_the_background_stays() -> None:
    agent = f"""{COMMAND}
    entry, shell = command("echo; sleep 1000")
    entry.started(shell.pid)
    entry, leader = command("sleep 1000 & echo $!; wait")
    entry.started(leader.pid)
    background = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!"], stdout=subprocess.PIPE)
    say(shell.pid, leader.pid, int(background.stdout.readline()))
    {WAIT}"""
    with supervised(agent) as it:
        first = it.agent()
        shell, leader, background = map(int, it.line())
        with ending(background):
            os.kill(first, signal.SIGKILL)
            it.agent()
            wait_for_end(shell)
            wait_for_end(leader)
            os.kill(background, 0)


def test_a_command_that_ignores_the_hangup_is_killed() -> None:
    agent = f"""{COMMAND}
    entry, shell = command("trap '' HUP; echo; while :; do sleep 1; done")
    entry.started(shell.pid)
    say(shell.pid)
    {WAIT}"""
    with supervised(agent, f"{BLOCK}; supervisor.HANGUP_SECONDS = 0.1") as it:
        first = it.agent()
        (shell,) = map(int, it.line())
        os.kill(first, signal.SIGKILL)
        it.agent()
        wait_for_end(shell)


def test_a_command_that_was_being_started_ends_too() -> None:
    agent = f"""{COMMAND}
    entry, shell = command("echo; sleep 1000")
    say(shell.pid)
    {WAIT}"""
    with supervised(agent) as it:
        first = it.agent()
        (shell,) = map(int, it.line())
        with ending(shell):
            os.kill(first, signal.SIGKILL)
            it.agent()
            wait_for_end(shell)


def test_a_supervisor_that_ends_ends_the_commands_of_a_killed_agent_first() -> None:
    agent = f"""{COMMAND}
    entry, shell = command("trap '' HUP; echo; while :; do sleep 1; done")
    entry.started(shell.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(shell.pid)
    while True:
        signal.pause()
"""
    with supervised(agent, "supervisor.STOP_BOUND = supervisor.HANGUP_SECONDS = 0.1") as it:
        it.agent()
        (shell,) = map(int, it.line())
        with ending(shell):
            assert it.signalled(signal.SIGTERM) == 128 + signal.SIGKILL
            wait_for_end(shell)


def test_processes_that_lost_their_parent_are_collected() -> None:
    agent = f"""
    subprocess.run(["sh", "-c", "for i in 1 2 3; do sleep 0 & done"], check=True)
    say("done")
    {WAIT}"""
    with supervised(agent) as it:
        pid = it.agent()
        assert it.line() == ["done"]
        wait_until(lambda: it.children() == {pid})


def test_the_first_deaths_cost_little_and_later_ones_more_until_it_is_no_use() -> None:
    deaths = Deaths()
    pauses = [deaths.pause_after(QUICK / 2) for _ in range(MOST_QUICK_DEATHS + 1)]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] is None
    waits = [pause for pause in pauses if pause is not None]
    assert waits == sorted(waits)
    assert waits[-1] == MOST_PAUSE


def test_an_agent_that_has_lived_is_started_at_once() -> None:
    deaths = Deaths()
    for _ in range(MOST_QUICK_DEATHS - 1):
        deaths.pause_after(0)
    assert deaths.pause_after(QUICK) == 0
    assert deaths.pause_after(0) == FIRST_PAUSE
