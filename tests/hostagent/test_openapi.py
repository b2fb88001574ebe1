from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest

from hostagent.openapi import Operation, Parameter, describe, lost


class Wheel(TypedDict):
    """A wheel."""

    spokes: int


class Cart(TypedDict):
    """A cart."""

    wheels: list[Wheel]
    """Two or four."""
    driver: str | None
    weight: float
    load: NotRequired[dict[str, int]]
    note: Any


class Sledge(Cart):
    """A cart in winter."""

    runners: int
    """Instead of wheels."""


def test_documents_are_described_by_their_types() -> None:
    document = describe([Operation("GET", "/cart", "The cart.", Cart, (Parameter("empty", bool, "Without load."),))])
    assert document["info"]["version"] == "1"
    operation = document["paths"]["/cart"]["get"]
    assert operation["parameters"] == [
        {"name": "empty", "in": "query", "description": "Without load.", "schema": {"type": "boolean"}}
    ]
    answer = operation["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Cart"}
    assert document["components"]["schemas"]["Cart"] == {
        "type": "object",
        "description": "A cart.",
        "properties": {
            "wheels": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Wheel"},
                "description": "Two or four.",
            },
            "driver": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "weight": {"type": "number"},
            "load": {"type": "object", "additionalProperties": {"type": "integer"}},
            "note": {},
        },
        "required": ["driver", "note", "weight", "wheels"],
    }


def test_keys_and_their_descriptions_are_inherited() -> None:
    sledge = describe([], [Sledge])["components"]["schemas"]["Sledge"]["properties"]
    assert sledge["wheels"]["description"] == "Two or four."
    assert sledge["runners"]["description"] == "Instead of wheels."


def test_what_a_client_would_miss_is_found() -> None:
    old = describe([Operation("GET", "/cart", "", Cart), Operation("POST", "/cart", "", Wheel)])
    assert lost(old, old) == []
    new = describe([Operation("GET", "/cart", "", Wheel)])
    assert lost(old, new) == ["POST /cart", "Cart"]
    del old["paths"]["/cart"]["post"]
    changed = describe([Operation("GET", "/cart", "", Cart)])
    cart = changed["components"]["schemas"]["Cart"]
    del cart["properties"]["driver"]
    cart["required"] = ["note", "wheels"]
    assert lost(old, changed) == ["Cart.driver", "Cart.weight is not always there any more"]


def test_every_reference_leads_somewhere_and_errors_are_described() -> None:
    document = describe([Operation("GET", "/cart", "The cart.", Cart), Operation("GET", "/ws", "Frames.", None)])
    assert set(document["components"]["schemas"]) == {"Cart", "Wheel", "ErrorShape"}
    assert set(document["paths"]["/ws"]["get"]["responses"]) == {"101", "default"}


def test_a_type_without_a_schema_is_a_bug() -> None:
    with pytest.raises(TypeError, match="no JSON Schema"):
        describe([Operation("GET", "/", "", bytes)])
