"""Tails a journal by byte offset: whole lines since the last look, never more than asked for. No Textual.

The writer cuts back nothing but a torn last line, which is not read here: an offset once reached stays right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from specbench.errors import EnvironmentFailed


class Line(NamedTuple):
    """A whole line, newline included, and where it begins."""

    offset: int
    data: bytes


class Tail:
    """Reads on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Behind the last whole line that was handed out."""
        self.is_behind = False
        """There was more than the last `read` took."""

    def read(self, *, limit_bytes: int | None = None) -> Iterator[Line]:
        """Whole lines since the last call; nothing where the file is not there yet.

        limit_bytes: stop after the line that passes it, so that a screen stays alive while a long journal is opened.
        Raises EnvironmentFailed where the file became shorter: it was replaced under the viewer.
        """
        self.is_behind = False
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            if os.fstat(file.fileno()).st_size < self.offset:
                raise EnvironmentFailed(
                    "the journal became shorter while it was watched: it was replaced",
                    where=str(self.path),
                    try_="go back and open the run again",
                )
            start = self.offset
            file.seek(start)
            for data in file:
                if not data.endswith(b"\n"):
                    return
                line = Line(self.offset, data)
                self.offset += len(data)
                yield line
                if limit_bytes is not None and self.offset - start >= limit_bytes:
                    self.is_behind = True
                    return


def lines_at(path: Path, offsets: list[int]) -> Iterator[bytes]:
    """The lines that begin at these offsets, in order. Raises EnvironmentFailed where the file is gone."""
    if not offsets:
        return
    try:
        with path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield file.readline()
    except OSError as error:
        raise EnvironmentFailed(
            f"the journal cannot be read any more: {error.strerror or error}",
            where=str(path),
            try_="1 goes Home, which shows what is there now",
        ) from error
