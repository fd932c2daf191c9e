"""What the viewer costs a run that it watches, as it was measured on this machine. No torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import EnvironmentFailed
from specbench.metrics import Interval
from specbench.store.files import write_whole

SCHEMA = 1
MOST = 0.02
"""A viewer whose interval ends above this is said to disturb."""


@dataclass(frozen=True, kw_only=True)
class ViewerCost:
    """A paired A/A measurement: plain decoding watched on the Race screen, against plain decoding unwatched."""

    slowdown: float
    """Seconds with the viewer / seconds without - 1, geometric mean over questions."""
    slowdown_ci: Interval
    """95 % bootstrap interval over questions."""
    num_questions: int
    repeats: int
    num_cpus: int
    """That the run and the viewer might use."""
    device: str
    suite: str = ""
    """Of the run that was watched; empty in files of before."""
    target: str = ""
    columns: int
    rows: int
    """Of the viewer's terminal."""
    version: str
    """Of specbench."""
    created: str
    """UTC, ISO 8601."""

    @property
    def is_small(self) -> bool:
        """The whole interval lies below MOST."""
        return self.slowdown_ci.high < MOST

    def words(self) -> str:
        """One sentence of what was found and how."""
        low, high = self.slowdown_ci
        cores = "1 core" if self.num_cpus == 1 else f"{self.num_cpus} cores"
        of = f" of {self.suite} on {self.target}" if self.suite and self.target else ""
        asked = f"{self.num_questions} questions × {self.repeats}{of}"
        how = f"{asked}, {cores}, {self.columns}×{self.rows}, {self.created[:10]}"
        return (
            f"the viewer on its Race screen slowed a run by {self.slowdown:+.2%} "
            f"(95 % interval {low:+.2%} to {high:+.2%}; {how})"
        )


def file_of(results: Path) -> Path:
    """Where a results folder keeps it."""
    return results / "viewer.json"


def write_viewer_cost(results: Path, cost: ViewerCost) -> Path:
    """Whole or not at all -> the file. Raises EnvironmentFailed."""
    path = file_of(results)
    body = {"schema": SCHEMA, **dataclasses.asdict(cost), "slowdown_ci": list(cost.slowdown_ci)}
    write_whole(path, json.dumps(body, indent=1) + "\n", try_="--store DIR, one that you may write to")
    return path


def read_viewer_cost(results: Path) -> ViewerCost | None:
    """The last one; None where nobody measured it. Raises EnvironmentFailed for a file that is none."""
    path = file_of(results)
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise _unreadable(path, f"schema {SCHEMA} is read here")
    names = {field.name for field in dataclasses.fields(ViewerCost)}
    try:
        given = {name: value for name, value in body.items() if name in names}
        return ViewerCost(**{**given, "slowdown_ci": Interval(*body["slowdown_ci"])})
    except (KeyError, TypeError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"{path.name} does not hold the viewer's cost: {why}", where=str(path), try_="specbench doctor --viewer"
    )
