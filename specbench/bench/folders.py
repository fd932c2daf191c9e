"""Where a run is written: seen to be writable before anything is loaded, left empty where nothing came of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specbench import paths
from specbench.store.files import cannot_write

_REMEDY = "--store DIR, one that you may write to"


def check_place(store: Path | None) -> None:
    """Make the folder of all runs, and see that a run's can be made in it. Raises EnvironmentFailed."""
    check_folder(paths.run_dir(store, ""))


def check_folder(folder: Path) -> None:
    """Make a folder of the store's, and see that something can be made in it. Raises EnvironmentFailed."""
    # A try: permissions do not tell of a read-only file system, nor of a full one.
    probe = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _refused(error, folder) from error


@contextmanager
def run_folder(store: Path | None, run_id: str) -> Iterator[Path]:
    """A run's folder, made where there is none. It goes again where an error leaves it without a manifest: nothing was
    measured then, and nothing lists what has none. Raises EnvironmentFailed where it cannot be made."""
    folder = paths.run_dir(store, run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(error, folder) from error
    try:
        yield folder
    except BaseException:
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # the error at hand is what must be told
        raise


def _refused(error: OSError, folder: Path) -> Exception:
    # The folder that refused: it may be several levels above.
    return cannot_write(Path(error.filename or folder), error, try_=_REMEDY)
