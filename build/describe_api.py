"""Writes what describes the control API: hostagent/openapi.json, and the tables of API.md.

`describe_api.py` rewrites both; with `--check` it only says whether they are stale (exit code 1). An operation, a
document or a key that scripts may rely on is not dropped by accident: that needs `--drop` as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTION = ROOT / "hostagent" / "openapi.json"
PAGE = ROOT / "API.md"
sys.path.insert(0, str(ROOT))

from hostagent.api_shapes import PRINTED  # noqa: E402
from hostagent.control_api import OPERATIONS  # noqa: E402
from hostagent.openapi import describe, lost  # noqa: E402


def operation_table(document: Mapping[str, Any]) -> str:
    """Every operation with its parameters and its answer."""
    lines = ["| operation | parameters | answer |", "|---|---|---|"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = "; ".join(f"`{p['name']}`: {_sentence(p['description'])}" for p in operation["parameters"])
            answer = operation["responses"].get("200")
            kinds = _answers(answer["content"]) if answer else "WebSocket"
            lines.append(f"| `{method.upper()} {path}` {operation['summary']} | {parameters} | {kinds} |")
    return "\n".join(lines)


def _answers(content: Mapping[str, Any]) -> str:
    shapes = {_kind(media["schema"]) for media in content.values()}
    return f"{', '.join(sorted(shapes))} as {' or '.join(f'`{media_type}`' for media_type in content)}"


def document_tables(document: Mapping[str, Any]) -> str:
    """Every document with its keys."""
    parts = []
    for name, shape in sorted(document["components"]["schemas"].items()):
        parts += [f"### {name}", "", shape["description"], "", "| key | type | meaning |", "|---|---|---|"]
        for key, member in shape["properties"].items():
            presence = "" if key in shape["required"] else ", not always there"
            parts.append(f"| `{key}` | {_kind(member)}{presence} | {_sentence(member.get('description', ''))} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("additionalProperties"):
        return f"object of {_kind(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def drawn(text: str, document: Mapping[str, Any]) -> str:
    """`text` with each part between markers replaced by what the code says now."""
    for name, part in (("operations", operation_table(document)), ("documents", document_tables(document))):
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE.name} has nothing between {begin} and {end}")
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


def main() -> None:
    """Write both, or check them."""
    document = describe(OPERATIONS, PRINTED)
    new = {
        DESCRIPTION: json.dumps(document, indent=2) + "\n",
        PAGE: drawn(PAGE.read_text(encoding="utf-8"), document),
    }
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in new.items() if path.read_text(encoding="utf-8") != text]
        if stale:
            raise SystemExit(f"{' and '.join(stale)} are stale: run build/describe_api.py")
        return
    missing = lost(json.loads(DESCRIPTION.read_bytes()), document) if DESCRIPTION.exists() else []
    if missing and "--drop" not in sys.argv[1:]:
        raise SystemExit(f"clients rely on these, so only --drop drops them: {', '.join(missing)}")
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
