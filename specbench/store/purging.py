"""What was observed in runs, deleted: `specbench adapt purge`. Measurements and rounds of learning stay. No torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from specbench import paths
from specbench.errors import EnvironmentFailed
from specbench.store.db import open_store
from specbench.store.observed import observed_file, read_observed


def runs_that_filled(adapters: Path, results: Path | None) -> list[Path]:
    """Folders of the runs that observed into an adapter store: the one it lies in, or those that named it.

    results: the results folder (or store file) whose runs are asked; a store that lies in a run needs none.
    """
    adapters = adapters.expanduser().resolve()
    within = adapters.parent.parent
    # Another run may have named the store that lies in one.
    found = [within] if adapters.parent.name == "adapters" and (within / "manifest.json").is_file() else []
    for manifest in sorted(paths.run_dir(results, "").glob("*/manifest.json")):
        try:
            methods = json.loads(manifest.read_text(encoding="utf-8"))["methods"]
            named = [str(method["options"].get("store") or "") for method in methods]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged manifest: `results ls` lists it as such
        names_it = any(each and Path(each).expanduser().resolve() == adapters for each in named)
        if names_it and manifest.parent.resolve() not in found:
            found.append(manifest.parent)
    return found


def purge_observed(store: Path, run_folder: Path) -> int:
    """Deletes a run's observed positions, beside its journal and in the DuckDB file -> how many there were.

    Raises StoreBusy before anything is deleted.
    """
    num = 0
    if store.exists():
        with open_store(store) as connection:
            where = "FROM observed WHERE run_id = ?"
            [(num,)] = connection.execute(f"SELECT count(*) {where}", [run_folder.name]).fetchall()
            connection.execute(f"DELETE {where}", [run_folder.name])
    file = observed_file(run_folder)
    if not num and file.exists():
        # Not ingested yet; a damaged file is deleted without having been counted.
        with suppress(EnvironmentFailed):
            num = sum(len(answer.position) for answer in read_observed(run_folder))
    file.unlink(missing_ok=True)
    return int(num)
