"""Events to nodes: places, the core schema, and the bounds on what aliases stand for."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.config.yaml_nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Mapping,
    Place,
    Scalar,
    Sequence,
    YamlError,
    compose,
    scalar_value,
)


def value_of(text: str) -> object:
    node = compose(text)
    assert isinstance(node, Scalar)
    return scalar_value(node)


def refusal(text: str) -> tuple[int, int, str]:
    with pytest.raises(YamlError) as caught:
        compose(text)
    mistake = caught.value.mistake
    return mistake.line, mistake.column, mistake.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("no", "no"),
        ("22:22", "22:22"),
        ("2026-11-23", "2026-11-23"),
        ("0755", 755),
        ("0o755", 0o755),
        ("0x1F", 31),
        ("-12", -12),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1.5", 1.5),
        (".5e3", 500.0),
        ("-.INF", float("-inf")),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("Null", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!int '7'", 7),
        ("!!float 7", 7.0),
        ("9" * 200, "9" * 200),
    ],
)
def test_the_core_schema(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["!!int x", "!!bool yes", "!!timestamp 2026-11-23", "!!python/name:os.system ''", "!own x"]
)
def test_tags_that_do_not_fit_or_do_not_exist(text: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        value_of(text)


def test_places_and_equal_keys() -> None:
    root = compose("a: 1\nb:\n  - x\n  - é: y\na: 2\n")
    assert isinstance(root, Mapping)
    assert [(key.text, key.place) for key, _ in root.entries] == [
        ("a", Place(1, 1)),
        ("b", Place(2, 1)),
        ("a", Place(5, 1)),
    ]
    items = root.entries[1][1]
    assert isinstance(items, Sequence)
    inner = items.items[1]
    assert isinstance(inner, Mapping)
    assert inner.entries[0][1].place == Place(4, 8)


def test_an_alias_is_the_node_itself() -> None:
    root = compose("[&a [x], *a]")
    assert isinstance(root, Sequence)
    assert root.items[0] is root.items[1]


def test_aliases_are_charged_with_what_they_stand_for() -> None:
    ten = ", ".join(["x"] * 10)
    fits = MAX_NODES // 11 - 2
    assert compose(f"[&a [{ten}], {', '.join(['*a'] * fits)}]")
    assert "holds more than" in refusal(f"[&a [{ten}], {', '.join(['*a'] * (fits + 3))}]")[2]


def test_depth_counts_through_aliases() -> None:
    half = MAX_DEPTH // 2
    inner = "[" * half + "]" * half
    assert compose("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert refusal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)) == (1, MAX_DEPTH + 1, "nests deeper than 32 levels")
    fits = "[" * (half - 1) + "*a" + "]" * (half - 1)
    assert compose(f"[&a {inner}, {fits}]")
    assert "nests deeper" in refusal(f"[&a {inner}, [{fits}]]")[2]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: &a [*a]", (1, 8)),
        ("a: *b", (1, 4)),
        ("a: 1\n--- b", (2, 1)),
        ("ok: 1\n? [a]\n: b", (2, 3)),
        ("a: b\r\nc: \x00", (2, 4)),
        ("a: [1\n", (2, 1)),
    ],
)
def test_what_breaks_the_structure_has_a_place(text: str, place: tuple[int, int]) -> None:
    assert refusal(text)[:2] == place


@given(st.text(alphabet=st.sampled_from("ab:-?[]{},&*!|>'\"%@`#~ \n\t"), max_size=60))
def test_any_text_is_a_tree_or_the_documented_error(text: str) -> None:
    with contextlib.suppress(YamlError):
        compose(text)
