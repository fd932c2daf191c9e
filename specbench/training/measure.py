"""`specbench eval`: a finished drafter on any data set: loss and accuracy by depth, simulated acceptance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specbench import checkpoint, registry
from specbench.checkpoint import Checkpoint
from specbench.data.documents import Documents
from specbench.errors import UsageError
from specbench.losses import Objective
from specbench.method import TargetView
from specbench.recipe import Recipe
from specbench.training.corpus import Rows, check_ids, check_learnable
from specbench.training.defaults import Settled, settle
from specbench.training.documents import read_documents
from specbench.training.evaluate import Figures, Simulator, count_documents, figures
from specbench.training.features import Needs, Online
from specbench.training.record import shareable
from specbench.training.request import TrainProgress, TrainRequest
from specbench.training.setup import chunk_of, load_target, make_accelerator, method_options, threads_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `specbench eval --json` prints. Lists are by depth, from 0."""

    method: str
    weights: str
    weights_hash: str
    target: str
    dataset: str
    num_documents: int
    num_labels: tuple[int, ...]
    """Empty for a drafter that another program trained: its training options are not known."""
    loss: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]
    """[depth][r]: share of labels among the first r + 1 choices."""
    expected_accepted: float | None
    """Tokens a greedy chain would have had accepted per step, by the data's labels."""
    acceptance_length: float | None
    """Simulated on the target's own greedy answers, bonus included; None without a prompt."""
    num_prompts: int
    num_steps: int
    accepted_at: tuple[int, ...]
    proposed_at: tuple[int, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": 1, **dataclasses.asdict(self)}


def evaluate(asked: TrainRequest, progress: TrainProgress, *, documents: Documents | None = None) -> Evaluation:
    """asked: as for a training; `--set METHOD.weights=DIR` names the drafter. documents: in memory, in place of the
    data set.

    Raises UsageError where no drafter is named, or drafter and target do not fit.
    """
    request = settle(asked)
    options = method_options(request)
    weights = options.drafting.get("weights")
    if not weights:
        raise UsageError(
            "no drafter was named",
            where="--set",
            try_=f"--set {request.method}.weights=DIR, a folder that specbench train wrote",
        )
    folder = checkpoint.resolve(str(weights), request.method)
    found = checkpoint.load(folder, method=request.method)
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
    checkpoint.check_fits(found, view, folder=folder)
    drafter = registry.load(request.method, methods_dirs=request.methods_dirs)(options.drafting, view)
    progress.say("the target's answers")
    simulator.write_answers(None)
    replayed = simulator.replay(drafter)
    notes = list(_notes(found, documents, lm.weights_hash))
    by_depth: Figures | None = None
    recipe = _recipe(request, found, folder, view)
    if recipe is None:
        notes.append("accuracy by depth needs the options it was trained with, which this drafter does not say")
    else:
        recipe.module.to(device=accelerator.device, dtype=torch.float32)
        rows = Rows(documents.pack(request.max_length, seed=request.seed))
        objective = Objective(loss="ce", chunk=chunk_of(lm.vocab_size))
        online = Online(
            lm=lm, rows=rows, needs=Needs(taps=recipe.taps, learn="gt", depth=recipe.depth, objective=objective)
        )
        counted = count_documents(
            recipe,
            online,
            num_rows=len(rows),
            micro_batch=request.micro_batch,
            objective=objective,
            autocast=nullcontext(),
        )
        by_depth = figures(counted.counts, replayed)
    return Evaluation(
        method=request.method,
        weights=str(weights),
        weights_hash=found.weights_hash,
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
        accepted_at=() if replayed is None else replayed.accepted_at,
        proposed_at=() if replayed is None else replayed.proposed_at,
        notes=tuple(notes),
    )


def _recipe(request: Settled, found: Checkpoint, folder: Path, view: TargetView) -> Recipe | None:
    """The recipe with the drafter's weights; None where the drafter does not say its options."""
    options = found.training.get("options")
    if not isinstance(options, Mapping):
        return None
    build = registry.load_recipe(request.method, methods_dirs=request.methods_dirs)
    recipe = build(dict(options), view)
    checkpoint.load_state(recipe.module, found.state, folder=folder)
    return recipe


def _notes(found: Checkpoint, documents: Documents, target_hash: str) -> list[str]:
    notes = list(documents.notes)
    if found.target.weights_hash and found.target.weights_hash != target_hash:
        notes.append(f"the drafter was trained on another target's weights ({found.target.name})")
    data = found.training.get("dataset")
    if isinstance(data, Mapping) and data.get("source") == shareable(documents.source):
        notes.append("the drafter was trained on documents of this very data set")
    return notes
