"""Findings of a check-up as lines: a mark, what was seen, what follows from it, what to type."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.cli.text import show_hanging
from specbench.findings import Finding

_MARKS = {"ok": "✓", "warning": "⚠", "failed": "✗"}


def show_findings(findings: Sequence[Finding]) -> None:
    """One line each; consequence and remedy stand under a line that is not `ok`."""
    width = max((len(each.name) for each in findings), default=0)
    for each in findings:
        show_hanging(f"{_MARKS[each.state]} {each.name:<{width}}  ", each.what)
        for sign, text in (("so ", each.consequence), ("try", each.remedy)):
            if text:
                show_hanging(f"  {'':<{width}}    {sign} ", text)
