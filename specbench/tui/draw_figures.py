"""Acceptance and speed as lines: the store's figures, drawn with the numbers beside every shape. No Textual."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from specbench.report import text
from specbench.report.standing import Standing, rank_text, sort_key, standing
from specbench.store.records import MethodRow, RunSummary
from specbench.store.traces import Which
from specbench.tui.draw_race import forest, method_name, method_style
from specbench.tui.lines import BARS, Line, Span, cell, fit, line, wrap
from specbench.tui.marks import symbol

FEW = 50
"""Tests of a position below which its rate is marked: one answer more would move it."""
_SHADES = ((0.8, "█"), (0.6, "▓"), (0.4, "▒"), (0.2, "░"), (0.0, " "))
_CELL = 9
_MOST_DEPTHS = 10


def shade(rate: float) -> str:
    """Darker for more; the number beside it says the same."""
    return next(glyph for least, glyph in _SHADES if rate >= least)


def methods_of(summary: RunSummary) -> list[str]:
    """Every name in the run."""
    return [row.method for row in summary.rows]


def drafting(summary: RunSummary) -> list[tuple[int, MethodRow]]:
    """Rows that draft, with their place in the plan."""
    return [(place, row) for place, row in enumerate(summary.rows) if row.kind != "baseline"]


def acceptance_lines(summary: RunSummary, positions: Sequence[dict[str, Any]], *, unit: str, width: int) -> list[Line]:
    """Depth x category x method. unit: 'conditional' or 'survival', columns of acceptance_by_position."""
    by_cell = {(row["method"], row["category"], row["depth"]): row for row in positions}
    rows = drafting(summary)
    if not rows or not by_cell:
        return wrap("No method of this run has drafted anything yet.", width, "dim")
    categories = sorted({row["category"] for row in positions if row["category"] is not None})
    # One category says what "all" says.
    shown: list[str | None] = [None, *(categories if len(categories) > 1 else [])]
    names = min(24, max(12, max(len(row.method) for _, row in rows) + 3))
    # A run of a hundred categories has names of any length; their column takes what the longest needs, to a point.
    kinds = min(14, max([3, *(len(each) for each in categories)]))
    depths = max(row["depth"] for row in positions)
    depths = min(depths, _MOST_DEPTHS, max(1, (width - names - kinds - 9) // _CELL))
    head = (
        " " * names + cell("", kinds + 1) + "".join(cell(f"depth {k}", _CELL) for k in range(1, depths + 1)) + "    τ"
    )
    found: list[Line] = [fit((Span(head, "bold"),), width)]
    for place, row in rows:
        taus = {each.category: each.acceptance_length for each in row.by_category}
        for number, category in enumerate(shown):
            first = method_name(row.method, place, names, methods_of(summary)) if number == 0 else (Span(" " * names),)
            parts: list[Span] = [*first, Span(cell(category or "all", kinds) + " ", "" if category else "bold")]
            for depth in range(1, depths + 1):
                parts += _rate(by_cell.get((row.method, category, depth)), unit)
            tau = row.acceptance_length if category is None else taus.get(category)
            parts.append(Span(f"{text.two(tau):>5}", "bold" if category is None else ""))
            found.append(fit(tuple(parts), width))
    said = (
        "accepted given that the one before was" if unit == "conditional" else "steps that kept so many drafted tokens"
    )
    found += [(), *wrap(f"rate: {said} · █ ≥ .8 ▓ ≥ .6 ▒ ≥ .4 ░ ≥ .2 · ≈ fewer than {FEW} tests", width, "dim")]
    return found


def _rate(row: dict[str, Any] | None, unit: str) -> tuple[Span, ...]:
    rate = row[unit] if row is not None else None
    if row is None or rate is None:
        return (Span(cell(f"  {text.NONE}", _CELL), "dim"),)
    few = "≈" if row["num_tested"] < FEW else " "
    number = f"{rate:.2f}".removeprefix("0") if rate < 1 else "1.0"
    return Span(shade(rate) * 2, "accent"), Span(cell(f"{few}{number}", _CELL - 2))


def survival_lines(summary: RunSummary, width: int) -> list[Line]:
    """P(at least k accepted), a bar and a number for each depth."""
    found: list[Line] = []
    names = max(8, min(22, width // 3))
    for place, row in drafting(summary):
        survival = row.acceptance_by_position.survival[: max(1, (width - names) // 6)]
        parts = [*method_name(row.method, place, names, methods_of(summary))]
        for rate in survival:
            bar = BARS[min(7, int(rate * 8))] if rate > 0 else " "
            parts.append(Span(f"{bar} {rate:.2f} ".replace("0.", ".", 1)))
        found.append(fit(tuple(parts), width))
    return found or wrap("nothing was drafted", width, "dim")


def worst_rows(
    summary: RunSummary, worst: Sequence[dict[str, Any]], width: int
) -> tuple[list[Line], list[tuple[str, Line]]]:
    """Answers with the fewest tokens per step; keys as `answer_of` reads them."""
    places = {row.method: place for place, row in enumerate(summary.rows)}
    names = max(8, min(20, width - 30))
    head = line(Span(cell("method", names) + f"{'τ':>5} {'steps':>6}  question", "bold"))
    rows = []
    for each in worst:
        words = f"{each['tau']:>5.2f} {each['num_steps']:>6}  {each['question_id']} turn {each['turn'] + 1} "
        # A question may be called anything, line breaks included.
        key = json.dumps((each["method"], each["question_id"], each["turn"]))
        head_of = method_name(each["method"], places.get(each["method"], 0), names, methods_of(summary))
        rows.append((key, fit((*head_of, *line(words, Span(each["category"], "dim"))), width)))
    return [fit(head, width)], rows


def answer_of(key: str) -> Which:
    """The first repeat of the answer whose row has this key."""
    method, question_id, turn = json.loads(key)
    return Which(method, question_id, turn, 0)


# --- speed ------------------------------------------------------------------------------------------------------------


def speed_scale(summary: RunSummary) -> tuple[float, float]:
    """Ends that hold 1 and every pooled interval; categories beyond them are cut at the edge."""
    ends = [1.0]
    for row in summary.rows:
        ends += [row.speedup] if row.speedup is not None else []
        ends += list(row.speedup_ci or ())
    margin = max(0.05, 0.05 * (max(ends) - min(ends)))
    return min(ends) - margin, max(ends) + margin


def forest_lines(summary: RunSummary, width: int) -> list[Line]:
    """Speed-ups with their intervals, pooled and by category; then what a slow-down is made of, in words."""
    placed = [(place, row, standing(row)) for place, row in enumerate(summary.rows)]
    placed.sort(key=lambda item: sort_key(item[2], rank=item[1].rank, speedup=item[1].speedup))
    names = min(26, max(14, max(len(row.method) for row in summary.rows) + 3))
    ranks = 15 if width >= 100 else 0
    room = max(10, width - names - ranks - 32)
    low, high = speed_scale(summary)
    found: list[Line] = [_axis(low, high, names + ranks, room, width)]
    for place, row, where in placed:
        if row.speedup is None:
            continue
        rank = cell(rank_text(where, rank=row.rank, is_tied=bool(row.tied_with)), ranks - 1) + " " if ranks else ""
        shape = forest(row.speedup, row.speedup_ci, low=low, high=high, width=room)
        words = f" {text.times(row.speedup):>6} {text.interval(row.speedup_ci):>14} n={row.num_questions}"
        style = "" if where in (Standing.RANKED, Standing.BASELINE) else "dim"
        head = method_name(row.method, place, names, methods_of(summary))
        found.append(fit((*head, Span(rank, "dim"), Span(shape, style), Span(words, style)), width))
    found += _categories(placed, names, ranks, room, width, low, high)
    found += [(), *slowdowns(summary, width)]
    return found


def _axis(low: float, high: float, indent: int, room: int, width: int) -> Line:
    cells = [" "] * room
    step = next(step for step in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 1e9) if (high - low) / step <= room / 8)
    tick = -(-low // step) * step
    while tick <= high:
        words = f"{tick:.2f}".rstrip("0").rstrip(".") + "×"
        at = min(room - len(words), max(0, round((tick - low) / (high - low) * (room - 1)) - 1))
        cells[at : at + len(words)] = words
        tick += step
    return fit((Span(" " * indent), Span("".join(cells), "dim")), width)


def _categories(
    placed: Sequence[tuple[int, MethodRow, Standing]], names: int, ranks: int, room: int, width: int,
    low: float, high: float,
) -> list[Line]:  # fmt: skip
    found: list[Line] = []
    categories = list(dict.fromkeys(each.category for _, row, _ in placed for each in row.by_category))
    if len(categories) < 2:
        return found
    for category in categories:
        found += [(), line(Span(category, "bold"))]
        for place, row, where in placed:
            each = next((each for each in row.by_category if each.category == category), None)
            if each is None or each.speedup is None or where in (Standing.BASELINE, Standing.CONTROL):
                continue
            if row.kind == "baseline":
                continue
            shape = forest(each.speedup, each.speedup_ci, low=low, high=high, width=room)
            noisy = " too noisy" if each.too_noisy else ""
            words = f" {text.times(each.speedup):>6} {text.interval(each.speedup_ci):>14} n={each.num_questions}{noisy}"
            head = method_name(row.method, place, names, [row.method for _, row, _ in placed])
            style = "dim" if each.too_noisy else ""
            found.append(fit((*head, Span(" " * ranks), Span(shape, style), Span(words, style)), width))
    return found


def slowdowns(summary: RunSummary, width: int) -> list[Line]:
    """In words, with the arithmetic that causes them."""
    found: list[Line] = []
    for row in summary.rows:
        if row.kind == "baseline" or row.speedup_ci is None or row.speedup_ci.high >= 1.0:
            continue
        waterfall, tau = row.waterfall, row.acceptance_length
        if waterfall is None or tau is None:
            continue
        step, plain = 1000 * waterfall.step_s, 1000 * waterfall.ar_s
        found += wrap(
            f"⚠ {row.method} is a slow-down: a step takes {step:.2f} ms and keeps {tau:.2f} tokens, so "
            f"{step / tau:.2f} ms a token; autoregression takes {plain:.2f}.",
            width,
            "warn",
        )
    return found


_PHASES = (("draft", "▒"), ("verify", "█"), ("accept", "▓"), ("commit", "░"), ("other", "·"))


def waterfall_lines(summary: RunSummary, width: int) -> list[Line]:
    """Milliseconds per token by phase; every phase has its own glyph. `│` is autoregression."""
    rows = [
        (place, row)
        for place, row in enumerate(summary.rows)
        if row.waterfall is not None and row.acceptance_length and not row.is_control
    ]
    if not rows:
        return wrap("No step was measured yet.", width, "dim")
    names = max(8, min(22, width // 3))
    room = max(4, width - names - 10)

    def per_token(row: MethodRow) -> float:
        assert row.waterfall is not None and row.acceptance_length
        return row.waterfall.step_s / row.acceptance_length

    longest = max([per_token(row) for _, row in rows] + [row.waterfall.ar_s for _, row in rows if row.waterfall])
    legend = "  ".join(f"{glyph} {name}" for name, glyph in _PHASES)
    found: list[Line] = [fit(line(Span(f"ms per token:  {legend}  │ autoregression", "dim")), width)]
    for place, row in rows:
        waterfall, tau = row.waterfall, row.acceptance_length
        assert waterfall is not None and tau
        cells, at = [" "] * room, 0.0
        for name, glyph in _PHASES:
            seconds = max(0.0, getattr(waterfall, f"{name}_s")) / tau
            start, at = round(at / longest * room), at + seconds
            stop = round(at / longest * room)
            cells[start:stop] = glyph * (stop - start)
        cells[min(room - 1, round(waterfall.ar_s / longest * room))] = "│"
        words = f" {1000 * per_token(row):>7.2f}"
        head = method_name(row.method, place, names, methods_of(summary))
        found.append(fit((*head, Span("".join(cells)), Span(words)), width))
    return found


def scatter_lines(
    summary: RunSummary, points: Sequence[tuple[int, float, float]], *, x_name: str, width: int, height: int
) -> list[Line]:
    """points: (place in the plan, x, speed-up); symbols as everywhere, a legend below."""
    if not points:
        return wrap("no method with both figures", width, "dim")
    rows, room = max(4, height - 3), max(8, width - 7)
    xs, ys = [x for _, x, _ in points], [1.0, *(y for _, _, y in points)]
    left, right = min(xs), max(xs)
    bottom, top = min(ys), max(ys)
    right, top = (right, top) if right > left else (left + 1, top)
    top = top if top > bottom else bottom + 1
    grid: list[list[Span]] = [[Span(" ")] * room for _ in range(rows)]
    base = rows - 1 - round((1.0 - bottom) / (top - bottom) * (rows - 1))
    grid[base] = [Span("─", "dim")] * room
    for place, x, y in points:
        column = round((x - left) / (right - left) * (room - 1))
        row = rows - 1 - round((y - bottom) / (top - bottom) * (rows - 1))
        grid[row][column] = Span(symbol(place), method_style(place))
    found: list[Line] = []
    for number, cells in enumerate(grid):
        value = top - (top - bottom) * number / (rows - 1)
        found.append((Span(f"{value:>5.2f} ┤" if number % 2 == 0 else "      │", "dim"), *cells))
    ends = f"{_short(left)}{' ' * max(1, room - len(_short(left)) - len(_short(right)))}{_short(right)}"
    found.append(fit((Span("       " + ends, "dim"),), width))
    found.append(fit(line(Span(f"       {x_name}; ─ no gain", "dim")), width))
    return found


def _short(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def tau_points(summary: RunSummary) -> list[tuple[int, float, float]]:
    """Speed-up against acceptance length."""
    return [
        (place, row.acceptance_length, row.speedup)
        for place, row in enumerate(summary.rows)
        if row.acceptance_length is not None and row.speedup is not None and not row.is_control
    ]


def size_points(summary: RunSummary) -> list[tuple[int, float, float]]:
    """Speed-up against the drafter's parameters."""
    return [
        (place, float(row.num_parameters), row.speedup) for place, row in drafting(summary) if row.speedup is not None
    ]


def batch_lines(summary: RunSummary, batches: Sequence[dict[str, Any]], width: int) -> list[Line]:
    """Tokens per second by batch size, from runs that differ in nothing else; without any, this run's own."""
    methods = [row.method for row in summary.rows if not row.is_control]
    rates = {(row["batch_size"], row["method"]): row["tokens_per_s"] for row in batches}
    rates = rates or {(summary.batch_size, row.method): row.tokens_per_s for row in summary.rows}
    sizes = sorted({size for size, _ in rates})
    names = max(8, min(22, width // 3))
    head = cell("tokens per second", names) + "".join(f"{f'batch {size}':>10}" for size in sizes)
    found: list[Line] = [fit((Span(head, "bold"),), width)]
    for place, row in enumerate(summary.rows):
        if row.method in methods:
            words = "".join(f"{text.rate(rates.get((size, row.method))):>10}" for size in sizes)
            found.append(fit((*method_name(row.method, place, names, methods_of(summary)), Span(words)), width))
    if len(sizes) < 2:
        found += [
            (),
            *wrap("One batch size was measured under these conditions. For more: n, batch size 4.", width, "dim"),
        ]
    return found
