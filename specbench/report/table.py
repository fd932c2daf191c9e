"""The comparison table of one run: on a terminal, as plain text in a pipe, as Markdown in a file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from specbench.report import text
from specbench.report.layout import cell_len, column_widths, lay_out, wrap_words
from specbench.report.standing import Standing, is_broken, rank_text, sort_key, standing
from specbench.store.records import MethodRow, RunSummary

if TYPE_CHECKING:
    from rich.console import Console

DROP_ORDER = ("questions", "efficiency", "decode", "energy", "accuracy", "tok/s", "acceptance", "equality")
"""Columns that leave first on a narrow terminal; rank, method, speed-up and interval never do."""

_HEADS = {
    "rank": "rank",
    "method": "method",
    "speedup": "speed-up",
    "interval": "95 % interval",
    "decode": "decode",
    "acceptance": "τ",
    "efficiency": "η",
    "tok/s": "tok/s",
    "energy": "J/tok",
    "equality": "same/tie num/bug",
    "accuracy": "accuracy",
    "questions": "questions",
}
_LEFT = ("rank", "method")
_UNLIMITED = 10_000
"""Cells of a line that is not for a terminal."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row as text, cells by column name in the order of the columns."""

    where: Standing
    cells: dict[str, str]
    is_broken: bool
    """Carries a `bug` verdict, see `standing.is_broken`."""
    notes: tuple[str, ...]


class Styled(NamedTuple):
    """A line of output and the rich style it has where there is colour."""

    text: str
    style: str = ""


def lines(summary: RunSummary) -> list[Line]:
    """Rows in reading order: ranked, too noisy, not ranked, baseline, control."""
    placed = [(standing(row), row) for row in summary.rows]
    placed.sort(key=lambda pair: sort_key(pair[0], rank=pair[1].rank, speedup=pair[1].speedup))
    has_accuracy = any(row.accuracy is not None for row in summary.rows)
    has_energy = any(row.joules_per_token is not None for row in summary.rows)
    return [
        _line(where, row, has_accuracy=has_accuracy, has_energy=has_energy, rule=summary.rule) for where, row in placed
    ]


def _line(where: Standing, row: MethodRow, *, has_accuracy: bool, has_energy: bool, rule: str) -> Line:
    equality = row.equality
    cells = {
        "rank": rank_text(where, rank=row.rank, is_tied=bool(row.tied_with)),
        "method": text.printable(row.method),
        "speedup": text.times(row.speedup),
        "interval": text.interval(row.speedup_ci),
        "decode": text.times(row.speedup_decode),
        "acceptance": text.two(row.acceptance_length),
        "efficiency": text.two(row.efficiency),
        "tok/s": text.rate(row.tokens_per_s),
        "energy": text.joules(row.joules_per_token),
        "equality": f"{equality.identical}/{equality.tie}/{equality.numeric}/{equality.bug}" if equality else text.NONE,
        "accuracy": text.percent(row.accuracy),
        "questions": f"{row.num_questions} × {row.num_repeats}",
    }
    if not has_accuracy:
        del cells["accuracy"]
    if not has_energy:
        del cells["energy"]
    tied = (f"tied with {text.listing(map(text.printable, row.tied_with))}",) if row.tied_with else ()
    notes = tied + tuple(text.printable(note) for note in row.notes)
    return Line(where=where, cells=cells, is_broken=is_broken(row, rule=rule), notes=notes)


def conditions(summary: RunSummary) -> list[str]:
    """What was measured, on what and how: three lines."""
    count = f"{text.count(summary.num_questions, 'question')} × {text.count(summary.repeats, 'repeat')}"
    size = f"{text.printable(summary.model_type)}, {text.parameters(summary.num_parameters)}"
    state = "" if summary.state == "finished" else f" · {summary.state.upper()}, partial"
    return [
        f"{text.printable(summary.suite)} · {count} · run {text.printable(summary.run_id)}{state}",
        f"target {text.printable(summary.target)} ({size}) · {text.device(summary)}",
        " · ".join([*text.settings(summary), f"seed {summary.seed}"]),
    ]


def remarks(summary: RunSummary) -> list[str]:
    """What belongs to the whole run: control, baseline meter, notes."""
    notes = [text.printable(note) for note in summary.notes]
    return [line for line in (text.control(summary), text.meter(summary), *notes) if line]


def contrast_lines(summary: RunSummary) -> list[str]:
    """What one option is worth, a sentence for each pair that differs in nothing else."""
    found = []
    for each in summary.contrasts:
        acceptance = f"τ {text.times(each.acceptance_ratio)} {text.interval(each.acceptance_ratio_ci)}, "
        found.append(
            f"{text.printable(each.method)}: {text.printable(each.option)}={text.printable(each.value)} instead of "
            f"{text.printable(each.base_value)} is worth {acceptance}"
            f"speed {text.times(each.speed_ratio)} {text.interval(each.speed_ratio_ci)}"
        )
    return found


