"""The leaderboard as lines: the page's own scopes and rows. No Textual."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from specbench.metrics import Interval
from specbench.report import text
from specbench.tui.lines import Column, Line, Span, line, table, wrap

if TYPE_CHECKING:
    from specbench.store.compare import Comparison


def scope_rows(scope: dict[str, Any], marked: Set[str], width: int) -> tuple[list[Line], list[tuple[str, Line]]]:
    """One like-for-like scope. Keys `run\\nmethod`; marked: run ids."""
    columns = [
        Column("", drop=0),
        Column("rank"),
        Column("method", grows=True, is_name=True),
        Column("speed-up", right=True),
        Column("95 % interval", right=True),
        Column("τ", right=True, drop=1),
        Column("tok/s", right=True, drop=2),
        Column("η", right=True, drop=4),
        Column("same", right=True, drop=3),
        Column("run", drop=5),
    ]
    cells = [_cells(row, marked) for row in scope["rows"]]
    head, body = table(columns, cells, width)
    keys = ["\n".join((row["run_id"], row["method"])) for row in scope["rows"]]
    intro = [*wrap(scope["title"], width, "bold")]
    return [*intro, (), head], list(zip(keys, body, strict=True))


def _cells(row: dict[str, Any], marked: Set[str]) -> list[Span]:
    style = "bad" if row["is_broken"] else "" if row["standing"] == "ranked" else "dim"
    equality = row["equality"]
    same = text.NONE
    if equality is not None:
        total = sum(equality.values())
        same = f"{equality['identical']}/{total}" + (f" {equality['bug']} bug" if equality["bug"] else "")
    interval = row["speedup_ci"]
    return [
        Span("[x]" if row["run_id"] in marked else "[ ]"),
        Span(row["rank_text"], style),
        Span(row["method"], style),
        Span(text.times(row["speedup"]), style),
        Span(text.interval(Interval(*interval) if interval else None), style),
        Span(text.two(row["acceptance_length"]), style),
        Span(text.rate(row["tokens_per_s"]), style),
        Span(text.two(row["efficiency"]), style),
        Span(same, style),
        Span(row["run_id"], "dim"),
    ]


def about_lines(row: dict[str, Any], scope: dict[str, Any], width: int) -> list[Line]:
    """Notes of a row, then the scope's conditions and remarks."""
    found: list[Line] = [line(Span(row["method"], "bold"), Span(f"  {row['detail']}", "dim"))]
    for note in row["notes"]:
        found += wrap(note, width)
    found.append(())
    for remark in scope["remarks"]:
        found += wrap(remark, width, "bad" if "failed" in remark else "dim")
    found += [(), line(Span("conditions", "bold"))]
    for name, value in scope["conditions"]:
        found += wrap(f"{name}: {value}", width, "dim")
    return found


def comparison_lines(found: Comparison) -> list[Line]:
    """What `specbench results compare` prints, as a screen to read."""
    rows: list[Line] = [line(Span(f"{found.conditions['suite']} on {found.conditions['target']}", "bold"))]
    rows.append(line(f"{text.count(found.num_units, 'question')} that every method finished"))
    rows.append(())
    for entry in found.entries:
        unranked = "" if entry.ranked else f"  {entry.rank_words}"
        words = f"{text.times(entry.speedup):>6} {text.interval(entry.speedup_ci):>14}  "
        rows.append(line(words, Span(entry.method, "bold"), Span(f"  {entry.run_id}{unranked}", "dim")))
    rows += [(), line(Span("first / second, question by question", "bold"))]
    for pair in found.pairs:
        if pair.first.run_id == pair.second.run_id:
            continue
        words = f"{text.times(pair.ratio):>6} {text.interval(pair.ratio_ci):>14}  "
        tied = "  tied" if pair.tied else "" if pair.ranked else "  not ranked"
        rows.append(line(words, f"{pair.first.method} / {pair.second.method}", Span(tied, "warn")))
    rows.append(())
    for drift in found.drift:
        interval = text.interval(drift.ratio_ci)
        rows += wrap(
            f"The baseline of {drift.run_id} took {text.times(drift.ratio)} {interval} the first run's time: "
            f"that is {drift.cause}, not a method.",
            96,
            "dim",
        )
    for note in found.notes:
        rows += wrap(note, 96, "warn")
    return rows


def as_csv(board: dict[str, Any]) -> str:
    """Every row of every scope, one line each."""
    import csv
    import io

    names = ["scope", "rank_text", "method", "speedup", "speedup_low", "speedup_high", "acceptance_length"]
    names += ["tokens_per_s", "efficiency", "run_id"]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for scope in board["scopes"]:
        for row in scope["rows"]:
            low, high = row["speedup_ci"] or (None, None)
            said = {name: row[name] for name in names if name in row}
            writer.writerow(said | {"scope": scope["title"], "speedup_low": low, "speedup_high": high})
    return out.getvalue()
