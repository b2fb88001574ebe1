"""A composed YAML document as plain data for the schema, with the places that its mistakes need.

One walk over the tree does what the schema cannot know of: equal keys, tags, Lima's keys that we do not act on (left
out, with a warning), and nulls. As in Lima, a key without a value (`cpus:`, `cpus: null`) is a key that was not given.
The tree is bounded in depth and size by `yaml_nodes`, so the walk may recurse.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from hostagent.config.lima_keys import LIMA_KEYS, LimaKey
from hostagent.config.mistakes import MAX_LISTED, Mistake, key_path, nearest, quoted
from hostagent.config.yaml_nodes import Mapping, Node, Place, Scalar, Sequence, scalar_value

KeyPath = tuple[str | int, ...]
"""The way to a value: keys and list indices from the top, as in pydantic's `loc`."""

_TEXT_ONLY: Final[KeyPath] = ("env",)
"""Values below are text whatever they look like, as in Lima: `PORT: 8080` and `DEBUG: yes` are what they say."""

_DEFAULT_WORD: Final[frozenset[KeyPath]] = frozenset({("arch",), ("vmType",)})
"""Keys whose value may be the word `default`, Lima's other way not to give them."""

_FEW: Final = 15
"""Keys that a message can list without burying what it says."""

_COLLECTION_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_NO_KEYS: Final[MappingABC[str, LimaKey]] = MappingProxyType({})


def unknown_key(key: str, candidates: MappingABC[str, Any] | tuple[str, ...]) -> str:
    """What is wrong with `key` where only `candidates` are known, with the nearest of them."""
    if near := nearest(key, candidates):
        return f"unknown key; did you mean {near!r}?"
    if 0 < len(candidates) <= _FEW:
        return f"unknown key; known here: {', '.join(sorted(candidates))}"
    return "unknown key; `hostagent schema` prints all that are known"


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where it says it."""

    data: dict[str, Any]
    """For the schema: without Lima's other keys and without nulls."""
    places: MappingABC[KeyPath, tuple[Place, Place]]
    """Of every value: where its key begins, and where it begins itself. The empty path is the whole."""
    unread: frozenset[KeyPath]
    """Values that are among the mistakes and missing in `data`, so that the schema need not miss them once more."""
    mistakes: tuple[Mistake, ...]
    warnings: tuple[Mistake, ...]

    @classmethod
    def of(cls, root: Mapping) -> Document:
        """The document whose top level is `root`."""
        walk = _Walk()
        walk.places[()] = root.place, root.place
        data = walk.mapping(root, (), LIMA_KEYS)
        return cls(data, walk.places, frozenset(walk.unread), tuple(walk.mistakes), tuple(walk.warnings))

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """Where the value at `path` (or its key) begins; for what is not in the file, where it would belong."""
        while path not in self.places:
            path = path[:-1]
        key, value = self.places[path]
        return key if of_key else value


class _Walk:
    """Collects mistakes and warnings on the way through a tree."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []
        self.unread: set[KeyPath] = set()
        self.places: dict[KeyPath, tuple[Place, Place]] = {}

    def mapping(self, node: Mapping, path: KeyPath, lima: MappingABC[str, LimaKey]) -> dict[str, Any]:
        """The mapping's entries for the schema. `lima` holds the keys of Lima that may stand here."""
        data: dict[str, Any] = {}
        for key, child in self._entries(node, path):
            here = (*path, key.text)
            known = lima.get(key.text)
            if known and not known.ours:
                self._ignore(key, child, here, known)
                continue
            self.places[here] = key.place, child.place
            value = self._value(child, here, known)
            if value is None or (value == "default" and here in _DEFAULT_WORD):
                continue
            data[key.text] = value
        return data

    def _value(self, node: Node, path: KeyPath, lima: LimaKey | None) -> Any:
        if isinstance(node, Scalar):
            return self._scalar(node, path)
        if node.tag not in _COLLECTION_TAGS:
            self.unread.add(path)
            self._mistake(node.place, path, f"the tag {quoted(node.tag or '')} is not supported")
            return None
        members = lima.members if lima else _NO_KEYS
        listed = bool(lima and lima.listed)
        if isinstance(node, Mapping):
            return self.mapping(node, path, _NO_KEYS if listed else members)
        below = LimaKey(members, ours=True, group=True) if listed else None
        for index, item in enumerate(node.items):
            self.places[(*path, index)] = item.place, item.place
        return [self._value(item, (*path, index), below) for index, item in enumerate(node.items)]

    def _scalar(self, scalar: Scalar, path: KeyPath) -> Any:
        try:
            value = scalar_value(scalar)
        except ValueError as exc:
            self.unread.add(path)
            self._mistake(scalar.place, path, str(exc))
            return None
        if path[: len(_TEXT_ONLY)] == _TEXT_ONLY and len(path) > len(_TEXT_ONLY):
            return "" if value is None else scalar.text
        return value

    def _ignore(self, key: Scalar, node: Node, path: KeyPath, lima: LimaKey, *, named: bool = False) -> None:
        """Pass over a key of Lima: warn once, unless a key above is `named` already, and check the spelling below."""
        if isinstance(node, Scalar) and self._scalar(node, path) is None:
            return
        members = [(node, path)]
        if lima.listed and isinstance(node, Sequence):
            members = [(item, (*path, index)) for index, item in enumerate(node.items)]
        by_member = lima.group and isinstance(node, Mapping) and bool(node.entries)
        if not (named or by_member):
            self._warn(key, path)
        if not lima.members:
            return
        for member, here in members:
            if isinstance(member, Mapping):
                self._ignore_members(member, here, lima, named=named or not by_member)

    def _ignore_members(self, node: Mapping, path: KeyPath, lima: LimaKey, *, named: bool) -> None:
        for key, child in self._entries(node, path):
            here = (*path, key.text)
            if known := lima.members.get(key.text):
                self._ignore(key, child, here, known, named=named)
            else:
                near = lima.members if len(self.mistakes) < MAX_LISTED else _NO_KEYS
                self._mistake(key.place, here, unknown_key(key.text, near))

    def _entries(self, node: Mapping, path: KeyPath) -> Iterator[tuple[Scalar, Node]]:
        """The first entry of every key; each further one is a mistake."""
        seen: dict[str, Place] = {}
        for key, child in node.entries:
            if first := seen.get(key.text):
                self._mistake(key.place, (*path, key.text), f"is given twice, first on line {first.line}")
                continue
            seen[key.text] = key.place
            yield key, child

    def _mistake(self, place: Place, path: KeyPath, message: str) -> None:
        self.mistakes.append(Mistake(place.line, place.column, key_path(path), message))

    def _warn(self, key: Scalar, path: KeyPath) -> None:
        message = "hostagent does not act on this key yet"
        self.warnings.append(Mistake(key.place.line, key.place.column, key_path(path), message))
