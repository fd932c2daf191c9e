"""What became of an adapter, in one sentence: the same on the pages and in a terminal."""

from __future__ import annotations

from specbench.report.text import printable
from specbench.store.stream_records import AdapterChange


def words_of(change: AdapterChange) -> str:
    """`repeat 1, 1,204 positions: promoted, version 2 from 1; held out 0.612 → 0.640 [+0.004, +0.051]; 12.3 s`."""
    parts = [f"repeat {change.repeat + 1}, {change.at:,} positions: {change.outcome}"]
    if change.domain:
        parts[0] += f" ({printable(change.domain)})"
    if change.is_swap:
        parts[0] += f", version {change.version} from {change.previous}"
    if change.before is not None and change.after is not None:
        interval = "" if change.gain_ci is None else f" [{change.gain_ci.low:+.3f}, {change.gain_ci.high:+.3f}]"
        parts.append(f"held out {change.before:.3f} → {change.after:.3f}{interval}")
    else:
        parts.append(printable(change.why))
    if change.seconds:
        parts.append(f"{change.seconds:.1f} s" + (" beside its answers" if change.is_concurrent else ""))
    if change.is_regrown:
        parts.append("regrown after an interruption")
    return "; ".join(parts)
