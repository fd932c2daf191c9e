"""Everything a training holds in memory before its first step: processes, target, documents, recipe, plan."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor

from specbench import checkpoint, paths, registry
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.session import set_threads
from specbench.blocks import parameter_report
from specbench.checkpoint import Checkpoint, trained_on
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.losses import Objective
from specbench.method import Options, TargetView
from specbench.recipe import BuildRecipe, Recipe
from specbench.training.corpus import Corpus, Order, Rows, check_ids, check_learnable
from specbench.training.defaults import Settled
from specbench.training.evaluate import Simulator
from specbench.training.features import Needs, Online
from specbench.training.record import target_name
from specbench.training.request import Precision

_PATIENCE = timedelta(days=2)
"""How long processes wait for the first one while it alone writes answers, caches or evaluates; the usual ten minutes
would end a training in its first evaluation."""


_LEAST_ROW = 4
"""Tokens, as for --max-length."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the loop works with; `request` has nothing left open."""

    request: Settled
    accelerator: Accelerator
    threads: int
    lm: CachedLM
    corpus: Corpus
    rows: Rows
    held_out_rows: Rows
    order: Order
    training_options: Options
    drafting_options: Options
    recipe: Recipe
    view: TargetView
    simulator: Simulator
    objective: Objective
    build: BuildRecipe

    def recipe_for_evaluation(self, weights: Mapping[str, Tensor]) -> Recipe:
        """The recipe itself; under FSDP, whose parameters lie in pieces, a copy with these whole weights."""
        if self.accelerator.distributed_type != DistributedType.FSDP:
            return self.recipe
        copy = self.build(self.training_options, self.view)
        copy.module.to(device=self.accelerator.device, dtype=torch.float32)
        copy.module.load_state_dict(dict(weights))
        return copy

    def checkpoint_of(self, weights: Mapping[str, Tensor]) -> Checkpoint:
        """A drafter with these weights, without provenance."""
        target = trained_on(self.view, weights_hash=self.lm.weights_hash, quantisation=self.lm.quantisation)
        return Checkpoint(
            method=self.request.method,
            architecture=self.recipe.architecture,
            target=replace(target, name=target_name(self.request.target)),
            state=weights,
        )

    def online(self, rows: Rows) -> Online:
        """Features of these rows by the target's forward."""
        needs = Needs(
            taps=self.recipe.taps, learn=self.request.learn, depth=self.recipe.depth, objective=self.objective
        )
        return Online(lm=self.lm, rows=rows, needs=needs)


class SplitOptions(NamedTuple):
    """A method's options by who reads them (`registry.TrainingOptions`), and the recipe's `build`."""

    training: dict[str, Any]
    drafting: dict[str, Any]
    build: BuildRecipe


def method_options(request: Settled) -> SplitOptions:
    """`--set` split and checked by the card, before any torch object is made.

    Raises UsageError: unknown method or option (nearest named), a method that is not trained, a wrong value.
    """
    card = registry.card(request.method, methods_dirs=request.methods_dirs)
    given = {item.option: item.value for item in request.settings}
    build = registry.load_recipe(request.method, methods_dirs=request.methods_dirs)
    return SplitOptions(*registry.check_training_options(card, given), build)


def with_precision(request: Settled) -> Settled:
    """The request with the precision that its device is best at, where none is said; `--device auto` is the device it
    comes to. Raises as `pick_device` does."""
    if request.precision is not None:
        return request
    # The CPU has no fast bf16 everywhere; on an accelerator it halves the time of a step.
    precision: Precision = "fp32" if pick_device(request.device).type == "cpu" else "bf16"
    return replace(request, precision=precision, request=replace(request.request, precision=precision))


def make_accelerator(request: Settled) -> Accelerator:
    """accelerate's view of this process and its siblings. Raises EnvironmentFailed for a tracker that is not
    installed: accelerate itself would drop it without a word."""
    for name in request.report_to:
        module = {"comet_ml": "comet_ml", "tensorboard": "tensorboard"}.get(name, name)
        # accelerate takes tensorboardX in tensorboard's place.
        found = importlib.util.find_spec(module) or (name == "tensorboard" and importlib.util.find_spec("tensorboardX"))
        if not found:
            raise EnvironmentFailed(
                f"--report-to {name} needs a package that is not installed",
                where="--report-to",
                try_=f"pip install {name.replace('_', '-')}",
            )
    device = pick_device(request.device)
    if device.type == "cuda" and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    # A second training in this process may want another precision; accelerate keeps the first one's for good.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if request.precision == "bf16" else "no",
        log_with=list(request.report_to) or None,
        # The run's own folder takes its place once it is known; accelerate wants one from the start.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        project_dir=str(paths.results_dir(request.store)) if request.report_to else None,
        step_scheduler_with_optimizer=False,
    )


