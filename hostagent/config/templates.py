"""The configurations that come with hostagent, by name."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from hostagent.config.mistakes import nearest, quoted
from hostagent.errors import UserError

DEFAULT_TEMPLATE: Final = "default"
"""The template that `up` takes when nothing is named."""

_FOLDER: Final = files("hostagent") / "templates"
_SUFFIX: Final = ".yaml"


def template_names() -> tuple[str, ...]:
    """Every template's name, the default one first."""
    names = [entry.name.removesuffix(_SUFFIX) for entry in _FOLDER.iterdir() if entry.name.endswith(_SUFFIX)]
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_TEMPLATE, name)))


def template_text(name: str) -> str:
    """The YAML text of the template `name`; `UserError` when there is none of that name."""
    names = template_names()
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"there is no template {quoted(name)}", hint)
    return template_path(name).read_text(encoding="utf-8")


def template_path(name: str) -> Traversable:
    """The file of the template `name`, to copy from."""
    return _FOLDER / f"{name}{_SUFFIX}"
