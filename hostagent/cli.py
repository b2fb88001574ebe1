"""The `hostagent` command: which subcommands there are, and what they have in common.

A start may cost 0.25 s of CPU, so subcommands are modules that are imported when they are asked for, `--help` needs
none of them, and nothing that `list`, `ports` or `--help` import loads trio, pydantic, rich or the protocol. A test
holds that.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
from click.shell_completion import CompletionItem

_COMMANDS: Final = {
    "up": ("commands_lifecycle", "Start an instance and wait until it is ready."),
    "down": ("commands_lifecycle", "Shut an instance down."),
    "ports": ("commands_show", "Show which guest ports are reachable, and why others are not."),
    "forward": ("commands_rules", "Add, remove and list forwarding rules while the instance runs."),
    "config": ("commands_rules", "Let a running instance follow its configuration."),
    "shell": ("commands_shell", "Open a shell in the guest, or run a command there."),
    "list": ("commands_show", "List the instances."),
    "status": ("commands_show", "Show an instance's state and all that serves it."),
    "logs": ("commands_logs", "Print the host agent's log, QEMU's or the serial console."),
    "events": ("commands_logs", "Print what happened in an instance."),
    "delete": ("commands_lifecycle", "Delete an instance and its disk."),
    "validate": ("commands_setup", "Check a configuration file."),
    "schema": ("commands_setup", "Print the JSON Schema of configuration files."),
    "doctor": ("commands_setup", "Check what hostagent needs of this machine."),
    "completion": ("commands_setup", "Print the completion script for a shell."),
}
"""Module and short help of every subcommand, in the order of `--help`."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"hostagent.{_COMMANDS[cmd_name][0]}")
        return cast("click.Command", getattr(module, f"{cmd_name}_command"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(n, help=text) for n, (_, text) in _COMMANDS.items() if n.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata  # costs more than the rest of a start

        click.echo(f"hostagent {metadata.version('hostagent')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """Linux virtual machines whose ports behave as if they were this machine's own.

    NAME may be left out where there is one instance. Exit status: 0 done, 1 something that you can mend, 2 wrong
    usage, 70 a fault of hostagent's own, 130 interrupted; that of the command for `shell`.
    """


def help_of(name: str) -> str:
    """The short help of a subcommand, which its own `--help` begins with."""
    return _COMMANDS[name][1]


def complete_instance(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of instances that begin like `incomplete`."""
    from hostagent.instances import instance_folders

    try:
        return [CompletionItem(paths.name) for paths in instance_folders() if paths.name.startswith(incomplete)]
    except OSError:
        return []


def complete_file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Configuration files and folders that begin like `incomplete`.

    Listed here, because the shell's own completion of files would take the place of all other candidates (bash).
    """
    from hostagent.paths import names_a_file

    begin = incomplete.rpartition("/")[2]
    folder = incomplete.removesuffix(begin)
    try:
        entries = sorted(Path(folder).expanduser().iterdir())
    except (OSError, RuntimeError):  # RuntimeError: the ~ of a user that there is not
        return []
    return [
        CompletionItem(f"{folder}{entry.name}{'/' if entry.is_dir() else ''}")
        for entry in entries
        if entry.name.startswith(begin) and (begin or not entry.name.startswith("."))
        if entry.name.isprintable() and (names_a_file(entry.name) or entry.is_dir())
    ]


def complete_configuration(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Instances, templates, configuration files and folders that begin like `incomplete`."""
    from hostagent.config.templates import template_names

    instances = complete_instance(ctx, parameter, incomplete)
    taken = {item.value for item in instances}
    names = (name for name in template_names() if name.startswith(incomplete) and name not in taken)
    templates = [CompletionItem(name, help="template") for name in names]
    return [*instances, *templates, *complete_file(ctx, parameter, incomplete)]


def name_argument(function: _Function) -> _Function:
    """The optional argument NAME."""
    return click.argument("name", required=False, shell_complete=complete_instance)(function)


def json_option(function: _Function) -> _Function:
    """The flag --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON in the documented shape.")(function)
