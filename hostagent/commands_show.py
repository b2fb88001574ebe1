"""`list`, `status` and `ports`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from hostagent.api_client import ApiClient
from hostagent.cli import help_of, json_option, name_argument
from hostagent.cli_views import instance_lines, port_change_lines, port_lines, status_lines
from hostagent.errors import UserError
from hostagent.instances import find_instance, list_instances
from hostagent.lifecycle import InstanceState
from hostagent.terminal_output import can_redraw, colour, print_error, print_json, print_lines, width
from hostagent.terminal_redraw import redrawn_lines

if TYPE_CHECKING:
    from hostagent.api_shapes import Instance, PortShape
    from hostagent.instances import InstanceSummary

_ANSWERING: Final = {InstanceState.RUNNING, InstanceState.STARTING, InstanceState.STOPPING, InstanceState.DEGRADED}
_COUNTER_INTERVAL: Final = 1.0
"""Seconds between looks at counters while one watches; changes of state show at once."""


@click.command("list", help=help_of("list"))
@json_option
def list_command(as_json: bool) -> None:
    """Run `hostagent list`."""
    instances = [_shape(summary) for summary in list_instances()]
    if as_json:
        print_json({"instances": instances})
    else:
        print_lines(instance_lines(instances, width=width(), colour=colour()))


@click.command("status", help=help_of("status"))
@name_argument
@json_option
def status_command(name: str | None, as_json: bool) -> None:
    """Run `hostagent status`."""
    paths = find_instance(name)
    summary = next(summary for summary in list_instances() if summary.name == paths.name)
    document: dict[str, object] = {**_shape(summary)}
    if summary.state in _ANSWERING:
        try:
            document |= ApiClient(paths).status()
        except UserError as exc:
            document["error"] = document["error"] or exc.message
    if as_json:
        print_json(document)
    else:
        print_lines(status_lines(document, time.time(), colour=colour()))


@click.command("ports", help=help_of("ports"))
@name_argument
@click.option("-w", "--watch", is_flag=True, help="Go on showing changes until Ctrl-C.")
@json_option
def ports_command(name: str | None, watch: bool, as_json: bool) -> None:
    """Run `hostagent ports`."""
    paths = find_instance(name)
    client = ApiClient(paths)
    if not watch:
        ports = client.ports()
        if as_json:
            print_json({"ports": ports})
        else:
            print_lines(port_lines(ports, width=width(), colour=colour()))
        return
    listings = client.follow_ports(_COUNTER_INTERVAL)
    if as_json:
        for ports in listings:
            print_json({"ports": ports}, one_line=True)
    elif can_redraw():
        _redraw(listings)
    else:
        _print_changes(listings)
    print_error(f"{paths.name} is off")


def _print_changes(listings: Iterable[list[PortShape]]) -> None:
    shown: list[PortShape] = []
    for ports in listings:
        print_lines(port_change_lines(shown, ports))
        shown = ports


def _redraw(listings: Iterable[list[PortShape]]) -> None:
    """Draw every listing over the one before it, line by line, so that nothing flickers."""
    with redrawn_lines() as screen:
        for ports in listings:
            screen.show(partial(_lines_within, ports))


def _lines_within(ports: Sequence[PortShape], columns: int) -> list[str]:
    return port_lines(ports, width=columns, colour=colour())


def _shape(summary: InstanceSummary) -> Instance:
    return {
        "name": summary.name,
        "state": str(summary.state),
        "pid": summary.pid,
        "arch": summary.arch,
        "cpus": summary.cpus,
        "memory": summary.memory,
        "disk": summary.disk,
        "directory": str(summary.directory),
        "error": summary.error,
    }
