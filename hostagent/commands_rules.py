"""`forward` and `config`: rules of a running instance, changed without touching what they do not concern."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from click.shell_completion import CompletionItem

from hostagent.api_client import ApiClient
from hostagent.cli import complete_file, complete_instance, help_of, json_option, name_argument
from hostagent.cli_views import rule_lines
from hostagent.errors import UserError
from hostagent.instances import find_instance
from hostagent.paths import home, names_a_file
from hostagent.rule_words import rule_request
from hostagent.terminal_output import print_error, print_json, print_lines, width

if TYPE_CHECKING:
    from hostagent.api_shapes import RuleRequest


@click.group("forward", help=help_of("forward"))
def forward_command() -> None:
    """Group of `hostagent forward`."""


@click.group("config", help=help_of("config"))
def config_command() -> None:
    """Group of `hostagent config`."""


_name_option = click.option(
    "-n", "--name", default=None, shell_complete=complete_instance, help="The instance, where there are several."
)


@forward_command.command("list")
@name_argument
@json_option
def list_rules(name: str | None, as_json: bool) -> None:
    """List the rules in the order in which they are asked; the first that matches a port decides."""
    rules = ApiClient(find_instance(name)).rules()
    if as_json:
        print_json(rules)
    else:
        print_lines(rule_lines(rules, width=width()))


@forward_command.command("add")
@click.argument("guest")
@click.argument("host", required=False)
@click.option("--proto", type=click.Choice(["tcp", "udp", "any"]), default=None, help="Protocol; both otherwise.")
@click.option("--ignore", is_flag=True, help="Do not forward what GUEST names.")
@click.option("--static", is_flag=True, help="Listen at once, before the program in the guest exists.")
@click.option("--wait", type=float, default=None, metavar="SECONDS", help="How long clients wait for that program.")
@click.option("--reverse", is_flag=True, help="Listen at GUEST in the guest, and lead to HOST.")
@_name_option
@json_option
def add_rule(
    guest: str,
    host: str | None,
    proto: str | None,
    ignore: bool,
    static: bool,
    wait: float | None,
    reverse: bool,
    name: str | None,
    as_json: bool,
) -> None:
    """Let GUEST be found at HOST; the rule decides before all others until the instance is stopped.

    Ends are PORT, FIRST-LAST, ADDRESS:PORT, [ADDRESS]:PORT, localhost:PORT, or the path of a unix socket; GUEST may be
    any:PORT too. HOST is the same port on loopback when it is left out. With --ignore, GUEST without an address is the
    port at any address.
    """
    if ignore and host is not None:
        raise click.UsageError("--ignore takes GUEST alone: nothing leads to HOST")
    options = {"proto": proto, "ignore": ignore, "static": static, "wait": wait, "reverse": reverse}
    given = {key: value for key, value in options.items() if value}
    request = rule_request(guest, host) | given
    if ignore and ":" not in guest and request.keys() & {"guestPort", "guestPortRange"}:
        request.setdefault("guestIP", "any")  # most programs listen at all addresses, which "127.0.0.1" is not
    change = ApiClient(find_instance(name)).add_rule(cast("RuleRequest", request))
    if as_json:
        print_json(change)
        return
    for warning in change["warnings"]:
        print_error(f"warning: {warning}")
    print_lines([f"{change['rule']['name']}: {change['rule']['text']}"])


def _complete_rule(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the rules that were added to the running instance."""
    try:
        rules = ApiClient(find_instance(ctx.params.get("name"))).rules()["rules"]
    except UserError:  # while one types there is nobody to tell
        return []
    added = (rule for rule in rules if rule["origin"] == "added" and rule["name"].startswith(incomplete))
    return [CompletionItem(rule["name"], help=rule["text"]) for rule in added]


def _complete_instance_or_file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [*complete_instance(ctx, parameter, incomplete), *complete_file(ctx, parameter, incomplete)]


@forward_command.command("remove")
@click.argument("rule", shell_complete=_complete_rule)
@_name_option
@json_option
def remove_rule(rule: str, name: str | None, as_json: bool) -> None:
    """Remove RULE, called as `hostagent forward list` calls it. Connections that exist go on."""
    if not rule:
        raise UserError("the rule's name is missing", "`hostagent forward list` shows the names of all")
    change = ApiClient(find_instance(name)).remove_rule(rule)
    if as_json:
        print_json(change)
    else:
        print_lines([f"removed {change['rule']['name']}: {change['rule']['text']}"])


@config_command.command("reload")
@click.argument("argument", metavar="[CONFIG.yaml | NAME]", required=False, shell_complete=_complete_instance_or_file)
@_name_option
@json_option
def reload_config(argument: str | None, name: str | None, as_json: bool) -> None:
    """Let the forwarding rules of a changed configuration hold, without a restart.

    CONFIG.yaml becomes the instance's configuration; without it, the one in the instance's folder is read again.
    """
    path = ""
    if argument is not None and names_a_file(argument):
        path = str(Path(argument).absolute())
        name = name or _named_after(Path(argument))
    answer = ApiClient(find_instance(name or (None if path else argument))).reload(path)
    if as_json:
        print_json(answer)
        return
    for warning in answer["warnings"]:
        print_error(f"warning: {warning}")
    print_lines([f"{answer['rules']} rules hold"])
    if answer["restart"]:
        print_lines([f"{', '.join(answer['restart'])}: after `hostagent down` and `hostagent up`"])


def _named_after(path: Path) -> str | None:
    """The instance that `up` would have made of the file, when there is one; else the only one there is."""
    stem = path.stem.lower()
    return stem if (home() / stem).is_dir() else None
