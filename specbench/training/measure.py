"""`specbench eval`: any method's drafter on any data set: simulated acceptance and, where it was trained, loss and
accuracy by depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specbench import checkpoint, registry
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.request import Setting
from specbench.checkpoint import Checkpoint
from specbench.data.documents import Documents
from specbench.engine.replay import Replayed
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.losses import Objective
from specbench.method import TargetView
from specbench.recipe import Recipe
from specbench.suite import CHAT
from specbench.training.corpus import Rows, check_ids, check_learnable
from specbench.training.defaults import Settled, settle
from specbench.training.documents import read_documents
from specbench.training.evaluate import Figures, Simulator, count_documents, figures
from specbench.training.features import Needs, Online
from specbench.training.record import shareable
from specbench.training.request import TrainProgress, TrainRequest
from specbench.training.setup import SplitOptions, chunk_of, load_target, make_accelerator, method_options, threads_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `specbench eval --json` prints. Lists are by depth, from 0."""

    method: str
    weights: str
    """Empty for a method without weights of its own."""
    weights_hash: str
    target: str
    dataset: str
    num_documents: int
    num_labels: tuple[int, ...]
    """Empty for a method that is not trained, and for a drafter that another program trained: its training options are
    not known."""
    loss: tuple[float, ...]
    """Per label that can be said; a trimmed vocabulary's share of those is in `notes`."""
    accuracy: tuple[tuple[float, ...], ...]
    """[depth][r]: share of all labels among the first r + 1 choices."""
    expected_accepted: float | None
    """Tokens a greedy chain would have had accepted per step, by the data's labels."""
    acceptance_length: float | None
    """Simulated on the target's own greedy answers, bonus included; None without a prompt."""
    num_prompts: int
    num_steps: int
    num_nodes: int
    """Draft nodes proposed in those steps."""
    accepted_at: tuple[int, ...]
    proposed_at: tuple[int, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": 1, **dataclasses.asdict(self)}


def evaluate(
    asked: TrainRequest,
    progress: TrainProgress,
    *,
    wrapped: Sequence[Setting] = (),
    documents: Documents | None = None,
) -> Evaluation:
    """Any method's drafter on any data set. Of a trained one `--set METHOD.weights=DIR` names the drafter; methods that
    nobody trains have no labels to be right about and are only simulated.

    asked: as for a training. wrapped: settings of the method that it wraps. documents: in memory, in place of the data
    set. Raises UsageError where no drafter is named, something the method needs is missing, or drafter and target do
    not fit.
    """
    request = settle(asked)
    card = registry.card(request.method, methods_dirs=request.methods_dirs)
    trained = _trained(request) if card.training else None
    choice = None if trained else _choice(request, wrapped)
    threads_of(request)
    accelerator = make_accelerator(request)
    lm = load_target(request, accelerator)
    if lm.context_length is not None:
        request = replace(request, max_length=min(request.max_length, lm.context_length))
    documents = documents or read_documents(request, lm, progress)
    check_learnable(documents, what="evaluated")
    check_ids(documents, vocab_size=lm.vocab_size, target=lm.name)
    simulator = Simulator(lm, documents, num=request.eval_prompts, max_new_tokens=request.eval_new_tokens)
    view = simulator.view()
    if trained is not None:
        checkpoint.check_fits(trained.found, view, folder=trained.folder)
        drafter = registry.load(request.method, methods_dirs=request.methods_dirs)(trained.options.drafting, view)
    else:
        assert choice is not None
        drafter = registry.build(choice, view, methods_dirs=request.methods_dirs)
    progress.say("the target's answers")
    simulator.write_answers(None)
    replayed = simulator.replay(drafter)
    notes = list(documents.notes)
    by_depth: Figures | None = None
    if trained is not None:
        notes += _notes(request, trained.found, documents, lm.weights_hash)
        recipe = _recipe(request, trained.found, trained.folder, view)
        if recipe is None:
            notes.append("accuracy by depth needs the options it was trained with, which this drafter does not say")
        else:
            by_depth = _by_depth(request, recipe, lm, accelerator.device, documents, replayed)
            notes += [by_depth.unsaid] if by_depth.unsaid else []
    return Evaluation(
        method=request.method,
        weights=trained.weights if trained else "",
        weights_hash=drafter.weights_hash or "",
        target=request.target,
        dataset=documents.name,
        num_documents=len(documents),
        num_labels=by_depth.num if by_depth else (),
        loss=by_depth.depth_loss if by_depth else (),
        accuracy=by_depth.accuracy if by_depth else (),
        expected_accepted=by_depth.chain if by_depth else None,
        acceptance_length=None if replayed is None else replayed.acceptance_length,
        num_prompts=simulator.num_prompts,
        num_steps=0 if replayed is None else replayed.num_steps,
        num_nodes=0 if replayed is None else replayed.num_nodes,
        accepted_at=() if replayed is None else replayed.accepted_at,
        proposed_at=() if replayed is None else replayed.proposed_at,
        notes=tuple(notes),
    )


class _Trained(NamedTuple):
    """A drafter that `--set METHOD.weights=DIR` names."""

    options: SplitOptions
    weights: str
    folder: Path
    found: Checkpoint


def _trained(request: Settled) -> _Trained:
    options = method_options(request)
    weights = options.drafting.get("weights")
    if not weights:
        raise UsageError(
            "no drafter was named",
            where="--set",
            try_=f"--set {request.method}.weights=DIR, a folder that specbench train wrote",
        )
    folder = checkpoint.resolve(str(weights), request.method)
    return _Trained(options, str(weights), folder, checkpoint.load(folder, method=request.method))


def _choice(request: Settled, wrapped: Sequence[Setting]) -> registry.Choice:
    said: dict[str, dict[str, str]] = {}
    for item in (*request.settings, *wrapped):
        said.setdefault(item.method, {})[item.option] = item.value
    choice = registry.choose(
        request.method, said, target_is_demo=request.target in DEMO_TARGETS, methods_dirs=request.methods_dirs
    )
    inner = choice.inner.card.name if choice.inner else None
    for item in wrapped:
        if item.method != inner:
            raise UsageError(
                f"{item.method}.{item.option} is set but {item.method!r} is neither the method nor wrapped by it",
                where="--set",
                try_=f"--method {item.method}",
            )
    if "reference" in choice.requires:
        raise UsageError(
            f"method {request.method!r} replays the known answer: its acceptance is what it is told to be",
            where="--method",
            try_=f"specbench run SUITE --methods {request.method}",
        )
    return choice


def _by_depth(
    request: Settled,
    recipe: Recipe,
    lm: CachedLM,
    device: torch.device,
    documents: Documents,
    replayed: Replayed | None,
) -> Figures:
    recipe.module.to(device=device, dtype=torch.float32)
    rows = Rows(documents.pack(request.max_length, seed=request.seed))
    objective = Objective(loss="ce", chunk=chunk_of(lm.vocab_size))
    needs = Needs(taps=recipe.taps, learn="gt", depth=recipe.depth, objective=objective)
    counted = count_documents(
        recipe,
        Online(lm=lm, rows=rows, needs=needs),
        num_rows=len(rows),
        micro_batch=request.micro_batch,
        objective=objective,
        autocast=nullcontext,
    )
    return figures(counted.counts, replayed)


def _recipe(request: Settled, found: Checkpoint, folder: Path, view: TargetView) -> Recipe | None:
    """The recipe with the drafter's weights; None where the drafter does not say its options."""
    options = found.training.get("options")
    if not isinstance(options, Mapping):
        return None
    build = registry.load_recipe(request.method, methods_dirs=request.methods_dirs)
    # What the drafter's own version did not know yet is at its default, which is what it did then.
    card = registry.card(request.method, methods_dirs=request.methods_dirs)
    unsaid = {name: option.default for name, option in card.training.items() if name not in options}
    recipe = build({**unsaid, **options}, view)
    checkpoint.load_state(recipe.module, found.state, folder=folder)
    return recipe


def _notes(request: Settled, found: Checkpoint, documents: Documents, target_hash: str) -> list[str]:
    notes = []
    if found.target.weights_hash and found.target.weights_hash != target_hash:
        notes.append(f"the drafter was trained on another target's weights ({found.target.name})")
    asked = found.training.get("request")
    if isinstance(asked, Mapping):
        # Drafters of before there was a choice had the target's own.
        template = asked.get("template") or CHAT
        if template != request.template:
            notes.append(f"the drafter was trained on conversations in template {template}, not {request.template}")
    data = found.training.get("dataset")
    if isinstance(data, Mapping) and data.get("source") == shareable(documents.source):
        notes.append("the drafter was trained on documents of this very data set")
    return notes
