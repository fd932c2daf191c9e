"""From a dataset's name, hub id or path to its rows: local files first, an earlier download second, the hub last.

Never one set in place of another: a source that is only a part of the set says so in a note. No torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specbench import paths
from specbench.data.cards import DatasetCard, Source, packaged_cards
from specbench.data.columns import Columns, check_columns, find_columns
from specbench.data.rows import TRY, kind_of, read_rows
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.provenance import hash_file
from specbench.suite import hub as hub_room
from specbench.suite.places import search_path
from specbench.suite.rows import Row
from specbench.suite.schema import HubDataset

State = Literal["shipped", "local", "downloaded", "hub", "missing"]
SELF = "self"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(:[^:/]+){0,2}")
_ROOMS = ("", "text", "suites")
"""A data folder's files lie in it, or in one of these."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a dataset's rows are, or that they are not."""

    name: str
    title: str
    licence: str
    state: State
    files: tuple[Path, ...] = ()
    hub: HubDataset | None = None
    columns: Columns | None = None
    remove_from_response: str = ""
    num_rows: int | None = None
    note: str = ""

    @property
    def where(self) -> str:
        """Files or dataset, for people."""
        if self.files:
            return ", ".join(map(str, self.files))
        return self.hub.identity if self.hub else ""


def locate(spec: str, data_dirs: Sequence[Path] = ()) -> Located:
    """What `spec` means and where it is; downloads nothing.

    spec: a name of `specbench data ls`, a path, or a hub id OWNER/NAME[:CONFIG][:SPLIT]. Raises UsageError naming the
    nearest dataset.
    """
    card = packaged_cards().get(spec)
    if card is not None:
        return _of_card(spec, card, search_path(data_dirs))
    path = paths.expanded(spec)
    if path.is_file():
        if not kind_of(path):
            raise UsageError(f"{spec} is no kind of file that holds rows", where=spec, try_=TRY)
        return Located(name=path.name, title=path.name, licence="", state="local", files=(path,))
    if path.is_dir():
        return _of_folder(path)
    if spec == SELF:
        raise UsageError(
            "`self` is what the target writes, not a dataset of its own", where="--dataset", try_="name its prompts"
        )
    if kind_of(path) or spec.startswith((".", "/", "~")):
        raise UsageError(f"there is no file {spec!r}", where="--dataset", try_="specbench data ls lists the names")
    if _HUB_ID.fullmatch(spec):
        return _of_hub(spec)
    hint = did_you_mean(spec, packaged_cards())
    raise UsageError(
        f"there is no dataset {spec!r}; {hint}", where="--dataset", try_="a name, a hub id OWNER/NAME, or a file"
    )


def fetched(located: Located, *, offline: bool = False) -> Located:
    """The same, its rows on this disk: downloads what only the hub has. Raises EnvironmentFailed."""
    if located.state == "missing":
        raise EnvironmentFailed(
            f"the rows of {located.name!r} are not here, and nothing can be downloaded for them",
            where=located.note,
            try_="put the files under a folder and pass --data DIR",
        )
    if located.state != "hub":
        return located
    assert located.hub is not None
    if offline or hub_room.is_offline():
        raise EnvironmentFailed(
            f"the rows of {located.name!r} are not here and the network is not to be used",
            where=located.where,
            try_="run once with a connection, or pass --data DIR with its files",
        )
    try:
        hub_room.download(located.hub)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(
            error.what, where=error.where, try_="connect, or name a local .jsonl, .json or .parquet file instead"
        ) from error
    path = hub_room.downloaded_file(located.hub)
    assert path is not None, "a finished download is kept"
    return Located(**{**vars(located), "state": "downloaded", "files": (path,)})


def content_hash(located: Located) -> str:
    """sha256 over the files' own hashes. Raises EnvironmentFailed where a download is not what was first downloaded."""
    hashes = [hash_file(path) for path in located.files]
    if located.state == "downloaded" and located.hub is not None:
        book = hub_room.recorded(located.hub)
        if book is None or book.sha256 != hashes[0]:
            raise EnvironmentFailed(
                f"the kept copy of {located.hub.dataset} is not what was downloaded",
                where=str(located.files[0]),
                try_="delete it, and it is downloaded again",
            )
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def rows_of(located: Located) -> Iterator[Row]:
    """All rows, file after file."""
    for path in located.files:
        yield from read_rows(path)


def columns_of(located: Located, asked: Columns | None) -> Columns:
    """The mapping: as asked for, else the card's, else found; checked against the first row.

    Raises UsageError listing the existing columns, or when there is no row at all.
    """
    first = next(rows_of(located), None)
    if first is None:
        raise UsageError(f"{located.name} holds no row", where=located.where)
    columns = asked or located.columns or find_columns(first.values, where=first.where)
    # Of a card's prompt only the first part must be there: Alpaca's `input` is left out where it is empty.
    wanted = columns if asked else columns.model_copy(update={"prompt": (columns.prompt or ())[:1] or None})
    check_columns(wanted, first.values, where=first.where)
    return columns


def _of_card(name: str, card: DatasetCard, dirs: Sequence[Path]) -> Located:
    hubs = []
    for source in card.sources:
        if source.shipped:
            return _at(name, card, source, "shipped", (paths.DEMO / source.shipped,))
        for folder in dirs:
            for room in _ROOMS:
                files = tuple(folder / room / file for file in source.local or ())
                if files and all(path.is_file() for path in files):
                    return _at(name, card, source, "local", files)
        if source.hub is not None:
            hubs.append(source)
    for source in hubs:
        assert source.hub is not None
        path = hub_room.downloaded_file(source.hub)
        if path is not None:
            return _at(name, card, source, "downloaded", (path,))
    if hubs:
        return _at(name, card, hubs[0], "hub", ())
    wanted = " or ".join(" and ".join(source.local) for source in card.sources if source.local)
    missing = _at(name, card, card.sources[0], "missing", ())
    return Located(**{**vars(missing), "note": f"wanted: {wanted}"})


def _at(name: str, card: DatasetCard, source: Source, state: State, files: tuple[Path, ...]) -> Located:
    return Located(
        name=name,
        title=card.title,
        licence=card.licence,
        state=state,
        files=files,
        hub=source.hub,
        columns=source.columns or card.columns,
        remove_from_response=card.remove_from_response,
        num_rows=card.num_rows,
        note=source.note,
    )


def _of_folder(folder: Path) -> Located:
    """What `specbench data generate` left: its merged rows."""
    merged = folder / "responses.jsonl"
    if not merged.is_file():
        raise UsageError(
            f"{folder} is a folder without responses.jsonl",
            where=str(folder),
            try_="name a file, or finish it: specbench data generate … --out " + str(folder),
        )
    return Located(name=folder.name, title=f"responses in {folder}", licence="", state="local", files=(merged,))


def _of_hub(spec: str) -> Located:
    dataset, *rest = spec.split(":")
    split = rest[-1] if rest else "train"
    hub = HubDataset(dataset=dataset, config=rest[0] if len(rest) == 2 else None, split=split)
    path = hub_room.downloaded_file(hub)
    state: State = "hub" if path is None else "downloaded"
    return Located(name=spec, title=dataset, licence="", state=state, files=(path,) if path else (), hub=hub)
