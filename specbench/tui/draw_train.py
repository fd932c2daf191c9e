"""A training's curves as lines: braille dots, the last number beside every curve. No Textual."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from specbench.events import TrainEval
from specbench.quantisation import NONE
from specbench.report import text
from specbench.report.drafter_run import use_values
from specbench.suite import CHAT
from specbench.tui.figures import Course
from specbench.tui.lines import Line, Span, fit, line, sparkline, wrap

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def curve(values: Sequence[float], width: int, height: int, *, low: float, high: float) -> list[str]:
    """Rows of braille: two dots across and four down a cell; means where there are more values than dots."""
    columns = max(1, width * 2)
    if len(values) > columns:
        edges = [round(place * len(values) / columns) for place in range(columns + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    cells = [[0] * width for _ in range(height)]
    rows = height * 4
    spread = max(1, len(values) - 1)
    last: int | None = None
    for place, value in enumerate(values):
        column = round(place / spread * (columns - 1)) if len(values) > 1 else 0
        row = round((high - min(max(value, low), high)) / (high - low or 1.0) * (rows - 1))
        # Joined downwards or upwards: a curve of single dots is lost among them where it is steep.
        for dot in range(min(row, row if last is None else last), max(row, row if last is None else last) + 1):
            cells[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
        last = row
    return ["".join(chr(0x2800 + bits) for bits in row) for row in cells]


SMOOTHING = 0.98
"""Share of the mean before that a step keeps."""


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential mean, its beginning unbiased (as Adam corrects it): no step weighs more for being the first."""
    found: list[float] = []
    mean = weight = 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append(mean / weight)
    return found


def chart(
    name: str, values: Sequence[float], xs: Sequence[int], width: int, height: int, *, is_log: bool = False
) -> list[Line]:
    """A curve with its ends on both axes. is_log: equal ratios are equal heights; needs values above 0."""
    if not values:
        return wrap(f"no {name} yet", width, "dim")
    if is_log and min(values) <= 0:
        return wrap(f"a {name} of 0 or less has no logarithm: l shows the plain scale", width, "warn")
    low, high = min(values), max(values)
    # The first steps of a loss are so high that the rest would be a flat line.
    if len(values) > 20:
        ordered = sorted(values)
        high = max(ordered[int(0.98 * (len(ordered) - 1))], values[-1])
    room = max(4, width - 9)
    if is_log:
        rows = curve(list(map(math.log, values)), room, max(2, height - 1), low=math.log(low), high=math.log(high))
    else:
        rows = curve(values, room, max(2, height - 1), low=low, high=high)
    found: list[Line] = []
    for number, row in enumerate(rows):
        value = high if number == 0 else low
        label = f"{value:>7.3g}" if number in (0, len(rows) - 1) else " " * 7
        found.append(fit((Span(f"{label} ┤", "dim"), Span(row, "accent")), width))
    left, right = str(xs[0]), f"step {xs[-1]}"
    found.append(fit(line(Span(" " * 9 + left + " " * max(1, room - len(left) - len(right)) + right, "dim")), width))
    return found


def loss_lines(
    training: Course, width: int, height: int, *, is_log: bool = False, is_smooth: bool = False
) -> list[Line]:
    """The training loss; its mean over the last fifty steps in words."""
    steps = training.steps
    values = [step.loss for step in steps]
    drawn = smoothed(values) if is_smooth else values
    found = chart("step", drawn, [step.step for step in steps], width, max(3, height - 1), is_log=is_log)
    if values:
        tail = values[-50:]
        found.append(
            fit(line(f"last {values[-1]:.3f} · mean of the last {len(tail)}: {sum(tail) / len(tail):.3f}"), width)
        )
    return found


