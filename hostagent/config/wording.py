"""Pydantic's errors in the words of a config file: what must stand there, and what stands there instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hostagent.config.mistakes import quoted
from hostagent.config.templates import DEFAULT_TEMPLATE, template_path
from hostagent.config.values import GIB, MIB

UNKNOWN_KEY: Final = "extra_forbidden"
UNKNOWABLE: Final = "default_factory_not_called"
"""A default that hangs on a key that is wrong: no mistake of its own."""

_YAML_1_1_BOOLEANS: Final = frozenset({"yes", "no", "on", "off", "y", "n"})
_MAPPING: Final = "must be a mapping of keys to values"
_LIST: Final = "must be a list"
_TWO_PORTS: Final = "a range is two ports, [first, last]"

_LEAST: Final = "`images: [{build: debian-12}]`"
_WORD: Final = re.compile(r"'([^']*)'")

_SENTENCES: Final[Mapping[str, str]] = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text; put it in quotes",
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": _LIST,
    "list_type": _LIST,
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_too_long": "must not be longer than {max_length} characters",
    "value_error": "{error}",
}


def explained(error: Mapping[str, Any]) -> str:
    """The sentence for one of `ValidationError.errors()`; it ends with the offending value where that helps."""
    kind, context = error["type"], error.get("ctx", {})
    if special := _SPECIAL.get(kind):
        return special(error)
    if not (sentence := _SENTENCES.get(kind)):
        return str(error["msg"])
    text = sentence.format_map({key: _shown(value, error["loc"]) for key, value in context.items()})
    return text + _instead(error) + _meant(error) if text.startswith("must be ") else text


def _shown(value: object, loc: tuple[str | int, ...]) -> str:
    """A number as the user would write it: sizes in GiB or MiB where that is exact."""
    if isinstance(value, int) and loc[-1:] in (("memory",), ("disk",)):
        for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
            if value % unit == 0:
                return f"{value // unit}{name}"
    return str(value)


def _instead(error: Mapping[str, Any]) -> str:
    value = error["input"]
    if isinstance(value, (dict, list, tuple)):
        return ""
    if value is None:
        return ", not empty"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    return f", not {quoted(value) if isinstance(value, str) else quoted(_shown(value, error['loc']))[1:-1]}"


def _meant(error: Mapping[str, Any]) -> str:
    """The word that was meant, where it differs in nothing but signs and case: all are listed anyway."""
    words = _WORD.findall(str(error.get("ctx", {}).get("expected", "")))
    meant = [word for word in words if _letters(word) == _letters(str(error["input"]))]
    return f"; did you mean {meant[0]!r}?" if meant else ""


def _letters(word: str) -> str:
    return "".join(char for char in word.lower() if char.isalnum())


def _boolean(error: Mapping[str, Any]) -> str:
    value = error["input"]
    if isinstance(value, str) and value.lower() in _YAML_1_1_BOOLEANS:
        return f"must be true or false; in YAML 1.2 {quoted(value)} is a word"
    return "must be true or false" + _instead(error)


def _length(error: Mapping[str, Any]) -> str:
    if error["loc"][-1] in ("guestPortRange", "hostPortRange"):
        return _TWO_PORTS
    return f"must not have more than {error['ctx']['max_length']} entries"


def _missing(error: Mapping[str, Any]) -> str:
    if isinstance(error["loc"][-1], int):
        return f"is missing: {_TWO_PORTS}"
    if error["loc"] == ("images",):
        return f"is missing: write {_LEAST}, or copy those of {template_path(DEFAULT_TEMPLATE)}"
    return "is missing"


_SPECIAL: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "bool_type": _boolean,
    "missing": _missing,
    "too_long": _length,
}
