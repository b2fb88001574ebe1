"""`validate`, `schema`, `doctor` and `completion`: what one needs before there is an instance."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from hostagent.cli import cli, complete_file, help_of, json_option
from hostagent.errors import UserError
from hostagent.terminal_output import colour, print_error, print_json, print_lines, width

_TAKEN: Final = "COMPREPLY+=($value)"
"""How click's script for bash takes a candidate; other shells do not need the following."""

_TAKEN_AS_A_PATH: Final = 'COMPREPLY+=("${value// /\\\\ }"); [[ $value == */ ]] && compopt -o nospace'
"""So that blanks stay in the name, and a folder's can be gone on with."""


@click.command("validate", help=help_of("validate"))
@click.argument("file", type=click.Path(path_type=Path), shell_complete=complete_file)
def validate_command(file: Path) -> None:
    """Run `hostagent validate`."""
    from hostagent.config.loader import read_config

    loaded = read_config(file)
    for warning in loaded.warnings:
        print_error(f"warning: {warning.described(str(file))}")
    print_lines([f"{click.format_filename(file)} is valid"])


@click.command("schema", help=help_of("schema"))
def schema_command() -> None:
    """Run `hostagent schema`."""
    from hostagent.config.editor_schema import json_schema

    print_json(json_schema())


@click.command("doctor", help=help_of("doctor"))
@json_option
def doctor_command(as_json: bool) -> None:
    """Run `hostagent doctor`."""
    from hostagent.cli_views import check_lines
    from hostagent.doctor import examine

    checks = [check.shape() for check in examine()]
    if as_json:
        print_json({"checks": checks})
    else:
        print_lines(check_lines(checks, width=width(), colour=colour()))
    if count := sum(check["state"] == "problem" for check in checks):
        raise UserError(f"{count} of {len(checks)} checks found a problem", "the lines with -> say what to do")


@click.command("completion", help=help_of("completion"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Run `hostagent completion`."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None, "click knows these three"
    script = complete(cli, {}, "hostagent", "_HOSTAGENT_COMPLETE").source_template % _template_words()
    print_lines([script.replace(_TAKEN, _TAKEN_AS_A_PATH)])


def _template_words() -> dict[str, str]:
    """What click fills its templates with. Its `source` would start the user's bash to learn its version."""
    return {
        "complete_func": "_hostagent_completion",
        "complete_var": "_HOSTAGENT_COMPLETE",
        "prog_name": "hostagent",
    }
