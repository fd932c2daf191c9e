"""An experiment as a table of acceptance (trainings down, evaluations across, the seeds' spread) and as curves.

Made of the cells alone: what the page says is what `cells.jsonl` holds.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from specbench.report.figures import Figure, line, render_figures
from specbench.report.text import NONE, printable
from specbench.store.cells import Cell, Scalar
from specbench.store.files import write_whole

_NAMELESS = ("dataset", "suite")
_SIZES = ("share", "documents")


class Spread(NamedTuple):
    """A figure over the seeds that are finished."""

    mean: float
    low: float
    high: float
    num: int

    def text(self, digits: int = 3) -> str:
        """`2.310`, or `2.310 [2.280–2.350]` of several seeds."""
        if self.num == 1:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}–{self.high:.{digits}f}]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Trainings that differ in their seed alone."""

    label: str
    trainings: tuple[Cell, ...]
    measures: tuple[tuple[Cell, ...], ...]
    """By column."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts, ready for a terminal once control characters are gone, for HTML once escaped."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Cells sorted into rows and columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    kinds: tuple[str, ...]
    """Of the columns: `evaluation` or `bench`."""


def make_matrix(cells: Sequence[Cell]) -> Matrix:
    """cells: in the plan's order, which rows and columns keep."""
    several = len({cell.method for cell in cells}) > 1
    measured = [cell for cell in cells if cell.kind != "training"]
    heads = dict.fromkeys((cell.kind, _label(cell.measure, cell.method)) for cell in measured)
    ordered = sorted(heads, key=lambda head: head[0] == "bench")
    rows = []
    for label in dict.fromkeys(_row_label(cell, several) for cell in cells):
        own = [cell for cell in cells if _row_label(cell, several) == label]
        rows.append(
            Row(
                label=label,
                trainings=tuple(cell for cell in own if cell.kind == "training"),
                measures=tuple(
                    tuple(cell for cell in own if (cell.kind, _label(cell.measure, cell.method)) == head)
                    for head in ordered
                ),
            )
        )
    return Matrix(
        columns=tuple(name for _, name in ordered), kinds=tuple(kind for kind, _ in ordered), rows=tuple(rows)
    )


def spread(cells: Sequence[Cell], figure: str) -> Spread | None:
    """Of a figure over the finished cells; None where none has it."""
    values = [cell.figures.get(figure) for cell in cells if cell.state == "finished"]
    known = [float(value) for value in values if value is not None]
    return Spread(statistics.fmean(known), min(known), max(known), len(known)) if known else None


def tables_of(cells: Sequence[Cell]) -> list[Table]:
    """Acceptance, what was trained; prompts seen on both sides and errors where there are some."""
    matrix = make_matrix(cells)
    heads = [
        f"speed-up, {name}" if kind == "bench" else name
        for name, kind in zip(matrix.columns, matrix.kinds, strict=True)
    ]
    rows = [(row.label, *_values(row, matrix.kinds)) for row in matrix.rows]
    found = [Table(title="Simulated acceptance length τ", columns=("training", *heads), rows=tuple(rows))]
    facts = ("parameters", "documents", "tokens", "seconds", "best_step")
    trained = [(row.label, *(_whole(spread(row.trainings, name)) for name in facts)) for row in matrix.rows]
    heads = ["training", "parameters", "documents", "tokens", "seconds", "best at step"]
    found.append(Table(title="Trainings (means over seeds)", columns=tuple(heads), rows=tuple(trained)))
    overlaps = [
        (row.label, column, f"{most.high:.0f} of {cells_of[0].figures['num_documents']}")
        for row in matrix.rows
        for column, cells_of in zip(matrix.columns, row.measures, strict=True)
        if (most := spread(cells_of, "num_learnt")) is not None and most.high > 0
    ]
    if overlaps:
        heads = ["training", "evaluation", "documents whose prompt was also learnt"]
        found.append(Table(title="Not wholly held out", columns=tuple(heads), rows=tuple(overlaps)))
    failed = [
        (_row_label(cell, True), cell.kind, _label(cell.measure, cell.method), f"{cell.seed}", printable(cell.error))
        for cell in cells
        if cell.state == "failed"
    ]
    if failed:
        heads = ["training", "cell", "of", "seed", "error"]
        found.append(Table(title="Failed", columns=tuple(heads), rows=tuple(failed)))
    return found


def figures_of(cells: Sequence[Cell]) -> list[Figure]:
    """τ against documents where their number varies, τ while training, accuracy by depth; means over seeds."""
    matrix = make_matrix(cells)
    return [*_by_documents(cells), *_while_training(matrix), *_by_depth(matrix)]


def counts_of(cells: Sequence[Cell]) -> str:
    """`12 of 18 cells finished, 1 failed`."""
    finished = sum(cell.state == "finished" for cell in cells)
    failed = sum(cell.state == "failed" for cell in cells)
    return f"{finished} of {len(cells)} cells finished" + (f", {failed} failed" if failed else "")


