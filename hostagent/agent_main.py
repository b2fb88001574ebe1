"""The host agent as a process: `python -m hostagent.agent_main NAME`, started by `hostagent up`.

Standard output is a pipe to `up`: one JSON object per line about the phases of the start, and its end when the
instance is ready or cannot be. The instance's lock is held for as long as the process lives, which is how others know.

SIGTERM and SIGINT stop the guest in an orderly way; while it has not been ready yet, at once. SIGHUP means nothing.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from importlib import metadata

import trio

from hostagent.agent import Agent, Announce
from hostagent.errors import UserError
from hostagent.instance_lock import held_lock
from hostagent.launch_plan import read_plan
from hostagent.paths import InstancePaths


async def run_agent(paths: InstancePaths, announce: Announce) -> None:
    """Run the host agent of one instance until its QEMU ends; raises `UserError` when it cannot be started."""
    plan = read_plan(paths.launch_plan)
    with held_lock(paths):
        agent = Agent(paths, plan, metadata.version("hostagent"), announce)
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, agent)
            # What start-up made lives as long as the process: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            await agent.run()
            nursery.cancel_scope.cancel()


async def _stop_on_signal(agent: Agent, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            await agent.stop(force=not agent.ready)


def _tell_starter(line: dict[str, object]) -> None:
    """Write one line to `up`, and close the pipe behind the last one. `up` may be gone: nobody minds."""
    try:
        print(json.dumps(line), flush=True)  # noqa: T201 - the pipe to `up`
        if line["event"] in ("ready", "error"):
            _close_output()
    except BrokenPipeError:
        _close_output()


def _close_output() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def main() -> int:
    """Entry point; returns the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    code = 0
    try:
        trio.run(lambda: run_agent(InstancePaths.of(sys.argv[1]), _tell_starter))
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
