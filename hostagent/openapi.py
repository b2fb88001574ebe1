"""The OpenAPI description of the control API, from its operations and from the types of `api_shapes`.

Pure. TypedDicts and the strings below their keys say all there is to say about the documents. The result is checked in
as openapi.json, which is what the host agent serves: making it costs more memory than keeping it, and a change of the
API shows as a change of a file.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from hostagent.api_shapes import API_VERSION, ErrorShape

JSON = "application/json"
LINES = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"

_SCALARS: Mapping[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query string or of the path, or a header."""

    name: str
    kind: type
    description: str
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One path and method of the API."""

    method: str
    path: str
    summary: str
    answer: object
    """The type of the document, or of each line of a stream of them; None for a WebSocket."""
    parameters: Sequence[Parameter] = field(default=())
    media_types: Sequence[str] = (JSON,)
    body: type | None = None
    """The document that the request brings."""


def describe(operations: Sequence[Operation], also: Sequence[type] = ()) -> dict[str, Any]:
    """The OpenAPI 3.1 document for `operations`, and the shapes of documents that only commands print."""
    shapes: dict[str, Any] = {}
    for shape in also:
        _schema(shape, shapes)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hostagent control API",
            "version": str(API_VERSION),
            "description": "HTTP on the unix socket of one instance. See API.md.",
        },
        "paths": paths,
        "components": {"schemas": shapes},
    }


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a client of the description `old` would miss in `new`: operations, shapes and their keys, in words."""
    missing = sorted(_operations_of(old) - _operations_of(new))
    shapes = new["components"]["schemas"]
    for name, shape in old["components"]["schemas"].items():
        if name not in shapes:
            missing.append(name)
            continue
        gone = shape["properties"].keys() - shapes[name]["properties"].keys()
        optional = set(shape["required"]) - set(shapes[name]["required"]) - gone
        missing += [f"{name}.{key}" for key in sorted(gone)]
        missing += [f"{name}.{key} is not always there any more" for key in sorted(optional)]
    return missing


def _operations_of(document: Mapping[str, Any]) -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


def _operation(operation: Operation, shapes: dict[str, Any]) -> dict[str, Any]:
    error = {"description": "Why it failed, and the next step.", "content": _content(ErrorShape, (JSON,), shapes)}
    parameters = [
        {"name": p.name, "in": p.place, "description": p.description, "schema": _schema(p.kind, shapes)}
        | ({"required": True} if p.place == "path" else {})
        for p in operation.parameters
    ]
    if operation.answer is None:
        answers: dict[str, Any] = {"101": {"description": "A WebSocket."}}
    else:
        content = _content(operation.answer, operation.media_types, shapes)
        answers = {"200": {"description": operation.summary, "content": content}}
    described = {"summary": operation.summary, "parameters": parameters, "responses": {**answers, "default": error}}
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body, (JSON,), shapes)}
    return described


def _content(shape: object, media_types: Sequence[str], shapes: dict[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": _schema(shape, shapes)} for media_type in media_types}


def _schema(kind: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an annotation; TypedDicts are added to `shapes` and referred to."""
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if kind is types.NoneType:
        return {"type": "null"}
    if kind is Any:
        return {}
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema(get_args(kind)[0], shapes)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema(get_args(kind)[1], shapes)}
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_schema(option, shapes) for option in get_args(kind)]}
    if not is_typeddict(kind):
        raise TypeError(f"no JSON Schema for {kind!r}")
    if kind.__name__ not in shapes:
        shapes[kind.__name__] = {}  # a shape may refer to itself
        shapes[kind.__name__] = _object(kind, shapes)
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _object(shape: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    descriptions = dict(_key_descriptions(shape))
    members = {}
    for name, hint in get_type_hints(shape).items():
        description = {"description": descriptions[name]} if name in descriptions else {}
        members[name] = {**_schema(hint, shapes), **description}
    # Not from __required_keys__, which takes every postponed annotation for a required one.
    hints = get_type_hints(shape, include_extras=True)
    required = sorted(name for name, hint in hints.items() if get_origin(hint) is not NotRequired)
    return {
        "type": "object",
        "description": inspect.cleandoc(shape.__doc__ or shape.__name__),
        "properties": members,
        "required": required,
    }


def _key_descriptions(shape: type) -> Iterator[tuple[str, str]]:
    """Each key of a TypedDict that has a string below it, with that string."""
    module = inspect.getmodule(shape)
    assert module is not None, "a shape is defined in a module"
    classes = _classes(inspect.getsource(module))
    pending = [shape.__name__]
    while pending and (node := classes.get(pending.pop())) is not None:
        pending += [base.id for base in node.bases if isinstance(base, ast.Name)]
        for statement, below in zip(node.body, node.body[1:], strict=False):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield name, inspect.cleandoc(text)


@functools.cache
def _classes(source: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
