"""Where a suite's questions are: files of the search path, downloads of before, and what to do without either.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.suite import hub as hub_room
from specbench.suite.reading import read_text
from specbench.suite.schema import Source, SuiteFile

CONFIG_KEYS = ("data",)
"""What the configuration file may say."""

State = Literal["inline", "local", "downloaded", "hub", "missing", "unreadable"]
"""inline: in the YAML; local: a file of the search path; downloaded: fetched before; hub: can be fetched."""


@dataclass(frozen=True)
class Located:
    """Where a suite's questions are, or that they are not."""

    state: State
    source: Source | None
    path: Path | None


def search_path(data_dirs: Iterable[Path]) -> tuple[Path, ...]:
    """Folders for suite files: `--data`, then SPECBENCH_DATA, then the configuration's `data:`.

    Raises UsageError for a folder that does not exist: a mistyped folder must not turn into a download.
    """
    named = [(Path(folder), "--data") for folder in data_dirs]
    named += [(Path(part), "SPECBENCH_DATA") for part in os.environ.get("SPECBENCH_DATA", "").split(os.pathsep) if part]
    named += [(folder, f"`data:` in {paths.config_file()}") for folder in _configured_dirs()]
    for folder, origin in named:
        if not folder.is_dir():
            raise UsageError(f"no such data folder: {folder}", where=origin)
    return tuple(dict.fromkeys(folder for folder, _ in named))


def locate(suite: SuiteFile, dirs: tuple[Path, ...]) -> Located:
    """Inline, else a local file (folders in their order), else a download of before, else the hub."""
    if suite.questions is not None:
        return Located("inline", None, None)
    for folder in dirs:
        for source in suite.sources:
            if source.local and (folder / source.local).is_file():
                return Located("local", source, folder / source.local)
    hubs = [source for source in suite.sources if source.hub]
    for source in hubs:
        if source.hub and hub_room.downloaded_file(source.hub):
            return Located("downloaded", source, None)
    return Located("hub", hubs[0], None) if hubs else Located("missing", None, None)


def not_here(suite: SuiteFile, located: Located, dirs: tuple[Path, ...], *, offline: bool) -> EnvironmentFailed:
    """The error for a suite that cannot be had: what was wanted, where it was looked for, what would help."""
    why = " and the network is not to be used" if offline else ""
    searched = ", ".join(map(str, dict.fromkeys(dirs))) or "no data folder"
    return EnvironmentFailed(
        f"the questions of {suite.name!r} are not here{why}: {wanted(suite)} is wanted",
        where=f"searched: {searched}",
        try_=what_would_help(suite, can_fetch=located.state == "hub"),
    )


def wanted(suite: SuiteFile) -> str:
    """The local files of which one would do."""
    return " or ".join(source.local for source in suite.sources if source.local) or "a download"


def what_would_help(suite: SuiteFile, *, can_fetch: bool) -> str:
    """Commands that bring the suite here, nearest first."""
    local = next((source for source in suite.sources if source.local), None)
    ways = [f"specbench suites fetch {suite.name} (once, with a connection)"] if can_fetch else []
    if local is not None:
        ways.append(f"put {local.local} under a folder and pass --data DIR")
        if local.url:
            ways.append(f"curl -L --create-dirs -o DIR/{local.local} {local.url}")
    return "; or ".join(ways)


def _configured_dirs() -> list[Path]:
    """`data:` of the configuration, relative to the configuration's folder: the only key there is.

    Raises UsageError for a file that SPECBENCH_CONFIG names and that is not there, and for one that says anything else:
    a mistyped key must not turn into a download.
    """
    path = paths.config_file()
    if not path.is_file():
        if os.environ.get("SPECBENCH_CONFIG"):
            raise UsageError(f"there is no configuration at {path}", where="SPECBENCH_CONFIG")
        return []
    try:
        raw = yaml.safe_load(read_text(path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"not valid YAML: {error.problem}", where=f"{path}:{line}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from error
    if raw is None:
        return []
    if not isinstance(raw, dict):
        raise UsageError("the configuration is a YAML mapping", where=str(path), try_="data: FOLDER")
    unknown = [str(key) for key in raw if key not in CONFIG_KEYS]
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r}; {did_you_mean(unknown[0], CONFIG_KEYS)}", where=str(path))
    value = raw.get("data", [])
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UsageError("`data:` is a folder or a list of folders", where=str(path))
    return [path.parent / paths.expanded(folder, where=str(path)) for folder in folders]
