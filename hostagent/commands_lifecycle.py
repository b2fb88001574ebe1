"""`up`, `down` and `delete`."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from hostagent.api_client import ApiClient
from hostagent.cli import complete_configuration, complete_instance, help_of, json_option, name_argument
from hostagent.errors import UserError
from hostagent.paths import InstancePaths
from hostagent.terminal_output import can_redraw, colour, print_json, print_lines, width

if TYPE_CHECKING:
    from hostagent.api_shapes import PortShape

NOT_RUNNING: Final = "not running"
"""What `shutdown.down` returns when there was nothing to stop."""

_DECLINED: Final = 1
"""Exit status: what was asked for was not done."""


@click.command("up", help=help_of("up"))
@click.argument(
    "configuration", required=False, metavar="[CONFIG.yaml|TEMPLATE|NAME]", shell_complete=complete_configuration
)
@click.option("--name", help="Name of the instance; that of the file or template otherwise.")
@click.option("--foreground", is_flag=True, help="Stay, and stop the instance with Ctrl-C.")
@json_option
def up_command(configuration: str | None, name: str | None, foreground: bool, as_json: bool) -> None:
    """Run `hostagent up`."""
    from hostagent import startup, startup_display

    # One that was ignored before, by nohup(1) or a shell's `&`, stays so.
    ended_by = [number for number in startup.ENDED_BY if signal.getsignal(number) is not signal.SIG_IGN]
    bring_up = partial(startup.up, configuration, name=name, foreground=foreground, ended_by=ended_by)
    if as_json:
        paths = bring_up(show=startup_display.show_json)
        if not foreground:
            print_json({"event": "ports", "ports": _ports(paths)}, one_line=True)
        return
    make_display = startup_display.LiveDisplay if can_redraw() else startup_display.PlainDisplay
    with make_display(foreground=foreground) as display:
        paths = bring_up(show=display.show)
    if not foreground:
        from hostagent.cli_views import port_lines

        print_lines(["", *port_lines(_ports(paths), width=width(), colour=colour())])
        print_lines(["", f"open a shell with: hostagent shell {paths.name}"])


def _ports(paths: InstancePaths) -> list[PortShape]:
    return ApiClient(paths).ports()


@click.command("down", help=help_of("down"))
@name_argument
@click.option("--force", is_flag=True, help="Do not ask the guest: like pulling the plug.")
@json_option
def down_command(name: str | None, force: bool, as_json: bool) -> None:
    """Run `hostagent down`."""
    from hostagent.instances import find_instance
    from hostagent.shutdown import down

    paths, began = find_instance(name), time.monotonic()
    needed = down(paths, force=force, show=lambda event: None if as_json else print_lines([f"{event['message']} …"]))
    seconds = time.monotonic() - began
    if as_json:
        print_json({"name": paths.name, "stopped_by": needed, "seconds": round(seconds, 3)})
    elif needed == NOT_RUNNING:
        print_lines([f"{paths.name} was not running"])
    else:
        print_lines([f"{paths.name} is off after {seconds:.1f} s, by way of: {needed}"])


@click.command("delete", help=help_of("delete"))
@click.argument("name", shell_complete=complete_instance)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and end the instance if it runs.")
def delete_command(name: str, yes: bool, force: bool) -> int | None:
    """Run `hostagent delete`."""
    from hostagent.instances import delete_instance, find_instance, require_stopped

    paths = find_instance(name)
    if not (yes or force):
        require_stopped(paths)
        if not sys.stdin.isatty():
            raise UserError("deleting needs a confirmation", f"run `hostagent delete --yes {paths.name}`")
        if not click.confirm(f"Delete {paths.name} and everything on its disk?"):
            print_lines(["nothing was deleted"])
            return _DECLINED
    delete_instance(paths, force=force)
    print_lines([f"{paths.name} is deleted"])
    return None
