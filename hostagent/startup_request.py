"""What `hostagent up ARGUMENT` means: a configuration file, an instance, or a template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hostagent.config.loader import LoadedConfig, load_config, read_config
from hostagent.config.mistakes import nearest
from hostagent.config.templates import template_names, template_text
from hostagent.errors import UserError
from hostagent.instances import instance_folders
from hostagent.paths import InstancePaths, check_name, names_a_file

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class StartupRequest:
    """One instance, and how it is to be configured."""

    paths: InstancePaths
    loaded: LoadedConfig
    from_instance: bool
    """Whether the configuration is the one that the instance has already."""


def startup_request(argument: str | None, name: str | None) -> StartupRequest:
    """Resolve what the user typed; raises `UserError`. In doubt it is an instance, since that loses nothing.

    Without an argument: the instance `name`, or the only one there is; the default template where there is none.
    """
    if argument is None:
        argument = _only_instance() if name is None else DEFAULT
    path = Path(argument)
    if names_a_file(argument):
        paths = InstancePaths.of(_name_from(path) if name is None else name)
        return StartupRequest(paths, read_config(path), from_instance=False)
    paths = InstancePaths.of(argument if name is None else name)
    if paths.config.exists() and argument in (paths.name, DEFAULT):
        return StartupRequest(paths, read_config(paths.config), from_instance=True)
    if argument in template_names():
        loaded = load_config(template_text(argument).encode(), f"template {argument}")
        return StartupRequest(paths, loaded, from_instance=False)
    near = nearest(argument, (*[paths.name for paths in instance_folders()], *template_names()))
    raise UserError(
        f"{argument!r} is no instance, no template and no configuration file",
        (f"did you mean {near!r}? " if near else "")
        + f"templates are {', '.join(template_names())}; the name of a configuration file ends in .yaml",
    )


def _only_instance() -> str:
    names = [paths.name for paths in instance_folders()]
    if len(names) > 1:
        raise UserError("there is more than one instance", f"name one of: {', '.join(names)}")
    return names[0] if names else DEFAULT


def _name_from(path: Path) -> str:
    try:
        return check_name(path.stem.lower())
    except UserError as exc:
        raise UserError(f"no instance can be named after {path.name}", "give it a name with --name") from exc
