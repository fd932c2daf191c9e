"""The datasets that have a name (`datasets.yaml`): what each is, whence it comes, which columns it has. No torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from specbench.data.columns import Columns, Names
from specbench.suite.schema import HubDataset, Strict

_FILE = Path(__file__).with_name("datasets.yaml")


class Source(Strict):
    """One place where the rows can be found: local files, a hub dataset, or a file of the package."""

    local: Names | None = None
    """All of them are wanted, relative to the folders of the search path."""
    hub: HubDataset | None = None
    shipped: str | None = None
    """A file of specbench/demo."""
    columns: Columns | None = None
    """Overrides the card's own mapping."""
    note: str = ""
    """What the user must know when this source is read: that it is a part of the set, and which."""

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if sum(place is not None for place in (self.local, self.hub, self.shipped)) != 1:
            raise PydanticCustomError("source_kind", "a source is `local: [FILE]`, `hub: {dataset: ...}` or `shipped:`")
        return self


class DatasetCard(Strict):
    """One dataset."""

    title: str
    licence: str
    num_rows: int | None = Field(default=None, ge=1)
    """As published."""
    sources: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    columns: Columns | None = None
    """None: found from the first row's names."""
    remove_from_response: str = ""
    """A regular expression; what it matches is taken out of answers."""


@cache
def packaged_cards() -> dict[str, DatasetCard]:
    """Name -> card, in the file's order."""
    raw = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, DatasetCard]).validate_python(raw)
