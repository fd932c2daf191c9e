"""A training's curves: one offline HTML file that carries its data and its chart library, and lines for a terminal."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path

from specbench.quantisation import NONE, precision
from specbench.report.figures import Figure, line, render_figures
from specbench.report.text import printable
from specbench.store.files import write_whole
from specbench.store.training import Training

_BLOCKS = "▁▂▃▄▅▆▇█"
_SMOOTH = 10
"""Steps over which throughput is averaged."""


def figures_of(training: Training) -> list[Figure]:
    """Loss, accuracy by depth, acceptance, learning rate, throughput."""
    steps, evals = training.steps, training.evals
    at, seen = [step.step for step in steps], [each.step for each in evals]
    depths = range(len(evals[0].num)) if evals else range(0)
    loss = [line("training, per anchor", at, [step.loss for step in steps])]
    loss += [
        line(f"held out, depth {depth + 1}", seen, [_ratio(e.loss[depth], e.num[depth]) for e in evals], dots=True)
        for depth in depths
    ]
    accuracy = [
        line(f"depth {depth + 1}", seen, [_ratio(e.correct[depth][0], e.num[depth]) for e in evals], dots=True)
        for depth in depths
    ]
    tau = [line("simulated τ", seen, [_ratio(e.num_new_tokens, e.num_steps) for e in evals], dots=True)]
    chain = [sum(_ratio(right, whole) or 0.0 for right, whole in zip(e.right, e.whole, strict=True)) for e in evals]
    tau.append(line("1 + accepted by the labels (chain)", seen, [1 + each for each in chain], dots=True))
    return [
        Figure("Loss", "loss", loss),
        Figure("Accuracy of the first choice", "share of labels", accuracy),
        Figure("Acceptance length on held-out prompts", "tokens a step, bonus included", tau),
        Figure("Learning rate", "rate", [line("lr", at, [step.lr for step in steps])]),
        Figure("Throughput", "tokens/s", [line("tokens/s", at, throughput(training))]),
    ]


def throughput(training: Training) -> list[float | None]:
    """Text tokens a second, over the last steps; None where no time passed."""
    steps = training.steps
    found: list[float | None] = []
    for place, step in enumerate(steps):
        before = steps[max(0, place - _SMOOTH)]
        found.append(_ratio(step.num_tokens - before.num_tokens, step.seconds - before.seconds))
    return found


def write_training_page(training: Training, out: Path) -> Path:
    """The curves as one HTML file. Raises EnvironmentFailed where it cannot be written."""
    remedy = "specbench results plot RUN -o FILE, in a folder that can be written and on a disk with room"
    write_whole(out, render_training(training), try_=remedy)
    return out


def render_training(training: Training) -> str:
    """The page as text; nothing in it is fetched."""
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts_of(training))
    return render_figures(training.run_id, f"<dl>{facts}</dl>", figures_of(training))


def facts_of(training: Training) -> list[tuple[str, str]]:
    """What stands above the curves, harmless as text."""
    record, best = training.record, training.best
    target = record["target"]
    held = precision(target["dtype"], target.get("quantisation", NONE))
    found = [
        ("method", f"{record['method']}, {record['plan']['parameters']['total']:,} parameters"),
        ("target", f"{target['name']}, {held}"),
        ("data", f"{record['dataset']['name']}, {record['dataset']['documents']:,} documents"),
        ("state", training.state + (f": {training.message}" if training.message else "")),
    ]
    if training.steps:
        last = training.steps[-1]
        found.append(("trained", f"{last.step:,} steps, {last.num_tokens:,} tokens, {last.seconds:,.0f} s"))
    if best is not None:
        tau = _ratio(best.num_new_tokens, best.num_steps)
        found.append(("best", f"step {best.step:,}" + (f", τ {tau:.3f}" if tau is not None else "")))
    return [(name, printable(value)) for name, value in found]


def lines_of(training: Training, *, width: int = 48) -> list[str]:
    """The curves for a terminal."""
    found = [f"{name:<8}  {value}" for name, value in facts_of(training)]
    evals = training.evals
    curves = [("loss", [step.loss for step in training.steps])]
    curves.append(("τ", [e.num_new_tokens / e.num_steps for e in evals if e.num_steps]))
    curves.append(("top-1", [e.correct[0][0] / e.num[0] for e in evals if e.num and e.num[0]]))
    for name, values in curves:
        if values:
            found.append(f"{name:<8}  {spark(values, width=width)}  {values[0]:.4g} → {values[-1]:.4g}")
    return found


def spark(values: Sequence[float], *, width: int) -> str:
    """Values as blocks, lowest to highest; where there are more than `width`, means of neighbours."""
    if len(values) > width:
        edges = [round(place * len(values) / width) for place in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    span = high - low
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span else 0] for value in values)


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
