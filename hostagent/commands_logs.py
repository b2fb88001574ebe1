"""`logs` and `events`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import click

from hostagent.api_client import ApiClient
from hostagent.cli import help_of, json_option, name_argument
from hostagent.cli_views import event_line, plain
from hostagent.errors import UserError
from hostagent.instances import find_instance
from hostagent.terminal_output import print_json, print_lines

if TYPE_CHECKING:
    from hostagent.api_shapes import EventShape

_FOLLOW_INTERVAL: Final = 0.2
"""Seconds between looks at a growing file: QEMU writes two of the three, so there is nobody who could tell us."""


@click.command("logs", help=help_of("logs"))
@name_argument
@click.option("--agent", "which", flag_value="agent", default=True, help="The host agent's log (this is the default).")
@click.option("--serial", "which", flag_value="serial", help="The guest's serial console.")
@click.option("--qemu", "which", flag_value="qemu", help="What QEMU printed.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=None, help="Begin with the last so many lines.")
@click.option("--raw", is_flag=True, help="Print the file as it is, escape sequences and all.")
def logs_command(name: str | None, which: str, follow: bool, lines: int | None, raw: bool) -> None:
    """Run `hostagent logs`."""
    paths = find_instance(name)
    path = {"agent": paths.agent_log, "serial": paths.serial_log, "qemu": paths.qemu_log}[which]
    if not path.exists() and not follow:
        raise UserError(f"there is no {path.name} yet", f"it begins with `hostagent up {paths.name}`")
    readable = _readable if which == "agent" else plain
    for line in tail(path, lines, follow=follow):
        print_lines([line if raw else readable(line)])


def tail(path: Path, count: int | None, *, follow: bool) -> Iterator[str]:
    """The last `count` lines of a file (None: all); then those that are added, also to a file that takes its place."""
    file = _open(path)
    if file is not None:
        yield from deque(_lines(file, unfinished=not follow), count)
    try:
        while follow:
            time.sleep(_FOLLOW_INTERVAL)
            replaced = file is not None and _is_replaced(file, path)
            if file is not None:
                yield from _lines(file, unfinished=replaced)
            if file is not None and replaced:
                file.close()
            if file is None or replaced:
                file = _open(path)
    finally:
        if file is not None:
            file.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _lines(file: BinaryIO, *, unfinished: bool) -> Iterator[str]:
    """The lines from here to the end; the last one only if it is finished, or with `unfinished`."""
    while line := file.readline():
        if not line.endswith(b"\n") and not unfinished:
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def _is_replaced(file: BinaryIO, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return there.st_ino != os.fstat(file.fileno()).st_ino or there.st_size < file.tell()


def _readable(line: str) -> str:
    """A line of agent.log for people; one that is no event (a crash tears lines) as it is."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and {"time", "kind"} <= event.keys():
            return event_line(cast("EventShape", event))
    return plain(line)


@click.command("events", help=help_of("events"))
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--after", type=click.IntRange(0), help="Only events with larger ids.")
@json_option
def events_command(name: str | None, follow: bool, after: int | None, as_json: bool) -> None:
    """Run `hostagent events`."""
    for event in ApiClient(find_instance(name)).events(after=after, follow=follow):
        if as_json:
            print_json(event, one_line=True)
        else:
            print_lines([event_line(event)])
