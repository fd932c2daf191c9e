"""`observed.jsonl`: what verification showed of methods that learn, a line per answer, beside the journal.

A line holds numbers alone: which positions of the answer were observed, how deep in its draft each stood, whether it
was accepted, and sum min(p, q) of both models' laws there. Texts are in the journal, laws in the adapter store. No
torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specbench.errors import EnvironmentFailed, cannot_write
from specbench.store.journal import end_of_whole_lines


def observed_file(folder: Path) -> Path:
    """The file in a run folder; absent where nothing learns, and after `specbench adapt purge`."""
    return folder / "observed.jsonl"


class ObservedAnswer(NamedTuple):
    """One answer's observed positions; the lists are of one length."""

    group: int
    row: int
    domain: str
    version: int
    """Of the adapter that drafted; 0 = the draft model itself."""
    position: Sequence[int]
    """In the text, prompt included; ascending."""
    depth: Sequence[int]
    """1 = the first drafted token of its step."""
    accepted: Sequence[int]
    """0 or 1."""
    overlap: Sequence[float]
    """sum min(p, q) over the vocabulary at temperature 1."""


class ObservedLog:
    """The writer of one run. A disk that refuses is warned of once and ends the record, because measuring goes on."""

    def __init__(self, folder: Path) -> None:
        self._path = observed_file(folder)
        self._is_mended = False
        self.warning = ""
        """Why nothing more is kept; empty while it is."""

    def append(self, answers: Sequence[ObservedAnswer]) -> None:
        """All lines in one write."""
        if self.warning or not answers:
            return
        data = "".join(json.dumps(_body(each), separators=(",", ":")) + "\n" for each in answers).encode("ascii")
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                before = os.fstat(file).st_size
                if not self._is_mended:
                    # A killed run may have left half a line.
                    before = end_of_whole_lines(file)
                    os.ftruncate(file, before)
                    self._is_mended = True
                if os.write(file, data) != len(data):
                    os.ftruncate(file, before)
                    raise OSError(28, "No space left on device")
            finally:
                os.close(file)
        except OSError as error:
            found = cannot_write(self._path, error)
            self.warning = f"observed positions are kept no longer, the run goes on: {found.what}"


def read_observed(folder: Path) -> list[ObservedAnswer]:
    """Every whole line; a torn last one may still be growing. Empty where nothing was observed.

    Raises EnvironmentFailed naming file and line where one is damaged.
    """
    path = observed_file(folder)
    found = []
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(_answer(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise EnvironmentFailed(
                f"line {number} of what was observed cannot be read: {error!r}",
                where=f"{path}:{number}",
                try_="delete that line: an answer's observed positions are lost, no measurement",
            ) from error
    return found


def _body(answer: ObservedAnswer) -> dict[str, Any]:
    return answer._asdict() | {"overlap": [round(each, 5) for each in answer.overlap]}


def _answer(body: dict[str, Any]) -> ObservedAnswer:
    lists = [body["position"], body["depth"], body["accepted"], body["overlap"]]
    if len({len(each) for each in lists}) != 1:
        raise ValueError("its lists are of different lengths")
    whole = [body["group"], body["row"], body["version"], *lists[0], *lists[1], *lists[2]]
    if not all(isinstance(each, int) and each >= 0 for each in whole) or any(each > 1 for each in lists[2]):
        raise ValueError("a count is none")
    if not all(isinstance(each, int | float) and 0 <= each <= 1.001 for each in lists[3]):
        raise ValueError("an overlap is no share")
    return ObservedAnswer(body["group"], body["row"], str(body["domain"]), body["version"], *lists)