def print_summary(summary: RunSummary, console: Console) -> None:
    """Write the table: fitted to a terminal's width in colour, every column as plain text where the output is none."""
    from rich.text import Text  # 30 ms, only where a table is shown

    is_unicode = console.encoding.lower().startswith("utf")
    for line in styled(summary, width=console.width if console.is_terminal else None):
        shown = line.text if is_unicode else text.ascii_only(line.text)
        console.print(Text(shown, style=line.style), soft_wrap=True)


def to_text(summary: RunSummary, *, width: int | None = None) -> str:
    """The table without colour: fitted to `width` cells, or every column where it is None."""
    return "\n".join(line.text for line in styled(summary, width=width)) + "\n"


def styled(summary: RunSummary, *, width: int | None) -> list[Styled]:
    """Conditions, table, notes and remarks, line by line. Numbers are never wrapped; columns leave by `DROP_ORDER`."""
    table_lines = lines(summary)
    columns, dropped = _fitting(table_lines, width)
    room = width or _UNLIMITED
    found = [Styled(part, "bold") for part in wrap_words(conditions(summary)[0], room)]
    found += [Styled(part) for line in conditions(summary)[1:] for part in wrap_words(line, room)]
    found.append(Styled(""))
    found += _table(table_lines, columns, room)
    found.append(Styled(""))
    for line in table_lines:
        style = "red" if line.is_broken else "dim"
        found += [Styled(p, style) for note in line.notes for p in wrap_words(f"{line.cells['method']}: {note}", room)]
    for sentence in contrast_lines(summary):
        found += [Styled(part) for part in wrap_words(sentence, room)]
    for remark in remarks(summary):
        found += [Styled(part, "red" if "failed" in remark else "dim") for part in wrap_words(remark, room)]
    if dropped:
        heads = text.listing(_HEADS[name].replace(" ", "/") for name in dropped)
        hint = f"Too narrow for {heads}: `specbench results show {text.printable(summary.run_id)} --json` has all."
        found += [Styled(part, "dim") for part in wrap_words(hint, room)]
    return found


def _fitting(table_lines: Sequence[Line], width: int | None) -> tuple[list[str], list[str]]:
    """The columns that fit into `width`, and those that had to leave."""
    columns = list(table_lines[0].cells) if table_lines else list(_HEADS)
    dropped: list[str] = []
    for name in DROP_ORDER if width is not None else ():
        if sum(_widths(table_lines, columns, width)) + 2 * (len(columns) - 1) <= (width or _UNLIMITED):
            break
        if name in columns:
            columns.remove(name)
            dropped.append(name)
    return columns, dropped


def _widths(table_lines: Sequence[Line], columns: Sequence[str], width: int | None) -> list[int]:
    wraps = {} if width is None else {"rank": 10, "method": 16}
    cells = [[line.cells[name] for name in columns] for line in table_lines]
    return column_widths(
        [_HEADS[name].split() if name == "equality" else [_HEADS[name]] for name in columns],
        cells,
        [wraps.get(name) for name in columns],
    )


def _table(table_lines: Sequence[Line], columns: Sequence[str], room: int) -> list[Styled]:
    widths = _widths(table_lines, columns, room if room < _UNLIMITED else None)
    spare = room - sum(widths) - 2 * (len(widths) - 1)
    # What is left over goes to the names, so that fewer of them wrap.
    longest = max((cell_len(line.cells["method"]) for line in table_lines), default=0)
    at = list(columns).index("method")
    widths[at] += max(0, min(spare, longest - widths[at]))
    left = [name in _LEFT for name in columns]
    rule = sum(widths) + 2 * (len(widths) - 1)
    heads = lay_out([_HEADS[name] for name in columns], widths, left, at_bottom=True)
    found = [Styled(head, "bold") for head in heads]
    found.append(Styled("─" * rule, "dim"))
    for line in table_lines:
        style = "red" if line.is_broken else "" if line.where is Standing.RANKED else "dim"
        found += [Styled(part, style) for part in lay_out([line.cells[name] for name in columns], widths, left)]
    return found


def to_markdown(summary: RunSummary) -> str:
    """Conditions, table and remarks as GitHub Markdown, every column; names cannot break out of their cell."""
    table_lines = lines(summary)
    columns = list(table_lines[0].cells) if table_lines else []
    heads = [_HEADS[name].replace(" num", "/num") for name in columns]
    rule = [":---" if name in _LEFT else "---:" for name in columns]
    body = [[_escaped(line.cells[name]) for name in columns] for line in table_lines]
    rows = ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *body)]
    notes = [f"- {_escaped(line.cells['method'])}: {_escaped(note)}" for line in table_lines for note in line.notes]
    notes += [f"- {_escaped(line)}" for line in (*contrast_lines(summary), *remarks(summary))]
    head = "  \n".join(_escaped(line) for line in conditions(summary))
    return "\n".join([head, "", *rows, "", *notes]) + "\n"


def _escaped(cell: str) -> str:
    found = html.escape(cell, quote=False)
    for char in "\\|*_`":
        found = found.replace(char, "\\" + char)
    return found.replace("](", "]\\(")
