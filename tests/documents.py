"""Documents of the API, held against what openapi.json says about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_SCHEMAS: Mapping[str, Any] = json.loads(
    (Path(__file__).resolve().parent.parent / "hostagent" / "openapi.json").read_bytes()
)["components"]["schemas"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


def problems(value: object, shape: str) -> list[str]:
    """Where `value` is not as the documented `shape`: wrong types, keys that lack, keys that nobody documented."""
    return list(_problems(value, {"$ref": f"#/components/schemas/{shape}"}, shape))


def _problems(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = _SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        if not any(not list(_problems(value, option, place)) for option in schema["anyOf"]):
            yield f"{place}: {value!r} is none of what is documented"
        return
    kind = schema.get("type")
    if kind is not None and type(value) not in _TYPES[kind]:
        yield f"{place}: {value!r} is no {kind}"
    elif kind == "array":
        for index, item in enumerate(value):
            yield from _problems(item, schema["items"], f"{place}[{index}]")
    elif kind == "object":
        yield from _problems_of_object(value, schema, place)


def _problems_of_object(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    members = schema.get("properties", {})
    for key in schema.get("required", []):
        if key not in value:
            yield f"{place}.{key} lacks"
    for key, member in value.items():
        if key in members:
            yield from _problems(member, members[key], f"{place}.{key}")
        elif members:
            yield f"{place}.{key} is not documented"
        else:
            yield from _problems(member, schema.get("additionalProperties", {}), f"{place}.{key}")
