"""YAML text to a tree of nodes with their places, within bounds of time and memory.

PyYAML's own `compose` and `safe_load` do not fit: they read YAML 1.1 (`yes` is true, `22:22` is 1342, `0755` is 493),
keep the last of two equal keys without a word, recurse as deep as the text nests, and share aliased nodes so that
whoever walks the tree pays for a "billion laughs" file. So libyaml's events are put together here without recursion:

- scalars keep their text; `scalar_value` reads them by the core schema of YAML 1.2 (section 10.3.2);
- every alias is charged with all that it stands for, in nodes, characters and depth, before it is followed, so the
  tree that a caller walks is bounded even though aliases share nodes; an alias to a node that is still open is refused;
- only the tags of the core schema exist; nothing constructs an object.

The first thing that breaks the structure raises `YamlError`: after it, places would be guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from hostagent.config.mistakes import Mistake, printable, quoted

MAX_DEPTH: Final = 32
"""Nesting of collections; the schema needs five, and walkers of the tree may recurse."""

MAX_NODES: Final = 20_000
"""Values after aliases are expanded. A thousand port rules have about 10,000."""

MAX_CHARACTERS: Final = 4 << 20
"""Text after aliases are expanded; four times what a file may have."""

_CORE_TAGS: Final = {f"tag:yaml.org,2002:{name}": name for name in ("null", "bool", "int", "float", "str")}
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBERS: Final = re.compile(
    r"""(?P<int>[-+]?[0-9]{1,100})
    | 0o(?P<octal>[0-7]{1,100})
    | 0x(?P<hex>[0-9a-fA-F]{1,100})
    | (?P<float>[-+]?(?:\.[0-9]{1,100}|[0-9]{1,100}(?:\.[0-9]{0,100})?)(?:[eE][-+]?[0-9]{1,10})?)
    | (?P<infinite>[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))""",
    re.VERBOSE,
)
_CONTROL: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK: Final = re.compile("\r\n|[\r\n]")

# Without libyaml the pure parser gives the same events, only more slowly.
_LOADER: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class YamlError(Exception):
    """The text is not YAML that this module reads; `mistake` says where and why."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.mistake = Mistake(line, column, "", message)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node begins, line and column from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value without parts. `plain` tells whether the core schema may see more than text in it."""

    place: Place
    text: str
    plain: bool
    tag: str | None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    place: Place
    items: tuple[Node, ...]
    tag: str | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys and values in the order of the file, equal keys included."""

    place: Place
    entries: tuple[tuple[Scalar, Node], ...]
    tag: str | None


Node = Scalar | Sequence | Mapping


def scalar_value(scalar: Scalar) -> bool | int | float | str | None:
    """What the scalar means by the core schema of YAML 1.2; `ValueError` when its tag is unknown or does not fit.

    A number of more than a hundred digits stays text: no key can hold it, and converting it takes quadratic time.
    """
    value = _core_value(scalar.text) if scalar.plain else scalar.text
    if scalar.tag in (None, "!"):
        return value if scalar.tag is None else scalar.text
    if not (wanted := _CORE_TAGS.get(scalar.tag or "")):
        raise ValueError(f"the tag {quoted(scalar.tag or '')} is not supported")
    if wanted == "str":
        return scalar.text
    value = _core_value(scalar.text)
    if wanted == "float" and type(value) is int:
        return float(value)
    if {"null": type(None), "bool": bool, "int": int, "float": float}[wanted] is not type(value):
        raise ValueError(f"{quoted(scalar.text)} does not fit its tag !!{wanted}")
    return value


def _core_value(text: str) -> bool | int | float | str | None:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not (match := _NUMBERS.fullmatch(text)):
        return text
    match match.lastgroup:
        case "int":
            return int(text)
        case "octal":
            return int(match["octal"], 8)
        case "hex":
            return int(match["hex"], 16)
        case "infinite":
            return float(text.replace(".", ""))
        case _:
            return float(text)


def compose(text: str) -> Node | None:
    """The one document of `text` as a tree, or None when it holds none. Raises `YamlError`."""
    if match := _CONTROL.search(text):
        place = _place_of(text, match.start())
        code = f"U+{ord(match[0]):04X}"
        raise YamlError(place.line, place.column, f"holds the control character {code}, so it is no YAML text")
    composer = _Composer()
    try:
        for event in _events(text):
            composer.take(event)
    except yaml.YAMLError as exc:
        raise _translated(exc, text) from exc
    return composer.root


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_LOADER)


def _place_of(text: str, index: int) -> Place:
    ends = [match.end() for match in _LINE_BREAK.finditer(text, 0, index)]
    return Place(len(ends) + 1, index - (ends[-1] if ends else 0) + 1)


def _translated(exc: yaml.YAMLError, text: str) -> YamlError:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    words = [getattr(exc, "context", None), getattr(exc, "problem", None)]
    message = printable(", ".join(word for word in words if word)) or "is not YAML"
    if mark is None:
        return YamlError(1, 1, message)
    if text[mark.index : mark.index + 1] == "\t":
        message += " (YAML is indented with spaces, not with tabs)"
    return YamlError(mark.line + 1, mark.column + 1, message)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    place: Place
    tag: str | None
    anchor: str | None
    mapping: bool
    nodes_before: int
    characters_before: int
    height: int = 0
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    nodes: int
    characters: int
    height: int


class _Composer:
    """Puts events together. `nodes` and `characters` count what a walker of the tree will meet so far."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._stack: list[_Open] = []
        self._anchors: dict[str, _Anchored | None] = {}
        self._nodes = 0
        self._characters = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        """The next event of the parser; raises `YamlError` when a bound is passed."""
        place = Place(event.start_mark.line + 1, event.start_mark.column + 1)
        match event:
            case yaml.ScalarEvent():
                scalar = Scalar(place, event.value, bool(event.implicit[0]), event.tag)
                self._charge(place, 1, len(scalar.text))
                self._remember(event.anchor, _Anchored(scalar, 1, len(scalar.text), 0))
                self._attach(scalar, 0)
            case yaml.AliasEvent():
                self._take_alias(place, event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(place, event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise YamlError(place.line, place.column, "a second document begins here; a file has one")
            case _:
                pass

    def _charge(self, place: Place, nodes: int, characters: int) -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > MAX_NODES or self._characters > MAX_CHARACTERS:
            raise YamlError(
                place.line, place.column, f"holds more than {MAX_NODES} values or {MAX_CHARACTERS} characters by here"
            )

    def _check_depth(self, place: Place, added: int) -> None:
        if len(self._stack) + added > MAX_DEPTH:
            raise YamlError(place.line, place.column, f"nests deeper than {MAX_DEPTH} levels")

    def _open(self, place: Place, event: Any) -> None:
        self._check_depth(place, 1)
        before = self._nodes, self._characters
        self._charge(place, 1, 0)
        self._remember(event.anchor, None)
        mapping = isinstance(event, yaml.MappingStartEvent)
        self._stack.append(_Open(place, event.tag, event.anchor, mapping, *before))

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node
        if done.mapping:
            keys = [key for key in done.children[::2] if isinstance(key, Scalar)]
            node = Mapping(done.place, tuple(zip(keys, done.children[1::2], strict=True)), done.tag)
        else:
            node = Sequence(done.place, tuple(done.children), done.tag)
        height = done.height + 1
        nodes, characters = self._nodes - done.nodes_before, self._characters - done.characters_before
        self._remember(done.anchor, _Anchored(node, nodes, characters, height))
        self._attach(node, height)

    def _take_alias(self, place: Place, name: Any) -> None:
        if name not in self._anchors:
            raise YamlError(place.line, place.column, f"there is no anchor {quoted(name)} above")
        if (anchored := self._anchors[name]) is None:
            raise YamlError(place.line, place.column, f"the alias {quoted(name)} stands inside of what it names")
        self._check_depth(place, anchored.height)
        self._charge(place, anchored.nodes, anchored.characters)
        self._attach(anchored.node, anchored.height)

    def _remember(self, anchor: str | None, what: _Anchored | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = what

    def _attach(self, node: Node, height: int) -> None:
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        if parent.mapping and len(parent.children) % 2 == 0 and not isinstance(node, Scalar):
            raise YamlError(node.place.line, node.place.column, "a key must be a word, not a list or a mapping")
        parent.height = max(parent.height, height)
        parent.children.append(node)
