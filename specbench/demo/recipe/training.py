"""Training of the target on text, and of the draft on what the target says."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from specbench.demo.recipe.evaluation import generate
from specbench.demo.recipe.models import (
    draft_config,
    first_model,
    held_out_loss,
    hidden_states,
    language_loss,
    load,
    save,
    selected,
    target_config,
)
from specbench.demo.recipe.rows import Batch, Parts, Row, batches
from specbench.demo.recipe.settings import Settings


def optimizers_for(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    With so few tokens to see, this matters more than anything else: after the first 120
    steps the held-out loss was 3.69, against 4.70 with AdamW for everything.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(inner, lr=settings.muon_rate, weight_decay=settings.muon_decay, momentum=0.95)
    adam = torch.optim.AdamW(outer, lr=settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.02, fused=True)
    return [muon, adam]


class Stepper:
    """Takes optimiser steps along one schedule and keeps the running figures."""

    def __init__(self, name: str, model: torch.nn.Module, settings: Settings, steps: int) -> None:
        self.name, self.model, self.steps = name, model, steps
        self.seconds, self.stop_after = settings.minutes * 60, settings.stop_after
        self.optimizers = optimizers_for(model, settings)
        self.peaks = [float(optimizer.defaults["lr"]) for optimizer in self.optimizers]
        self.step, self.tokens, self.mean = 0, 0, 0.0
        self.began = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the run that is over, in steps or in allowed time, whichever is more.

        On a shared machine the speed is anybody's guess; a schedule that knows the clock
        still ends with its small steps.
        """
        elapsed = (time.monotonic() - self.began) / self.seconds if self.seconds else 0.0
        return max(self.step / self.steps, elapsed)

    @property
    def over(self) -> bool:
        """Whether to stop before the plan ends."""
        return self.progress >= 1 or 0 < self.stop_after <= self.step

    def take(self, loss: torch.Tensor, tokens: int) -> None:
        """One step down this loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = schedule(self.step, max(1, min(50, self.steps // 10)), self.progress)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        self.mean += (0.02 if self.step else 1.0) * (value - self.mean)
        self.tokens += tokens
        self.step += 1
        if self.every(100):
            speed = self.tokens / (time.monotonic() - self.began)
            log(f"{self.name} step {self.step}/{self.steps} loss {self.mean:.3f} {speed:.0f} tokens/s")

    def every(self, count: int) -> bool:
        """True on every count-th step."""
        return self.step % count == 0

    def figures(self) -> dict[str, Any]:
        """What the README says about the run."""
        minutes = (time.monotonic() - self.began) / 60
        return {"tokens": self.tokens, "steps": self.step, "minutes": round(minutes, 1)}


def schedule(step: int, warm: int, progress: float) -> float:
    """Share of the peak rate: a linear warm-up, then a cosine down to 1 %."""
    return min(1.0, (step + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def log(text: str) -> None:
    """One line, at once: the run takes an hour and somebody is watching."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def train_target(parts: Parts, out: Path, settings: Settings) -> dict[str, Any]:
    """Train the target; the last epochs see short answers only, so that it learns to stop."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    model = first_model(target_config(), out / "target", settings)
    plan = [
        batch
        for epoch in range(settings.epochs)
        for batch in batches(parts.long if epoch < settings.long_epochs else parts.short, settings, rng)
    ]
    log(f"target: {len(parts.long)} long, {len(parts.short)} short rows, {len(plan)} steps")
    stepper = Stepper("target", model, settings, len(plan))
    for batch in plan:
        if stepper.over:
            break
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, batch)
        stepper.take(loss, batch.tokens)
        if stepper.every(500):
            log(f"target held-out loss {held_out_loss(model, parts.held, settings):.4f}")
            save(model, out / "target")
    log(f"target held-out loss {held_out_loss(model, parts.held, settings):.4f}")
    save(model, out / "target")
    return stepper.figures()


def written_rows(target: LlamaForCausalLM, rows: Sequence[Row], settings: Settings) -> list[Row]:
    """Rows whose answers the target wrote: what the draft will have to guess in real use.

    Half the prompts are answered greedily, half at temperature 0.7.
    """
    found: list[Row] = []
    for half, temperature in ((rows[::2], 0.0), (rows[1::2], 0.7)):
        if not half:
            continue
        prompts = [row.ids[: row.start] for row in half]
        answers = generate(target, prompts, new_tokens=settings.answer_tokens, temperature=temperature)
        for row, answer in zip(half, answers, strict=True):
            ids = (*row.ids[: row.start], *answer)
            found.append(Row(row.kind, ids, row.start, len(ids)))
        log(f"draft: target wrote {len(found)} answers")
    return found


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM, batch: Batch, overlap: float) -> torch.Tensor:
    """KL to the target plus the share of samples it would reject (total variation).

    KL alone spreads the small draft over everything the target might say; the second term
    is 1 - sum(min(p, q)), the rejection rate itself.
    """
    keep, _, weight = selected(batch)
    with torch.no_grad():
        wanted = target.lm_head(hidden_states(target, batch.ids[:, :-1])[keep]).float()
        wanted = wanted.log_softmax(-1)
    made = draft.lm_head(hidden_states(draft, batch.ids[:, :-1])[keep]).float().log_softmax(-1)
    likely = wanted.exp()
    divergence = (likely * (wanted - made)).sum(-1)
    rejected = 0.5 * (likely - made.exp()).abs().sum(-1)
    loss: torch.Tensor = ((divergence + overlap * rejected) * weight).sum() / weight.sum()
    return loss


def train_draft(parts: Parts, out: Path, settings: Settings) -> dict[str, Any]:
    """Distil the target into the draft, on its own answers and on the text.

    Only answers count: a draft is never asked to guess a prompt.
    """
    settings = replace(settings, prompt_weight=0.0, adam_rate=5e-3)
    torch.manual_seed(settings.seed + 1)
    rng = random.Random(settings.seed + 1)
    target = load(out / "target")
    written = written_rows(target, rng.sample(parts.short, settings.written), settings)
    target.set_attn_implementation("matmul_causal")
    draft = first_model(draft_config(), out / "draft", settings)
    plan = [
        batch
        for _ in range(settings.draft_epochs)
        for batch in batches([*parts.short, *written, *written], settings, rng)
    ]
    stepper = Stepper("draft", draft, settings, len(plan))
    for batch in plan:
        if stepper.over:
            break
        with torch.autocast("cpu", torch.bfloat16):
            loss = distillation_loss(draft, target, batch, overlap=2 * stepper.progress)
        stepper.take(loss, batch.tokens)
        if stepper.every(500):
            save(draft, out / "draft")
    save(draft, out / "draft")
    return {**stepper.figures(), "written_answers": len(written)}
