from __future__ import annotations

from typing import TypedDict

import pytest

from hostagent.openapi import Operation, Parameter, describe


class Wheel(TypedDict):
    """A wheel."""

    spokes: int


class Cart(TypedDict):
    """A cart."""

    wheels: list[Wheel]
    driver: str | None
    weight: float


def test_documents_are_described_by_their_types() -> None:
    document = describe(
        [Operation("GET", "/cart", "The cart.", Cart, (Parameter("empty", bool, "Without load."),))], "1.2"
    )
    assert document["info"]["version"] == "1.2"
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
            "wheels": {"type": "array", "items": {"$ref": "#/components/schemas/Wheel"}},
            "driver": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "weight": {"type": "number"},
        },
        "required": ["driver", "weight", "wheels"],
    }


def test_every_reference_leads_somewhere_and_errors_are_described() -> None:
    document = describe([Operation("GET", "/cart", "The cart.", Cart), Operation("GET", "/ws", "Frames.", None)], "1")
    assert set(document["components"]["schemas"]) == {"Cart", "Wheel", "ErrorShape"}
    assert set(document["paths"]["/ws"]["get"]["responses"]) == {"101", "default"}


def test_a_type_without_a_schema_is_a_bug() -> None:
    with pytest.raises(TypeError, match="no JSON Schema"):
        describe([Operation("GET", "/", "", bytes)], "1")
