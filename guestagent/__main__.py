"""The guest agent's entry point: `guestagent --version`, `guestagent --self-test`.

A frozen agent carries its version as a data file VERSION beside the executable, because the host compares it with its
own at every boot; a checkout answers with the package's version.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def version() -> str:
    """The version that the host compares: package version plus content hash when frozen."""
    if getattr(sys, "frozen", False):
        return Path(sys.executable).with_name("VERSION").read_text(encoding="utf-8").strip()
    from importlib import metadata  # costs 20 ms and is never needed in a frozen agent

    return f"{metadata.version('hostagent')}+source"


def self_test() -> None:
    """Run what the agent cannot live without, once; any exception means that this build must not ship."""
    import socket

    import msgpack
    import trio

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
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def main() -> int:
    """Run the guest agent; the process's exit code."""
    parser = argparse.ArgumentParser(prog="guestagent")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--self-test", action="store_true", help="check that this build can run, and exit")
    arguments = parser.parse_args()
    if arguments.version:
        sys.stdout.write(version() + "\n")
    elif arguments.self_test:
        self_test()
        sys.stdout.write("self-test passed\n")
    else:
        parser.error("nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
