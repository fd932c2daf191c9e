"""What a list of runs keeps of their figures: whole, those of three hundred runs are a megabyte each. No Textual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from specbench.store.records import RunSummary
    from specbench.tui.figures import Summed
    from specbench.tui.freshness import AsOf


class Known(NamedTuple):
    """A run that was summed up."""

    summary: RunSummary
    ratios: Sequence[float]
    """Of its headline method, a question each."""
    source: str
    as_of: AsOf | None


class Unread(NamedTuple):
    """A run that could not be summed up."""

    why: str
    freshness: object
    """Of its files then."""
    at_s: float


def known(found: Summed) -> Known:
    """What the list and the pane beside it show."""
    from specbench.tui.draw_home import headline_row

    row = headline_row(found.summary)
    method = row.method if row is not None else ""
    ratios = [unit["speedup"] for unit in found.units if unit["method"] == method]
    return Known(found.summary, ratios, found.source, found.as_of)
