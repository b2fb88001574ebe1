"""The JSON Schema of `config.yaml`, for editors that complete and check while one types.

It is the schema of the models with what the loader adds: the keys whose default hangs on the host may be left out,
every key that may be left out may be null, and Lima's other keys are admitted (as deprecated, which editors strike
through) instead of being marked as errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hostagent.config.document import KeyPath
from hostagent.config.lima_keys import LIMA_KEYS, LimaKey
from hostagent.config.schema import Config

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_FILLED_BY_LOADER: Final = frozenset({"arch", "cpus"})
_IGNORED: Final[dict[str, Any]] = {
    "description": "A key of Lima that hostagent does not act on yet.",
    "deprecated": True,
}


def json_schema() -> dict[str, Any]:
    """The schema as a new dict that `json.dumps` takes."""
    schema = Config.model_json_schema(by_alias=True)
    schema["required"] = [name for name in schema["required"] if name not in _FILLED_BY_LOADER]
    for part in (schema, *schema["$defs"].values()):
        for name in part["properties"].keys() - set(part.get("required", ())):
            part["properties"][name] = _or_null(part["properties"][name])
    _admit(schema["properties"], LIMA_KEYS, schema["$defs"])
    return {"$schema": DIALECT, **schema, "title": "hostagent config.yaml"}


def valid_keys(schema: Mapping[str, Any], path: KeyPath) -> tuple[str, ...]:
    """The keys that the mapping at `path` may have by `schema`, which is that of `json_schema`."""
    node: Mapping[str, Any] | None = schema
    for step in path:
        if isinstance(step, str):
            node = (_properties(node, schema["$defs"]) or {}).get(step)
        if node is None:
            return ()
    return tuple(_properties(node, schema["$defs"]) or ())


def _or_null(part: dict[str, Any]) -> dict[str, Any]:
    notes: dict[str, Any] = {key: part[key] for key in ("description", "default", "title") if key in part}
    value = {key: part[key] for key in part.keys() - notes.keys()}
    options = value.get("anyOf", [value])
    return {**notes, "anyOf": [option for option in options if option != {"type": "null"}] + [{"type": "null"}]}


def _properties(part: Mapping[str, Any] | None, definitions: Mapping[str, Any]) -> dict[str, Any] | None:
    """The properties of the mapping that `part` describes, directly, by reference, as an option or as an item."""
    if part is None:
        return None
    if "properties" in part:
        properties: dict[str, Any] = part["properties"]
        return properties
    below = [*part.get("anyOf", ()), part.get("items")]
    if "$ref" in part:
        below.append(definitions[part["$ref"].rpartition("/")[2]])
    found = (_properties(option, definitions) for option in below)
    return next((properties for properties in found if properties is not None), None)


def _admit(properties: dict[str, Any], keys: Mapping[str, LimaKey], definitions: Mapping[str, Any]) -> None:
    for name, key in keys.items():
        if not key.ours:
            properties[name] = _ignored(key)
        else:
            _admit(_properties(properties[name], definitions) or {}, key.members, definitions)


def _ignored(key: LimaKey) -> dict[str, Any]:
    if not key.members:
        return dict(_IGNORED)
    members = {name: _ignored(member) for name, member in key.members.items()}
    shape: dict[str, Any] = {"properties": members, "additionalProperties": False}
    return {**_IGNORED, **({"items": shape} if key.listed else shape)}