def accuracy_lines(training: Course, width: int) -> list[Line]:
    """First-choice accuracy by depth, a row per evaluation; the best one is marked."""
    if not training.evals:
        return wrap("No evaluation yet: the first comes after --eval-every steps.", width, "dim")
    depths = max(len(each.num) for each in training.evals)
    head = f"{'step':>7} " + "".join(f"{f'depth {d}':>9}" for d in range(depths))
    found: list[Line] = [fit((Span(head, "bold"),), width)]
    for each in training.evals:
        cells = "".join(f"{rate:>9.3f}" for rate in accuracies(each))
        is_best = each.step == training.best_step
        words = f"{'★' if is_best else ' '}{each.step:>6} {cells}"
        found.append(fit(line(Span(words, "bold" if is_best else "")), width))
    return found


def accuracies(each: TrainEval) -> list[float]:
    """Labels that were the first choice, by depth."""
    return [hits[0] / num if num else 0.0 for hits, num in zip(each.correct, each.num, strict=True)]


def tau(each: TrainEval) -> float | None:
    """Tokens per step of the simulated run, bonus included; None where it had no prompts."""
    return each.num_new_tokens / each.num_steps if each.num_steps else None


def tau_lines(training: Course, width: int) -> list[Line]:
    """Simulated acceptance length over the evaluations."""
    taus = [(each.step, tau(each)) for each in training.evals]
    known = [(step, value) for step, value in taus if value is not None]
    if not known:
        return wrap("No simulated run yet: --eval-prompts asks for one at every evaluation.", width, "dim")
    found: list[Line] = []
    for step, value in known[-8:]:
        found.append(fit(line(f"step {step:>7}  τ {value:.2f}  ", Span("█" * round(value * 8), "accent")), width))
    found.append(line(Span("tokens per step of the drafter on held-out prompts, bonus included", "dim")))
    return found


def health_lines(training: Course, width: int) -> list[Line]:
    """Learning rate, gradient norm, throughput, checkpoints."""
    steps = training.steps
    if not steps:
        return wrap("No step yet.", width, "dim")
    room = max(4, width - 32)
    rates = [
        (b.num_tokens - a.num_tokens) / (b.seconds - a.seconds)
        for a, b in itertools.pairwise(steps)
        if b.seconds > a.seconds
    ]
    planned = training.record.get("plan", {}).get("steps")
    rows = [
        ("learning rate", f"{steps[-1].lr:.2e}", [step.lr for step in steps]),
        ("gradient norm", f"{steps[-1].grad_norm:.2f}", [step.grad_norm for step in steps]),
        ("tokens per second", text.rate(rates[-1] if rates else None), rates),
    ]
    found: list[Line] = []
    for name, value, values in rows:
        found.append(fit(line(f"{name:<18}{value:>10}  ", Span(sparkline(values, room, low=0.0), "accent")), width))
    found.append(fit(line(f"{'step':<18}{steps[-1].step:>10}  of {planned or '?'}"), width))
    found.append(fit(line(f"{'text tokens':<18}{steps[-1].num_tokens:>10,}  epoch {steps[-1].epoch:.2f}"), width))
    found.append(fit(line(f"{'seconds':<18}{steps[-1].seconds:>10.0f}"), width))
    if training.best_step is not None:
        words = f"{'★ best':<18}{training.best_step:>10}  kept in best/"
        found.append(fit(line(Span(words, "good")), width))
    return found


def header(training: Course) -> str:
    """One line: what is trained on what, how far."""
    record = training.record
    return (
        f"{training.run_id} · {record['method']} for {record['target']['name']} on {record['dataset']['name']} · "
        f"{training.state}"
    )


def bench_values(training: Course, best: str) -> dict[str, str]:
    """The form's values that measure this training's drafter against autoregression: those of the command that the
    training itself ends with. best: the drafter's folder."""
    request = training.record.get("request", {})
    return use_values(
        target=str(request.get("target") or training.record["target"]["name"]),
        method=str(training.record["method"]),
        weights=best,
        quantisation=str(request.get("quantisation", NONE)),
        template=str(request.get("template") or CHAT),
        methods_dirs=[str(each) for each in request.get("methods_dirs") or ()],
    )
