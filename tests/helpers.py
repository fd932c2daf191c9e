"""Small real things the tests share: tiny random models of many families, fake drafters, plain oracles.

The models have a vocabulary of 64 and two or three layers. Their weights are scaled up so that logits differ by whole
units: a wrong mask or a slipped cache slot then moves them by far more than rounding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from specbench import tree as trees
from specbench.lm import attention
from specbench.lm.cached_lm import CachedLM
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request
from specbench.sampling import sequence_key

VOCAB = 64
CPU = torch.device("cpu")

LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
_WINDOW = 8
"""Sliding window of the families that have one: shorter than every context the tests use."""

_ALTERNATING = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": _WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": _WINDOW}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "phi3": ("Phi3Config", {"sliding_window": _WINDOW}),
    "gemma": ("GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": _WINDOW,
            "layer_types": _ALTERNATING,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": _WINDOW, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 8},
    ),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.0}),
    "olmo2": ("Olmo2Config", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": _WINDOW}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": _WINDOW,
            "layer_types": _ALTERNATING,
        },
    ),
}
"""name -> (config class of transformers, what differs from a small Llama). The 16 families of the architecture page,
and gpt_oss."""


def has_ended(process: psutil.Process) -> bool:
    """Nothing of it runs; whoever inherited it may have yet to take its exit code."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tiny_config(family: str, **overrides: Any) -> PretrainedConfig:
    """The family's own config class at toy size."""
    class_name, own = FAMILIES[family]
    config: PretrainedConfig = getattr(transformers, class_name)(**{**LLAMA_LIKE, **own, **overrides})
    return config


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    attention_name: str = attention.SDPA,
    scale: float = 3.0,
    config: PretrainedConfig | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """A random model of the family, weights multiplied by `scale`; one-dimensional sinks and biases get noise, so
    that they matter."""
    attention.register()
    torch.manual_seed(seed)
    config = tiny_config(family, **overrides) if config is None else config
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sinks", "bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            elif parameter.dim() > 1:
                parameter.mul_(scale)
    model.requires_grad_(False)
    model.set_attn_implementation(attention_name)
    if dtype == torch.float64 and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # torch's grouped matrix product has no float64
    return model


def tiny_lm(family: str = "llama", *, attention_name: str = attention.SDPA, **kwargs: Any) -> CachedLM:
    """`tiny_model` behind specbench's cache."""
    return CachedLM(tiny_model(family, attention_name=attention_name, **kwargs), name=f"tiny-{family}")


def plain_logits(lm: CachedLM, ids: Sequence[int]) -> Tensor:
    """The oracle: one full forward of transformers' own eager attention without any cache -> (T, V)."""
    used = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            logits: Tensor = lm.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        lm.model.set_attn_implementation(used)
    return logits


def tokens_of(seed: int, num: int, *, vocab_size: int = VOCAB) -> list[int]:
    """`num` reproducible ids."""
    rng = random.Random(seed)
    return [rng.randrange(vocab_size) for _ in range(num)]


PROMPTS: tuple[tuple[int, ...], ...] = ((1, 2, 5, 0, 0, 5, 6), (9,) * 15, (4, 5), (7, 8, 9, 10) * 5)
"""Ragged; repeated tokens; id 0 inside."""


def requests_for(
    prompts: Sequence[Sequence[int]] = PROMPTS, *, max_new_tokens: int = 24, seed: int = 0, first_id: int = 0
) -> list[Request]:
    """One request a prompt; answers of different lengths, so that rows leave the batch at different steps."""
    return [
        Request(
            key=sequence_key(seed=seed, question_id=str(first_id + place), turn=0),
            prompt=tuple(prompt),
            max_new_tokens=max_new_tokens + place,
        )
        for place, prompt in enumerate(prompts)
    ]


class RefDrafter(Drafter):
    """Proposes the known answer, corrupted at random, as chains or trees of random size: every shape an engine can
    meet.

    answers[b] is the autoregressive answer of the b-th request; `hit` is the chance that a proposed token is the true
    one.
    """

    max_nodes = 12

    def __init__(
        self, answers: Sequence[Sequence[int]], *, kind: str, seed: int = 0, hit: float = 0.8, vocab_size: int = VOCAB
    ) -> None:
        self._answers = [list(answer) for answer in answers]
        self._kind = kind
        self._hit = hit
        self._vocab_size = vocab_size
        self._rng = random.Random(seed)
        self.trees: list[DraftTree] = []

    def begin(self, requests: Sequence[Request]) -> None:
        self._rows = list(range(len(requests)))
        self._prompt_lengths = [len(request.prompt) for request in requests]

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._lengths = list(len_B)

    def _guess(self, row: int, num: int) -> list[int]:
        done = self._lengths[row] - self._prompt_lengths[self._rows[row]]
        ahead = self._answers[self._rows[row]][done : done + num]
        return [
            ahead[depth]
            if depth < len(ahead) and self._rng.random() < self._hit
            else self._rng.randrange(self._vocab_size)
            for depth in range(num)
        ]

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tokens, parents = [], []
        for row in range(len(self._rows)):
            if self._kind == "chain":
                guess = self._guess(row, self._rng.randint(0, 5))
                tokens.append(guess)
                parents.append(list(range(-1, len(guess) - 1)))
            else:
                paths = [self._guess(row, self._rng.randint(1, 4)) for _ in range(self._rng.randint(0, 6))]
                row_tokens, row_parents = trees.merge(paths, max_nodes=self.max_nodes)
                tokens.append(row_tokens)
                parents.append(row_parents)
        tree = trees.from_lists(tokens, parents, device=CPU)
        self.trees.append(tree)
        return tree

    def commit(self, commit: Commit) -> None:
        for row, tokens in enumerate(commit.tokens):
            self._lengths[row] += len(tokens)

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]


class NoDrafter(Drafter):
    """Plain autoregression, written here so that engine tests need no method."""

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._num_rows = len(len_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return trees.empty(self._num_rows, CPU)

    def keep(self, rows: list[int]) -> None:
        self._num_rows = len(rows)


def disturbed_lm(*, noise: float = 0.15, **overrides: Any) -> CachedLM:
    """A draft model: tiny_lm's weights, disturbed: right often enough to accept, wrong often enough to reject."""
    model = tiny_model(**overrides)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            disturbance = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(disturbance * parameter.std() * noise)
    return CachedLM(model, name="draft")