def write_experiment_page(name: str, title: str, target: str, cells: Sequence[Cell], out: Path) -> Path:
    """One HTML file. Raises EnvironmentFailed where it cannot be written."""
    remedy = "specbench experiment NAME -o FILE, in a folder that can be written and on a disk with room"
    write_whole(out, render_experiment(name, title, target, cells), try_=remedy)
    return out


def render_experiment(name: str, title: str, target: str, cells: Sequence[Cell]) -> str:
    """The page as text; nothing in it is fetched."""
    facts = (("experiment", name), ("target", _shown(target)), ("state", counts_of(cells)))
    body = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(printable(value))}</dd>" for key, value in facts)
    tables = "".join(_as_html(table) for table in tables_of(cells))
    return render_figures(title or name, f"<dl>{body}</dl>{tables}", figures_of(cells))


def _as_html(table: Table) -> str:
    def cell(tag: str, text: str) -> str:
        return f"<{tag}>{html.escape(printable(text))}</{tag}>"

    head = "".join(cell("th", text) for text in table.columns)
    rows = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in table.rows)
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


# --- labels and values ---------------------------------------------------------------------------------------------


def _label(axes: dict[str, Scalar], method: str) -> str:
    """`demo, transform=off`; a method's own options without its name."""
    return ", ".join(
        _shown(value) if name in _NAMELESS else f"{name.removeprefix(method + '.')}={_shown(value)}"
        for name, value in axes.items()
    )


def _row_label(cell: Cell, several: bool, *, without: tuple[str, ...] = ()) -> str:
    axes = [
        f"{name.removeprefix(cell.method + '.')}={_shown(value)}"
        for name, value in cell.axes.items()
        if name not in without
    ]
    return ", ".join([cell.method, *axes] if several or not axes else axes)


def _shown(value: Scalar) -> str:
    """A file by its last two names; a truth value as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    head = "self:" if str(value).startswith("self:") else ""
    text = str(value)[len(head) :]
    return printable(head + ("/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text))


def _values(row: Row, kinds: Sequence[str]) -> Iterator[str]:
    for cells, kind in zip(row.measures, kinds, strict=True):
        found = spread(cells, "speedup" if kind == "bench" else "tau")
        if found is not None:
            yield found.text()
        elif any(cell.state == "failed" for cell in (*cells, *row.trainings)):
            yield "failed"
        else:
            yield "open" if any(cell.state == "open" for cell in cells) else NONE


def _whole(found: Spread | None) -> str:
    return NONE if found is None else f"{found.mean:,.0f}"


# --- curves --------------------------------------------------------------------------------------------------------


def _by_documents(cells: Sequence[Cell]) -> Iterator[Figure]:
    several = len({cell.method for cell in cells}) > 1
    num_of = {cell.cell_id: cell.figures.get("documents") for cell in cells if cell.kind == "training"}
    if not any(name in cell.axes for cell in cells for name in _SIZES):
        return
    measured = [cell for cell in cells if cell.kind == "evaluation" and cell.figures.get("tau") is not None]
    for column in dict.fromkeys(_label(cell.measure, cell.method) for cell in measured):
        own = [cell for cell in measured if _label(cell.measure, cell.method) == column]
        traces = []
        for name in dict.fromkeys(_row_label(cell, several, without=_SIZES) for cell in own):
            points: dict[int, list[Cell]] = {}
            for cell in own:
                num = num_of.get(cell.training_id)
                if _row_label(cell, several, without=_SIZES) == name and num is not None:
                    points.setdefault(int(num), []).append(cell)
            sizes = sorted(points)
            spreads = [spread(points[num], "tau") for num in sizes]
            trace = line(name, sizes, [each.mean if each else None for each in spreads], dots=True)
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [each.high - each.mean if each else 0.0 for each in spreads],
                "arrayminus": [each.mean - each.low if each else 0.0 for each in spreads],
            }
            traces.append(trace)
        yield Figure(f"τ on {column} against the amount of data", "tokens a step, bonus included", traces, "documents")


def _while_training(matrix: Matrix) -> Iterator[Figure]:
    traces = []
    for row in matrix.rows:
        for cell in row.trainings:
            curve = [point for point in cell.figures.get("curve", ()) if point["tau"] is not None]
            name = row.label if len(row.trainings) == 1 else f"{row.label}, seed {cell.seed}"
            if curve:
                traces.append(line(name, [p["tokens"] for p in curve], [p["tau"] for p in curve], dots=True))
    if traces:
        yield Figure("τ while training, on the documents that choose the best", "tokens a step", traces, "tokens read")


def _by_depth(matrix: Matrix) -> Iterator[Figure]:
    for place, (column, kind) in enumerate(zip(matrix.columns, matrix.kinds, strict=True)):
        if kind != "evaluation":
            continue
        traces = []
        for row in matrix.rows:
            found = [cell.figures["accuracy"] for cell in row.measures[place] if cell.figures.get("accuracy")]
            if found:
                depth = min(len(each) for each in found)
                means = [statistics.fmean(each[at][0] for each in found) for at in range(depth)]
                traces.append(line(row.label, list(range(1, depth + 1)), means, dots=True))
        if traces:
            yield Figure(f"Accuracy of the first choice by depth, {column}", "share of labels", traces, "depth")
