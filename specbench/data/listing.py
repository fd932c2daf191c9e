"""Every named dataset and where it would come from, without downloading anything. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.data.cards import packaged_cards
from specbench.data.places import State, locate


@dataclass(frozen=True, kw_only=True)
class DatasetStatus:
    """One line of `specbench data ls`."""

    name: str
    title: str
    licence: str
    num_rows: int | None
    """As published; None where that is not known."""
    state: State
    where: str
    columns: str
    note: str


def survey(data_dirs: Sequence[Path] = ()) -> tuple[DatasetStatus, ...]:
    """All named datasets, in the order of `datasets.yaml`. Raises UsageError for a data folder that does not exist."""
    found = [locate(name, data_dirs) for name in packaged_cards()]
    return tuple(
        DatasetStatus(
            name=each.name,
            title=each.title,
            licence=each.licence,
            num_rows=each.num_rows,
            state=each.state,
            where=each.where,
            columns=str(each.columns or ""),
            note=each.note,
        )
        for each in found
    )
