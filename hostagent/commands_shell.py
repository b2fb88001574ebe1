"""`shell`: what stands before `--` is ours, what follows it is the guest's."""

from __future__ import annotations

from typing import Final

import click

from hostagent.cli import help_of, name_argument
from hostagent.errors import UserError

_SEPARATOR: Final = "--"
_COMMAND: Final = "hostagent.shell.command"


class _ShellCommand(click.Command):
    """Keeps the words behind the first `--` as they are; click alone would drop it and not tell them apart."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        command: list[str] = []
        if _SEPARATOR in args:
            at = args.index(_SEPARATOR)
            args, command = args[:at], args[at + 1 :]
            if not command and not ctx.resilient_parsing:
                ctx.fail("Nothing follows --: write the command there, or leave -- out for a login shell.")
        ctx.meta[_COMMAND] = tuple(command)
        words = len(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            if words < 2 or command:
                raise
            raise click.UsageError(f"{exc.format_message()} Write -- before the command to run.", ctx) from exc

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND [ARGUMENT]...]"]


@click.command("shell", cls=_ShellCommand, help=help_of("shell") + " Its exit status becomes ours.")
@name_argument
@click.option("-u", "--user", default="", help="User in the guest; the instance's own otherwise.")
@click.option("-d", "--directory", default="", help="Folder to start in; the user's home otherwise.")
@click.option("-t/-T", "--tty/--no-tty", "terminal", default=None, help="With or without a terminal in the guest.")
@click.pass_context
def shell_command(ctx: click.Context, name: str | None, user: str, directory: str, terminal: bool | None) -> int:
    """Run `hostagent shell`."""
    from hostagent.instances import find_instance
    from hostagent.shell_session import run_shell

    command = ctx.meta[_COMMAND]
    try:
        paths = find_instance(name)
    except UserError as exc:
        if name is None or command:
            raise
        raise UserError(exc.message, f"{exc.hint}; for a command: `hostagent shell [NAME] -- {name}`") from exc
    return run_shell(paths, command, user=user, directory=directory, terminal=terminal)
