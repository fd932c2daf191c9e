"""Words and numbers as the table and the page write them; names from models and files are made harmless here."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable

from specbench.metrics import Interval
from specbench.store.records import RunSummary
from specbench.store.words import count as count

NONE = "–"

# What a stream that cannot write Unicode gets instead.
_ASCII = str.maketrans(
    {
        "τ": "tau",
        "η": "eta",
        "×": "x",
        "±": "+-",
        "–": "-",
        "−": "-",
        "·": "|",
        "─": "-",
        "…": "...",
        "≥": ">=",
        "“": '"',
        "”": '"',
    }
)


def printable(text: str) -> str:
    """One line without control, bidirectional-override or other invisible characters: each becomes `�`.

    Line breaks and tabs become a space. Wide and combining characters stay.
    """
    kept = []
    for char in text:
        if char in "\n\r\t":
            kept.append(" ")
        elif unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            kept.append("\ufffd")
        else:
            kept.append(char)
    return "".join(kept)


def printable_lines(text: str) -> str:
    """`printable` line by line: line breaks stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def ascii_only(text: str) -> str:
    """The same text in ASCII; what has no spelling becomes `?`."""
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def times(value: float | None) -> str:
    """A ratio: `1.62×`."""
    return NONE if value is None else f"{value:.2f}×"


def two(value: float | None) -> str:
    """Two decimals."""
    return NONE if value is None else f"{value:.2f}"


def joules(value: float | None) -> str:
    """Two decimals; three digits below 1."""
    return NONE if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def interval(value: Interval | None) -> str:
    """`[1.58, 1.66]`."""
    return NONE if value is None else f"[{value.low:.2f}, {value.high:.2f}]"


def rate(value: float | None) -> str:
    """Tokens per second: one decimal below 100."""
    return NONE if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share, one decimal."""
    return NONE if value is None else f"{100 * value:.1f} %"


def bandwidth(bytes_per_s: float) -> str:
    """Bytes per second in GB/s (10^9)."""
    gigabytes = bytes_per_s / 1e9
    return f"{gigabytes:.1f} GB/s" if gigabytes >= 10 else f"{gigabytes:.2f} GB/s"


def parameters(count: int) -> str:
    """A parameter count: `8.1 M`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def listing(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    known = list(names)
    return known[0] if len(known) == 1 else ", ".join(known[:-1]) + " and " + known[-1] if known else ""


def device(summary: RunSummary) -> str:
    """`cpu (name) × 1 thread`; threads only where they matter."""
    name = printable(summary.device)
    full = summary.device_kind if name in ("", summary.device_kind) else f"{summary.device_kind} ({name})"
    if summary.device_kind != "cpu":
        return full
    return f"{full}, {count(summary.threads, 'thread')}"


def sampling(summary: RunSummary) -> str:
    """`T 0`, or temperature and every processor that is on."""
    parts = [f"T {summary.temperature:g}"]
    if summary.temperature > 0:
        parts += [f"top-k {summary.top_k}"] if summary.top_k > 0 else []
        parts += [f"top-p {summary.top_p:g}"] if summary.top_p < 1 else []
        parts += [f"min-p {summary.min_p:g}"] if summary.min_p > 0 else []
    parts += [f"repetition penalty {summary.repetition_penalty:g}"] if summary.repetition_penalty != 1 else []
    return ", ".join(parts)


def settings(summary: RunSummary) -> list[str]:
    """What must be equal for rows to stand side by side, suite, target and device left out."""
    return [
        summary.dtype,
        *([] if summary.quantisation == "none" else [printable(summary.quantisation)]),
        sampling(summary),
        summary.rule,
        f"batch {summary.batch_size}",
        f"carry {summary.carry}",
        f"≤ {summary.max_new_tokens} tokens",
        *([f"stop at {stops(summary)}"] if summary.stop else []),
    ]


def stops(summary: RunSummary) -> str:
    """The stop strings in quotes, line breaks as `\\n`; empty where there are none."""
    return ", ".join(printable(json.dumps(string, ensure_ascii=False)) for string in summary.stop)


def meter(summary: RunSummary) -> str:
    """One line on how near the baseline is to the memory's speed; empty where it was not metered."""
    row = next((row for row in summary.rows if row.kind == "baseline" and not row.is_control and row.meter), None)
    if row is None or row.meter is None:
        return ""
    found = f"Baseline: {bandwidth(row.meter.bytes_per_s)} of weights and cache read per second of decode"
    if row.meter.share is None or row.meter.copy_bandwidth is None:
        return found + "; the device's bandwidth was not measured."
    return (
        found
        + f", {100 * row.meter.share:.0f} % of the {bandwidth(row.meter.copy_bandwidth)} a plain copy reached here."
    )


def control(summary: RunSummary) -> str:
    """One line on the A/A control; empty where there is none or it failed: then the run's own notes say so."""
    if summary.control is None or summary.control.passed is False:
        return ""
    found = f"A/A control: {times(summary.control.speedup)} {interval(summary.control.speedup_ci)}"
    if summary.control.passed is None:
        return found + "; too few questions for an interval."
    return found + ", contains 1: passed."
