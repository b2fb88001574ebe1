"""The guest agent's entry point: the supervisor, and in its child the agent.

A frozen agent carries its version as a data file VERSION beside the executable, because the host compares it with its
own at every boot; a checkout answers with the package's version.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from guestagent.command_groups import CommandGroups
from guestagent.heartbeat import BEAT, Heartbeat


def version() -> str:
    """The version that the host compares: package version plus content hash when frozen."""
    if getattr(sys, "frozen", False):
        return Path(sys.executable).with_name("VERSION").read_text(encoding="utf-8").strip()
    from importlib import metadata  # costs 20 ms and is never needed in a frozen agent

    return f"{metadata.version('hostagent')}+source"


def self_test() -> None:
    """Run what the agent cannot live without, once; any exception means that this build must not ship."""
    import ctypes  # what is imported late must be in the build too
    import errno
    import socket

    import msgpack
    import trio

    import guestagent.agent
    import guestagent.supervisor

    async def echo() -> None:
        near, far = trio.socket.socketpair()
        with near, far:
            packed = msgpack.packb([1, b"\x00\xff", "ü"])
            await near.send(packed)
            if msgpack.unpackb(await far.recv(len(packed)), raw=False) != [1, b"\x00\xff", "ü"]:
                raise RuntimeError("msgpack did not give back what it was given")

    trio.run(echo)
    if msgpack.Packer.__module__ != "msgpack._cmsgpack":
        raise RuntimeError("msgpack runs without its C extension")
    ctypes.CDLL(None)
    guestagent.agent.introduce(version())
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT):  # a build machine may not allow it
            raise


def serve(channel: str) -> int:
    """Keep an agent running until SIGTERM or SIGINT; the process's exit code."""
    import guestagent.agent  # noqa: F401 - so that no child has to
    from guestagent.supervisor import supervise

    groups, beats = CommandGroups(), Heartbeat()
    return supervise(partial(be_agent, channel, version(), groups, beats), groups, beats)


def be_agent(channel: str, own_version: str, groups: CommandGroups, beats: Heartbeat) -> int:
    """Be the agent until SIGTERM; the process's exit code.

    Who stops the agent is the guest's shutdown, nearly always, so the host hears that the ports are gone. They stay
    where the signal says that our supervisor died: then another agent follows.
    """
    import os
    import signal

    import trio

    from guestagent.agent import GuestAgent
    from guestagent.journal import notify_ready

    supervisor = os.getppid()

    async def beat() -> NoReturn:
        while True:
            beats.beat()
            await trio.sleep(BEAT)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                agent = GuestAgent(channel, own_version, nursery, groups)
                nursery.start_soon(agent.run)
                notify_ready()
                await anext(signals)
                if os.getppid() == supervisor:
                    agent.withdraw_ports()
                nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    except Exception:
        logging.getLogger("guestagent").critical("the guest agent ends because of a bug", exc_info=True)
        return 70
    return 0


def main() -> int:
    """Run the guest agent; the process's exit code."""
    parser = argparse.ArgumentParser(prog="guestagent", description="hostagent's agent in the guest")
    parser.add_argument(
        "--channel",
        default="hostagent.0",
        metavar="PORT",
        help="name of the virtio port, or a path (default: %(default)s)",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--self-test", action="store_true", help="check that this build can run, and exit")
    arguments = parser.parse_args()
    if arguments.version:
        sys.stdout.write(version() + "\n")
        return 0
    if arguments.self_test:
        self_test()
        sys.stdout.write("self-test passed\n")
        return 0
    from guestagent.journal import log_to_stderr

    log_to_stderr(arguments.log_level)
    return serve(arguments.channel)


if __name__ == "__main__":
    sys.exit(main())
