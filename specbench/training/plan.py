"""What a training will cost, before it starts: parameters, bytes, tokens, and the time one real step takes."""

from __future__ import annotations

import math
import time

import torch

from specbench.training.budget import Budget
from specbench.training.cache import StateCache
from specbench.training.request import TrainPlan
from specbench.training.setup import Setup, is_demo, parameters

_ADAM_COPIES = 4
"""float32 tensors of the drafter's size: weights, gradients and AdamW's two moments."""
_BACKWARD = 3.0
"""A training step of the drafter over its forward, roughly: forward, backward, and logits computed again."""


def budget_of(setup: Setup) -> Budget:
    """The request's limits."""
    request = setup.request
    return Budget(
        max_steps=request.max_steps,
        epochs=request.epochs,
        max_tokens=request.max_tokens,
        max_minutes=request.max_minutes,
    )


def make_plan(setup: Setup, cache: StateCache | None, *, time_it: bool) -> TrainPlan:
    """time_it: run the features and the loss of one row, to estimate the whole (no weight changes)."""
    request, lm = setup.request, setup.lm
    counts = parameters(setup.recipe)
    per_epoch = setup.rows.num_tokens
    steps = planned_steps(setup, per_epoch)
    tokens = None if steps is None else round(steps * per_epoch / setup.order.num_batches)
    seconds: float | None = None
    notes: list[str] = list(setup.corpus.notes)
    cache_bytes: int | None = None
    if cache is not None:
        planned = cache.plan()
        cache_bytes = planned.num_bytes
        if setup.corpus.is_unwritten:
            # Of other texts they would lie in another folder, and may need less room.
            size = _gigabytes(planned.num_bytes)
            may_not = "" if planned.fits else ": if they come to that, --cache-states is refused then"
            notes.append(f"states on disk: at most {size}; {_gigabytes(planned.free_bytes)} free{may_not}")
        else:
            notes.append(
                f"states on disk: {_gigabytes(planned.num_bytes)} in {planned.folder.name}, "
                f"{_gigabytes(planned.missing_bytes)} still to be written in about {planned.seconds:.0f} s; "
                f"{_gigabytes(planned.free_bytes)} free"
            )
            cache.check_room(planned)
    if time_it and steps is not None:
        seconds = _row_seconds(setup) * min(request.batch_size, len(setup.rows)) * steps
        seconds /= setup.accelerator.num_processes
    elif request.max_minutes is not None:
        seconds = request.max_minutes * 60
    if not is_demo(request) and setup.lm.device.type == "cpu" and lm.num_parameters() > 5e8:
        notes.append("the target runs on the CPU: its forward will take most of the time; --cache-states runs it once")
    assert request.precision is not None, "settled with the device"
    return TrainPlan(
        method=request.method,
        target=request.target,
        device=str(lm.device),
        precision=request.precision,
        processes=setup.accelerator.num_processes,
        parameters=counts,
        parameter_bytes=4 * counts["total"],
        memory_bytes=_memory(setup, counts["total"]),
        documents=len(setup.corpus.train),
        held_out=len(setup.corpus.held_out),
        rows=len(setup.rows),
        row_tokens=request.max_length,
        tokens_per_epoch=per_epoch,
        learn_tokens_per_epoch=setup.rows.num_learnt,
        steps=steps,
        tokens=tokens,
        cache_bytes=cache_bytes,
        estimated_s=seconds,
        at_most=setup.corpus.is_unwritten,
        notes=tuple(notes),
    )


def planned_steps(setup: Setup, tokens_per_epoch: int) -> int | None:
    """Steps until the first limit; None where only minutes decide."""
    request, batches = setup.request, setup.order.num_batches
    found = []
    if request.max_steps is not None:
        found.append(request.max_steps)
    if request.epochs is not None:
        found.append(max(1, math.ceil(request.epochs * batches)))
    if request.max_tokens is not None:
        found.append(max(1, math.ceil(request.max_tokens * batches / tokens_per_epoch)))
    return min(found) if found else None


def _memory(setup: Setup, num_parameters: int) -> int:
    """Bytes on one device, roughly."""
    request, lm = setup.request, setup.lm
    element = torch.empty((), dtype=lm.dtype).element_size()
    rows_tokens = request.micro_batch * request.max_length
    states = rows_tokens * setup.view.hidden_size * (len(setup.recipe.taps) + 1) * element
    if request.learn == "seq":
        states *= setup.recipe.depth + 2
    logits = 3 * max(setup.objective.chunk, setup.objective.kept) * lm.vocab_size * 4
    # A forward's slots: the text's, and under `seq` those of every continuation token, with the last one's states.
    slots = request.max_length * (setup.recipe.depth + 2 if request.learn == "seq" else 1)
    mask = request.micro_batch * slots**2 * (element + 1)
    return lm.num_parameters() * element + _ADAM_COPIES * 4 * num_parameters + states + logits + mask


def _row_seconds(setup: Setup) -> float:
    """Features and loss of the first row, twice; the second is taken."""
    source = setup.online(setup.rows)
    taken = 0.0
    setup.recipe.module.eval()
    with torch.no_grad():
        for _ in range(2):
            began = time.perf_counter()
            features = source.make([0])
            read = time.perf_counter()
            loss = setup.recipe.loss(features, setup.objective)
            loss.num_anchors.item()
            taken = (read - began) + _BACKWARD * (time.perf_counter() - read)
    return taken


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
