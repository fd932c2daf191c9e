"""Where things live on disk. No other file builds a path to a room. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from specbench.errors import EnvironmentFailed, UsageError

PACKAGE = Path(__file__).resolve().parent
DEMO = PACKAGE / "demo"
DEMO_MODELS = {"demo": DEMO / "target", "demo-draft": DEMO / "draft"}
"""Names that stand for the embedded models wherever a model is named."""

_RUN_ID = re.compile(r"[A-Za-z0-9_.-]+")


def expanded(text: str | Path, *, where: str = "") -> Path:
    """`~` and `~user` as the folders they stand for. Raises UsageError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        name = str(text).partition("/")[0]
        raise UsageError(
            f"{name!r} is nobody's home folder here", where=where or str(text), try_=f"./{text}, or the path in full"
        ) from error


def packaged_suites() -> Path:
    """`suites/`: inside the package when installed from a wheel, beside it in a checkout."""
    inside = PACKAGE / "suites"
    return inside if inside.is_dir() else PACKAGE.parent / "suites"


def _from_environment(name: str) -> Path | None:
    """The place that a variable names. An empty one names none: `XDG_CACHE_HOME=` is not the folder one stands in."""
    value = os.environ.get(name)
    return Path(value) if value else None


def results_dir(store: Path | None) -> Path:
    """The folder that holds `specbench.duckdb` and `runs/`: the store's folder, $SPECBENCH_RESULTS, or ./results."""
    if store is not None:
        return store.parent if store.suffix == ".duckdb" else store
    return _from_environment("SPECBENCH_RESULTS") or Path("results")


def store_file(store: Path | None) -> Path:
    """The DuckDB file: `--store FILE.duckdb`, or `specbench.duckdb` in `--store DIR`."""
    if store is not None and store.suffix == ".duckdb":
        return store
    return results_dir(store) / "specbench.duckdb"


def run_dir(store: Path | None, run_id: str) -> Path:
    """The journal's folder of one run."""
    return results_dir(store) / "runs" / run_id


def check_run_id(run_id: object, path: Path) -> None:
    """Raises EnvironmentFailed unless a run is called what its folder is. path: the file that says so.

    Rows in the store and the folder that `--resume` writes to go by the id: a copied folder would replace the rows of
    the run it was copied from, and an id that is a path would lead out of the store.
    """
    folder = path.absolute().parent
    if run_id == folder.name and _RUN_ID.fullmatch(folder.name) and folder.name not in (".", ".."):
        return
    if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id):
        what = f"a run's folder is called as the run, and this one says that it is {run_id!r}"
        remedy = f"rename the folder to {run_id}, or delete it where it is a copy"
    else:
        what = f"{run_id!r} cannot be the id of a run: letters, digits, '_', '.' and '-'"
        remedy = "restore the file from a copy, or delete the folder"
    raise EnvironmentFailed(f"{path.name} of {folder.name} is not this folder's: {what}", where=str(path), try_=remedy)


def cache_dir() -> Path:
    """Downloads' content hashes, reference passes and the like: $SPECBENCH_CACHE or the user's cache folder."""
    chosen = _from_environment("SPECBENCH_CACHE")
    return chosen or (_from_environment("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbench"


def config_file() -> Path:
    """The user's configuration: $SPECBENCH_CONFIG or ~/.config/specbench/config.yaml."""
    chosen = _from_environment("SPECBENCH_CONFIG")
    return chosen or (_from_environment("XDG_CONFIG_HOME") or Path.home() / ".config") / "specbench" / "config.yaml"


def demo_drafter(method: str) -> Path:
    """The folder of the drafter shipped for the embedded target."""
    return DEMO / "drafters" / method


def drafters_dir(store: Path | None) -> Path:
    """Where `specbench train` puts finished drafters unless told otherwise: `drafters/` beside the store."""
    return results_dir(store) / "drafters"


def adapters_dir(store: Path | None) -> Path:
    """Where `specbench adapt` keeps observed answers and adapter versions unless told otherwise."""
    return results_dir(store) / "adapters"


def logs_dir(store: Path | None) -> Path:
    """What runs started from `specbench tui` printed: `logs/` beside the store, one file a process."""
    return results_dir(store) / "logs"


def exports_dir(store: Path | None) -> Path:
    """What `specbench tui` copies and exports: `exports/` beside the store."""
    return results_dir(store) / "exports"