def load_target(request: Settled, accelerator: Accelerator) -> CachedLM:
    """The frozen target on this process's device, in its own dtype."""
    device = accelerator.device
    lm = load_lm(
        request.target,
        device=device,
        dtype=pick_dtype(request.dtype, device),
        attention_name=request.attention,
        trust_remote_code=request.trust_remote_code,
        quantisation=request.quantisation,
    )
    if lm.tokenizer is None:
        raise EnvironmentFailed(
            f"target {request.target!r} has no tokenizer files, so no text can be made for it",
            try_="put tokenizer.json and tokenizer_config.json beside its weights",
        )
    return lm


def seed_everything(seed: int, process: int) -> None:
    """Weights are drawn alike on every process (`process` 0), dropout apart."""
    random.seed(seed + process)
    np.random.seed((seed + process) % 2**32)
    torch.manual_seed(seed + process)


def make_setup(
    request: Settled,
    options: SplitOptions,
    accelerator: Accelerator,
    lm: CachedLM,
    corpus: Corpus,
    *,
    has_state: bool = False,
) -> Setup:
    """Documents packed, recipe built. has_state: a saved state holds every weight, and the drafter that the training
    once started from need not be there any more. Raises UsageError where there is nothing to learn, or method and
    target do not fit."""
    for documents, what in ((corpus.train, "training"), (corpus.held_out, "held-out")):
        check_learnable(documents, what=what)
        check_ids(documents, vocab_size=lm.vocab_size, target=lm.name)
    simulator = Simulator(lm, corpus.held_out, num=request.eval_prompts, max_new_tokens=request.eval_new_tokens)
    view = simulator.view()
    seed_everything(request.seed, 0)
    recipe = options.build(options.training, view)
    request = replace(request, max_length=_row_length(request, lm.context_length, recipe.depth))
    packed = corpus.train.pack(request.max_length, seed=request.data_seed)
    # The same rows for every seed, each in its own order.
    rows = Rows(replace(packed, seed=request.seed))
    held_out_rows = Rows(corpus.held_out.pack(request.max_length, seed=request.data_seed))
    recipe.see_labels(rows.packed.label_counts(lm.vocab_size))
    recipe.module.to(device=accelerator.device, dtype=torch.float32)
    weights = options.drafting.get("weights")
    if weights and not has_state:
        _start_from(str(weights), recipe, view, request.method)
    seed_everything(request.seed, accelerator.process_index)
    return Setup(
        request=request,
        accelerator=accelerator,
        threads=torch.get_num_threads(),
        lm=lm,
        corpus=corpus,
        rows=rows,
        held_out_rows=held_out_rows,
        build=options.build,
        order=Order(rows=rows, batch_size=request.batch_size),
        training_options=options.training,
        drafting_options=options.drafting,
        recipe=recipe,
        view=view,
        simulator=simulator,
        objective=Objective(
            loss=request.loss,
            # A training that was begun before this was refused may name one that its loss did not read.
            temperature=request.kd_temperature if request.loss == "kd" else 1.0,
            alpha=request.kd_alpha,
            depth_decay=request.depth_decay,
            chunk=chunk_of(lm.vocab_size),
            kept=kept_of(lm.vocab_size),
        ),
    )


def _row_length(request: Settled, context: int | None, depth: int) -> int:
    """Tokens of a row whose forwards the target was built for: under `seq` every place is written on from, depth + 1
    tokens. Raises UsageError where nothing is left of its context."""
    if context is None:
        return request.max_length
    room = context - (depth + 1 if request.learn == "seq" else 0)
    if room < _LEAST_ROW:
        raise UsageError(
            f"continuations of {depth + 1} tokens leave no room for a text in a context of {context}",
            where="--learn seq",
            try_="--learn kd, or a smaller depth",
        )
    return min(request.max_length, room)


def _start_from(weights: str, recipe: Recipe, view: TargetView, method: str) -> None:
    """`--set METHOD.weights=DIR`: training goes on from a finished drafter's weights, with a new optimiser."""
    folder = checkpoint.resolve(weights, method)
    found = checkpoint.load(folder, method=method)
    checkpoint.check_fits(found, view, folder=folder)
    checkpoint.load_state(recipe.module, found.state, folder=folder)


def chunk_of(vocab_size: int) -> int:
    """Positions whose logits exist at one time: a chunk of 64 MB in float32. Larger ones only take memory; many small
    ones cost a small vocabulary's training a quarter of its time."""
    return max(256, 16_000_000 // vocab_size)


def kept_of(vocab_size: int) -> int:
    """Positions whose logits and laws are kept for the backward pass: 256 MB of each in float32."""
    return 64_000_000 // vocab_size


def threads_of(request: Settled) -> int:
    """CPU threads, set."""
    return set_threads(request.threads)


def is_demo(request: Settled) -> bool:
    """The target is embedded."""
    return request.target in DEMO_TARGETS


def parameters(recipe: Recipe) -> Mapping[str, int]:
    """By part of the drafter, and `total`."""
    return parameter_report(recipe.module)
