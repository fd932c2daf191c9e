"""What leaves the viewer: clipboard text and files, with their paths. No Textual."""

from __future__ import annotations

import time
from pathlib import Path

from specbench import paths
from specbench.store.files import cannot_write
from specbench.tui.sanitise import sendable

_MOST_IN_CLIPBOARD = 70_000
"""Characters: terminals cut or drop longer OSC 52 sequences; the file has all of it."""


def clipboard(words: str) -> str:
    """As much as a terminal takes, harmless."""
    return sendable(words)[:_MOST_IN_CLIPBOARD]


def place(store: Path | None, name: str, suffix: str) -> Path:
    """A new file's path in `exports/` beside the store. Raises EnvironmentFailed where the folder cannot be made."""
    folder = paths.exports_dir(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, try_="specbench tui --store DIR, one that you may write to") from error
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number = 0
    while (found := folder / f"{name}-{stamp}{f'-{number}' if number else ''}{suffix}").exists():
        number += 1
    return found


def write_text(store: Path | None, name: str, suffix: str, words: str) -> Path:
    """A text file, harmless to `cat`."""
    path = place(store, name, suffix)
    try:
        path.write_text(sendable(words).rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error, try_="specbench tui --store DIR, one that you may write to") from error
    return path


def write_svg(store: Path | None, name: str, svg: str) -> Path:
    """The screen as a picture. Not through `sendable`: it is XML, made of segments that are harmless already."""
    path = place(store, name, ".svg")
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error, try_="specbench tui --store DIR, one that you may write to") from error
    return path
