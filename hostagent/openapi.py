"""The OpenAPI description of the control API, generated from its routes and from the types of `api_shapes`.

Pure. TypedDicts say all there is to say about the documents, and loading a schema library for it would cost the host
agent a quarter of its memory.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from hostagent.api_shapes import API_VERSION, ErrorShape

_SCALARS: Mapping[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query string."""

    name: str
    kind: type
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One path and method of the API."""

    method: str
    path: str
    summary: str
    answer: type | None
    """The document, or each line of a stream of them; None for a WebSocket."""
    parameters: Sequence[Parameter] = field(default=())


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document for `operations` of hostagent `version`."""
    shapes: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hostagent control API",
            "version": version,
            "description": f"HTTP on the unix socket of one instance. Version {API_VERSION} of the paths and shapes.",
        },
        "paths": paths,
        "components": {"schemas": shapes},
    }


def _operation(operation: Operation, shapes: dict[str, Any]) -> dict[str, Any]:
    error = {"description": "Why it failed, and the next step.", "content": _json(ErrorShape, shapes)}
    parameters = [
        {"name": p.name, "in": "query", "description": p.description, "schema": _schema(p.kind, shapes)}
        for p in operation.parameters
    ]
    if operation.answer is None:
        answers: dict[str, Any] = {"101": {"description": "A WebSocket."}}
    else:
        answers = {"200": {"description": _summary(operation.answer), "content": _json(operation.answer, shapes)}}
    return {"summary": operation.summary, "parameters": parameters, "responses": {**answers, "default": error}}


def _json(shape: type, shapes: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(shape, shapes)}}


def _schema(kind: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an annotation; TypedDicts are added to `shapes` and referred to."""
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if kind is types.NoneType:
        return {"type": "null"}
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema(get_args(kind)[0], shapes)}
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_schema(option, shapes) for option in get_args(kind)]}
    if not is_typeddict(kind):
        raise TypeError(f"no JSON Schema for {kind!r}")
    if kind.__name__ not in shapes:
        shapes[kind.__name__] = {}  # a shape may refer to itself
        members = {name: _schema(hint, shapes) for name, hint in get_type_hints(kind).items()}
        shapes[kind.__name__] = {
            "type": "object",
            "description": _summary(kind),
            "properties": members,
            "required": sorted(kind.__required_keys__),
        }
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _summary(shape: type) -> str:
    return inspect.cleandoc(shape.__doc__ or shape.__name__)
