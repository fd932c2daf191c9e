"""The figures of the README: answers, their variety, agreement of the draft with the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from specbench.demo.recipe.examples import KINDS
from specbench.demo.recipe.models import held_out_loss, load
from specbench.demo.recipe.rows import Parts, Row
from specbench.demo.recipe.settings import Settings


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    temperature: float = 0.0,
    batch: int = 128,
) -> list[list[int]]:
    """Answers to the prompts, stop id included where the model came to it."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        width = max(len(prompts[i]) for i in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(part):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            made: Any = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, **options)
        for row, i in enumerate(part):
            answers[i] = cut(made[row, width:].tolist())
    return answers


def cut(ids: list[int], stop: int = 3) -> list[int]:
    """The ids up to and with the first stop id; what follows is padding."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def distinct_4grams(ids: Sequence[int]) -> float:
    """Different 4-grams over all 4-grams; an answer too short to have one scores 0."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return len(set(grams)) / len(grams) if grams else 0.0


def pick(rows: Sequence[Row], count: int) -> list[Row]:
    """The first held-out rows of each kind in turn, so that all three weigh the same."""
    queues = [[row for row in rows if row.kind == kind] for kind in KINDS]
    turns = [row for turn in zip(*queues, strict=False) for row in turn]
    return turns[:count]


def agreement(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Sequence[Row],
    answers: Sequence[list[int]],
) -> dict[str, float]:
    """How often the draft's first choice is the target's, and sum(min(p, q)) at T=1.

    Both are means over the positions of the given answers (the target's own).
    """
    same, shared, count = 0.0, 0.0, 0
    with torch.inference_mode():
        for row, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([[*row.ids[: row.start], *answer]])
            p = target(ids).logits[0, row.start - 1 : -1].softmax(-1)
            q = draft(ids).logits[0, row.start - 1 : -1].softmax(-1)
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            shared += float(torch.minimum(p, q).sum())
            count += len(answer)
    return {"greedy_agreement": same / count, "overlap": shared / count, "positions": count}


def evaluate(parts: Parts, prompts: Sequence[Row], tokenizer: Any, out: Path, settings: Settings) -> dict[str, Any]:
    """Every figure of the README, from the shipped 16-bit weights and held-out prompts."""
    torch.manual_seed(settings.seed + 2)
    target, draft = load(out / "target"), load(out / "draft")
    heads = [row.ids[: row.start] for row in prompts]
    greedy = generate(target, heads, new_tokens=settings.answer_tokens)
    sampled = generate(target, heads, new_tokens=settings.answer_tokens, temperature=1.0)
    write_samples(tokenizer, prompts[:20], greedy[:20], out / "samples.md")
    ratios = [distinct_4grams(answer) for answer in greedy]
    return {
        "parameters": {"target": target.num_parameters(), "draft": draft.num_parameters()},
        "held_out_rows": len(parts.held),
        "held_out_loss": {
            "target": held_out_loss(target, parts.held, settings),
            "draft": held_out_loss(draft, parts.held, settings),
            "target_by_kind": by_kind(target, parts.held, settings),
        },
        "greedy_answers": len(greedy),
        "distinct_4gram_ratio": sum(ratios) / len(ratios),
        "distinct_4gram_worst": min(ratios),
        "share_stopped": sum(answer[-1] == 3 for answer in greedy) / len(greedy),
        "mean_answer_tokens": sum(map(len, greedy)) / len(greedy),
        "draft_on_greedy_answers": agreement(target, draft, prompts, greedy),
        "draft_on_sampled_answers": agreement(target, draft, prompts, sampled),
    }


def by_kind(model: LlamaForCausalLM, rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """Held-out loss of each source on its own."""
    return {kind: held_out_loss(model, [row for row in rows if row.kind == kind], settings) for kind in KINDS}


def write_samples(tokenizer: Any, rows: Sequence[Row], answers: Sequence[list[int]], path: Path) -> None:
    """Greedy answers to held-out prompts, unselected, for people to read."""
    parts = [
        "# Twenty greedy answers of the demo target\n\n"
        "The first twenty held-out prompts in turn of kind, unselected; at most 128 new tokens,\n"
        "16-bit weights. Written by `specbench.demo.recipe`.\n"
    ]
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        prompt = tokenizer.decode(row.ids[: row.start], skip_special_tokens=True).strip()
        text = tokenizer.decode(answer, skip_special_tokens=True)
        end = "stop id" if answer[-1] == 3 else "length limit"
        parts.append(
            f"## {number}. {row.kind} ({len(answer)} tokens, ended by {end})\n\n"
            f"Prompt:\n\n~~~text\n{prompt}\n~~~\n\nAnswer:\n\n~~~text\n{text}\n~~~\n"
        )
    path.write_text("\n".join(parts), encoding="utf-8")
