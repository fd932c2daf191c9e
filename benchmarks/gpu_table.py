"""What calls of `gpu.py` found, in one file and one table: a later call under the same conditions adds its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Found = dict[str, Any]

SAME = ("card", "cuda", "torch", "transformers", "triton", "python", "dtype", "attention", "attention_float32")
"""Of the conditions, those that parts of one table share."""


def path_of(out: Path, conditions: dict[str, Any]) -> Path:
    """The file with everything; the table lies beside it."""
    return out / ("rehearsal.json" if conditions["is_rehearsal"] else "gpu.json")


def found_before(out: Path, conditions: dict[str, Any]) -> Found:
    """Parts that earlier calls measured under the same conditions. A file of others is moved aside under the time it
    was begun at, and said so: figures of borrowed time are never overwritten."""
    path = path_of(out, conditions)
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    theirs = before.pop("conditions")
    other = [name for name in SAME if theirs.get(name) != conditions[name]]
    if not other:
        return {name: part for name, part in before.items() if "rows" in part}
    aside = path.with_name(f"{path.stem}-{''.join(each for each in theirs['time'] if each.isdigit())}.json")
    for suffix in (".json", ".md"):
        if path.with_suffix(suffix).exists():
            path.with_suffix(suffix).replace(aside.with_suffix(suffix))
    print(f"{path} differs in {', '.join(other)}: kept as {aside}", flush=True)
    return {}


def record(found: Found, name: str, part: dict[str, Any]) -> None:
    """Into `found`, unless a part that was left out would take the place of figures."""
    if "rows" in part or "failed" in part or "rows" not in found.get(name, {}):
        found[name] = part


def write(out: Path, found: Found, order: list[str]) -> None:
    """The file and the table."""
    path = path_of(out, found["conditions"])
    names = [name for name in order if name in found]
    ordered = {"conditions": found["conditions"], **{name: found[name] for name in names}}
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(ordered) + "\n", encoding="utf-8")


def table(found: Found) -> str:
    """What the parts found beside what is asked of the engine, as Markdown."""
    conditions = found["conditions"]
    note = f" ({conditions['attention_note']})" if conditions["attention_note"] else ""
    cudnn = "on" if conditions["cudnn_attention"] else "off"
    lines = [
        f"{conditions['card']}; torch {conditions['torch']}, transformers {conditions['transformers']}, "
        f"triton {conditions['triton']}, {conditions['dtype']}, {conditions['attention']}{note}, "
        f"cuDNN's attention {cudnn}; {conditions['time']} UTC",
        "",
        "| part | measured | asked for |",
        "|---|---|---|",
    ]
    parts = {name: part for name, part in found.items() if name != "conditions"}
    for name, part in parts.items():
        for kind in ("failed", "left_out"):
            if kind in part:
                lines.append(f"| {name} | {kind.replace('_', ' ')}: {part[kind]} | |")
        for row in part.get("rows", ()):
            lines.append(f"| {name}: {row['what']} | {row['measured']} | {row.get('asked', '')} |")
    calls: dict[str, list[str]] = {}
    for name, part in parts.items():
        if "rows" in part:
            calls.setdefault(part["time"], []).append(name)
    if len(calls) > 1:
        each = "; ".join(f"{time} UTC: {', '.join(names)}" for time, names in sorted(calls.items()))
        lines += ["", f"Measured in {len(calls)} calls, each against its own copy. {each}."]
    return "\n".join(lines)
