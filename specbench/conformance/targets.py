"""Tiny random targets in float64 on which `conformance` runs a method: nothing to download, exact to the last token.

Three architectures (grouped heads with rotary positions; learned positions; sliding windows with soft-capping), a
target whose answer can be foreseen, and one whose next-token law is a table, so that joint laws can be enumerated.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from specbench.lm import attention
from specbench.lm.cached_lm import CachedLM
from specbench.sampling import Sampling, log_probs, process

VOCAB = 48
ARCHITECTURES = ("llama", "gpt2", "gemma2")
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    # transformers' GPT-2 takes a prompt that ends in its pad id for a padded one, and warns.
    "gpt2": ("GPT2Config", {"pad_token_id": None}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def _model(architecture: str, **changed: Any) -> PreTrainedModel:
    attention.register()
    class_name, own = _OWN[architecture]
    config = getattr(transformers, class_name)(**{**_SMALL, **own, **changed})
    # from_config draws from torch's global generator; the caller's stream is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # logits a unit apart, so that answers do not hang on rounding
    model.requires_grad_(False)
    model.set_attn_implementation(attention.SDPA)
    return model


class TableLM(CachedLM):
    """logits after token x are logits_VV[x], whatever came before: a Llama whose layers add nothing.

    Forwards are ordinary ones. Only a prompt is short-cut while nothing is tapped: thousands of rows are prefilled at
    once.
    """

    def __init__(self, logits_VV: Tensor, *, name: str = "table") -> None:
        size = logits_VV.shape[0]
        width = max(16, size)
        model = _model(
            "llama",
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        parameters = dict(model.named_parameters())
        head = torch.zeros(size, width, dtype=torch.float64)
        head[:, :size] = logits_VV.T / width**0.5
        with torch.no_grad():
            for parameter_name, parameter in parameters.items():
                if parameter_name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()
            # The norm turns the unit vector e_x into sqrt(width) e_x, and the head reads its row off.
            parameters["model.embed_tokens.weight"].copy_(torch.eye(size, width, dtype=torch.float64))
            parameters["lm_head.weight"].copy_(head)
        super().__init__(model, name=name)
        self.logits_VV = logits_VV
        self._is_tapped = False

    def tap(self, taps: tuple[int | str, ...]) -> None:
        self._is_tapped = bool(taps)
        super().tap(taps)

    def prefill(self, row: int, tokens_T: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._is_tapped:
            return super().prefill(row, tokens_T)
        self.cache.advance(row, tokens_T.shape[0])
        return self.logits_VV[tokens_T[-1]], None


@lru_cache(maxsize=8)
def random_target(architecture: str) -> CachedLM:
    """A tiny random model of the architecture, shared by all checks of a process."""
    return CachedLM(_model(architecture), name=f"tiny-{architecture}")


def successor(token: int) -> int:
    """What the cyclic target says after `token`: one cycle through all but the last ids."""
    return (token * 5 + 3) % (VOCAB - 1)


@lru_cache(maxsize=1)
def cyclic_target() -> TableLM:
    """Says `successor` with probability 0.98, so that any method that learns from its context drafts long runs."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)
    for token in range(VOCAB):
        logits[token, successor(token)] = 9.0
    return TableLM(logits, name="cyclic")


@lru_cache(maxsize=1)
def table_target() -> TableLM:
    """Four tokens with a random law: small enough for a chi-square test over joint answers."""
    generator = torch.Generator().manual_seed(1)
    return TableLM(torch.randn(4, 4, generator=generator, dtype=torch.float64))


def save_draft_of(lm: CachedLM, folder: Path) -> Path:
    """A draft model for `lm` as a folder: its own weights disturbed, so that some drafts are right and some are not."""
    transformers.utils.logging.disable_progress_bar()  # stderr carries our narration
    source = lm.model
    draft = type(source)(source.config).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for mine, theirs in zip(draft.parameters(), source.parameters(), strict=True):
            noise = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
            mine.copy_(theirs + 0.2 * theirs.std(correction=0) * noise)
    draft.save_pretrained(folder)
    return folder


def enumerated_law(
    logits_VV: Tensor, sampling: Sampling, *, length: int, first: int = 0
) -> dict[tuple[int, ...], float]:
    """Probability of every answer of `length` tokens to a prompt that ends with `first`, by multiplying table
    entries."""
    p = log_probs(process(logits_VV, sampling)).exp()
    law = {}
    for answer in itertools.product(range(p.shape[0]), repeat=length):
        probability, last = 1.0, first
        for token in answer:
            probability *= float(p[last, token])
            last = token
        law[answer] = probability
    return law


def marginal(law: dict[tuple[int, ...], float], place: int) -> dict[tuple[int, ...], float]:
    """The law of one token of the answers: more power against a wrong rule than the joint cells have."""
    out: dict[tuple[int, ...], float] = {}
    for answer, probability in law.items():
        out[answer[place],] = out.get((answer[place],), 0.0) + probability
    return out


def chi_square_p(answers: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """p-value of independent answers under the law (Pearson). Answers expected fewer than five times are pooled; one
    that cannot occur gives 0."""
    counts = dict.fromkeys(law, 0)
    for answer in answers:
        counts[answer] += 1
    if any(counts[answer] and probability == 0 for answer, probability in law.items()):
        return 0.0
    cells = [(counts[answer], probability * len(answers)) for answer, probability in law.items() if probability > 0]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if rare:
        cells.append((sum(seen for seen, _ in rare), sum(expected for _, expected in rare)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    # Survival function of chi-square with k degrees of freedom: the regularised upper incomplete gamma Q(k/2, x/2).
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
