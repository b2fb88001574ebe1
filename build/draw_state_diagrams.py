"""Draws what protocol/SPEC.md shows of the code's tables: a stream's states, and the limits.

`draw_state_diagrams.py` rewrites the parts between the markers; with `--check` it only says whether they are stale
(exit code 1).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "protocol" / "SPEC.md"
sys.path.insert(0, str(ROOT))

from protocol import limits  # noqa: E402
from protocol.streams import TRANSITIONS, StreamInput, StreamState  # noqa: E402


def diagram() -> str:
    """The table of a stream's life as a mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {state.name}: {state.value}" for state in StreamState]
    lines += [f"    [*] --> OPENING: {_say('send OPEN')}", f"    [*] --> OFFERED: {_say('receive OPEN')}"]
    for state, row in TRANSITIONS.items():
        for following in StreamState:
            if said := [_say(said.value) for said, after in row.items() if after is following]:
                lines.append(f"    {state.name} --> {following.name}: {', '.join(said)}")
    return "\n".join([*lines, "    CLOSED --> [*]", "```"])


def _say(said: str) -> str:
    return said.replace("send ", "→").replace("receive ", "←")


def table() -> str:
    """The same, one cell for each state and input; empty where it is not allowed."""
    head = "| state | " + " | ".join(_say(said.value) for said in StreamInput) + " |"
    lines = [head, "|---" * (len(StreamInput) + 1) + "|"]
    for state, row in TRANSITIONS.items():
        cells = [row[said].value if said in row else "" for said in StreamInput]
        lines.append(f"| **{state.value}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def limit_table() -> str:
    """Every limit with its value and its reason, as limits.py says it."""
    source = (ROOT / "protocol" / "limits.py").read_text(encoding="utf-8")
    lines = ["| name | value | what and why |", "|---|---|---|"]
    for name, reason in re.findall(r'^([A-Z_]+) = .*\n"""((?:.|\n)*?)"""', source, re.MULTILINE):
        value = getattr(limits, name)
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        lines.append(f"| `{name}` | {shown} | {' '.join(reason.split())} |")
    return "\n".join(lines)


def drawn(text: str) -> str:
    """`text` with each part between markers replaced by what the code says now."""
    for name, part in (("stream diagram", diagram()), ("stream table", table()), ("limits", limit_table())):
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text, found = pattern.subn(lambda _, part=part, begin=begin, end=end: f"{begin}\n{part}\n{end}", text)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"{SPEC.name} has {found} parts between {begin} and {end}")
    return text


def main() -> None:
    """Write the parts, or check them."""
    text = SPEC.read_text(encoding="utf-8")
    new = drawn(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            raise SystemExit("protocol/SPEC.md is stale: run build/draw_state_diagrams.py")
        return
    SPEC.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
