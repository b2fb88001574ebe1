"""The host agent as a process: `python -m hostagent.agent_main NAME`, started by `hostagent up`.

Standard output is a pipe to `up`: one JSON object per line about the phases of the start, and its end when the
instance is ready or cannot be. The instance's lock is held for as long as the process lives, which is how others know.

SIGTERM and SIGINT stop the guest in an orderly way; a second one, or one before the guest was ready, at once. SIGHUP
means nothing.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib import metadata

import trio

from hostagent.agent import Agent, Announce
from hostagent.errors import UserError
from hostagent.instance_lock import held_lock
from hostagent.launch_plan import read_plan
from hostagent.paths import InstancePaths
from hostagent.terminal_output import OutputClosedError, close_output

DESCRIPTORS = 65_536
"""Open files that this process wants: both listeners of every port that a guest may have, every stream, and then some.
The usual limit is 1,024, which a shell keeps for the sake of old programs (select(2))."""


async def run_agent(
    paths: InstancePaths, announce: Announce, *, ended_by: Collection[int] = (signal.SIGTERM, signal.SIGINT)
) -> None:
    """Run the host agent of one instance until its machine is off; raises `UserError` when it cannot be started.

    The caller holds the instance's lock (`held_lock`). A signal of `ended_by` stops the guest.
    """
    plan = read_plan(paths.launch_plan)
    _raise_descriptor_limit()
    agent = Agent(paths, plan, metadata.version("hostagent"), announce)
    async with trio.open_nursery() as nursery:
        stopping: dict[str, object] = {"event": "notice", "message": f"stopping {paths.name}"}
        await nursery.start(_stop_on_signal, agent, ended_by, partial(announce, stopping))
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await agent.run()
        nursery.cancel_scope.cancel()


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _stop_on_signal(
    agent: Agent,
    ended_by: Collection[int],
    say: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*ended_by) as signals:
        task_status.started()
        async with trio.open_nursery() as stops:
            asked = False
            async for number in signals:
                # Whoever asks twice does not want to wait for the guest.
                stops.start_soon(partial(agent.stop, force=asked or not agent.ready))
                if number == signal.SIGINT and not asked:  # after others there may be no terminal to write to
                    with suppress(OutputClosedError):  # Ctrl-C also ends what the output is piped to
                        say()
                asked = True


def _tell_starter(line: dict[str, object]) -> None:
    """Write one line to `up`, and close the pipe behind the last one. `up` may be gone: nobody minds."""
    try:
        print(json.dumps(line), flush=True)  # noqa: T201 - the pipe to `up`
        if line["event"] in ("ready", "error"):
            close_output()
    except BrokenPipeError:
        close_output()


def main() -> int:
    """Entry point; returns the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    code = 0
    try:
        paths = InstancePaths.of(sys.argv[1])
        with held_lock(paths):
            trio.run(run_agent, paths, _tell_starter)
    except* UserError as group:
        error = group.exceptions[0]
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, UserError)
        _tell_starter({"event": "error", "message": error.message, "hint": error.hint})
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
