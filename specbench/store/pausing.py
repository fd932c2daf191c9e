"""A run that is asked to wait between two questions, and says when it does. Two files in its folder, no signals.

`pause` is there while somebody wants it to wait; `paused` while it waits. No torch, no DuckDB.
"""

from __future__ import annotations

import time
from pathlib import Path

from specbench.errors import UsageError
from specbench.store.files import cannot_write, holder, is_training
from specbench.store.streamed import copy_of

_LOOK_EVERY_S = 0.2


def ask(folder: Path) -> None:
    """The run waits when the answer under way has ended. Raises UsageError where nobody writes it, for a training, and
    for the copy of another machine's run, whose process looks into another folder."""
    if is_training(folder):
        raise UsageError(f"{folder.name} is a training: it knows no pause", try_="stop it; specbench train --resume")
    _refuse_a_copy(folder, "touch")
    if holder(folder) is None:
        raise UsageError(f"no process writes {folder.name} any more", where=str(folder))
    try:
        (folder / "pause").touch()
    except OSError as error:
        raise cannot_write(folder / "pause", error) from error


def let_go(folder: Path) -> None:
    """The run goes on, within a fifth of a second. Raises UsageError for the copy of another machine's run."""
    _refuse_a_copy(folder, "rm")
    try:
        (folder / "pause").unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder / "pause", error) from error


def _refuse_a_copy(folder: Path, command: str) -> None:
    copy = copy_of(folder)
    if copy is not None:
        raise UsageError(
            f"{folder.name} runs on {copy.place.host}, and is only copied here",
            where=str(folder),
            try_=copy.place.asks(f"{command} {copy.place.quoted('pause')}"),
        )


def is_asked(folder: Path) -> bool:
    """Somebody wants it to wait."""
    return (folder / "pause").exists()


def is_waiting(folder: Path) -> bool:
    """It waits now."""
    return (folder / "paused").exists() and holder(folder) is not None


def forget(folder: Path) -> None:
    """What an attempt that was killed may have left: its successor does not wait for it."""
    for name in ("pause", "paused"):
        (folder / name).unlink(missing_ok=True)


def wait(folder: Path) -> float:
    """Of the run itself: stand still as long as it is asked to -> seconds."""
    began_s = time.monotonic()
    mark = folder / "paused"
    mark.touch()
    try:
        while is_asked(folder):
            time.sleep(_LOOK_EVERY_S)
    finally:
        mark.unlink(missing_ok=True)
    return time.monotonic() - began_s
