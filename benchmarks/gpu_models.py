"""Random-weight models of published shapes, and drafters that need no training, for `gpu.py`."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from benchmarks.gpu_attention import WatchedLM
from specbench.lm import attention
from specbench.method import Drafter, DraftNoise, DraftTree
from specbench.tree import DraftTree as Tree
from specbench.tree import chain


def _rope(theta: float) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": theta}


PUBLISHED: dict[str, PretrainedConfig] = {
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rope_parameters=_rope(5e5),
        tie_word_embeddings=False,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, rope_parameters=_rope(1e6),
        tie_word_embeddings=False,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, rope_parameters=_rope(1e6),
        tie_word_embeddings=True,
    ),
}  # fmt: skip


BIG = "llama-3.1-8b"
NEW = 256
"""Tokens that most parts decode."""


def small_copy(config: PretrainedConfig) -> PretrainedConfig:
    """The same family at toy size, to rehearse on a CPU."""
    small = copy.deepcopy(config)
    heads = 4 if config.num_attention_heads % config.num_key_value_heads == 0 else 2
    for name, value in {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": heads, "num_key_value_heads": 2,
    }.items():  # fmt: skip
        setattr(small, name, value)
    if hasattr(small, "head_dim"):
        small.head_dim = 16
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:4]
    return small


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how everything is measured. is_small: the rehearsal's shapes."""

    device: torch.device
    dtype: torch.dtype
    is_small: bool
    attention_name: str
    backend: Any
    """Makes what captures steps; `why_phased` is its one option."""
    attention_float32: str = ""
    """What models in float32 take, where it is another; '' where it is the same."""
    attention_note: str = ""
    """Why one of them is not the one that would have been taken."""
    why_no_timer: str = ""
    """Why phases are timed by events, one graph each; '' where a kernel reads the device's timer."""
    kept: list[Any] = field(default_factory=list)
    """What parts share (`gpu_shared`), until a model of another kind is made."""

    def attention_for(self, dtype: torch.dtype) -> str:
        """The implementation that models of this dtype take."""
        return self.attention_float32 if dtype == torch.float32 and self.attention_float32 else self.attention_name

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def size(self, published: int) -> int:
        """A number of tokens, cut down for the rehearsal."""
        return max(published // 32, 8) if self.is_small else published


def make_model(bench: Bench, name: str, *, dtype: torch.dtype | None = None, seed: int = 0) -> PreTrainedModel:
    """Random weights, drawn on the device, on our attention. What parts share is let go of first."""
    let_go(bench)
    # transformers keeps the very config it is given, and an attention that is set later is set in there.
    config = small_copy(PUBLISHED[name]) if bench.is_small else copy.deepcopy(PUBLISHED[name])
    attention.leave_cudnn_out(bench.device)
    attention.register()
    torch.manual_seed(seed)
    with torch.device(bench.device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype or bench.dtype)
    model = model.eval().requires_grad_(False)
    model.set_attn_implementation(bench.attention_for(model.dtype))
    return model


def make_decisive(model: PreTrainedModel) -> None:
    """Give every token one clear successor, so that rounding decides no text. Changes `model`, whose head must be its
    own.

    Logits of a random model lie so close together that in 16 bits the first of them is another one when five slots are
    verified instead of one; a reference written token by token is then not written again. Here embeddings stand far
    above what the layers add to them, and the head holds each token's embedding at its successor's place: the logit
    there is about the square root of the width times that of any other. Shapes, and so the work, are as before.
    """
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert isinstance(embeddings, Tensor) and isinstance(head, Tensor) and embeddings is not head
    with torch.no_grad():
        embeddings.mul_(100.0 / embeddings.std())
        successor = torch.randperm(embeddings.shape[0], device=embeddings.device)
        head[successor] = embeddings * 1e-3


@contextmanager
def target(
    bench: Bench, name: str, *, is_decisive: bool = False, dtype: torch.dtype | None = None
) -> Iterator[WatchedLM]:
    """A model behind specbench's cache; its memory is given back afterwards. is_decisive: see `make_decisive`."""
    model = make_model(bench, name, dtype=dtype)
    if is_decisive:
        make_decisive(model)
    lm = WatchedLM(model, name=name)
    del model
    try:
        yield lm
    finally:
        del lm
        free(bench)


def free(bench: Bench) -> None:
    """Let go of what nothing holds any more, workspaces of products included: they would count as a later model's."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        # One for each stream that ever multiplied. torch has no public word for it.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        torch.cuda.empty_cache()


def let_go(bench: Bench) -> None:
    """Of what parts share, and of what was compiled for it: torch's compiler holds on to the models it has seen."""
    if bench.kept:
        bench.kept.clear()
        torch.compiler.reset()
        free(bench)


class Plain(Drafter):
    """Autoregression."""

    capturable = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_rows = 0

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._num_rows = len(len_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return chain(torch.empty(self._num_rows, 0, dtype=torch.long, device=self._device))

    def keep(self, rows: list[int]) -> None:
        self._num_rows = len(rows)


class Guess(Plain):
    """Always the same `num` tokens: what a verification of that many nodes costs, and nothing else.

    is_tree: all of them children of the root, so that the accepted path is moved.
    """

    def __init__(self, device: torch.device, *, num: int, is_tree: bool = False) -> None:
        super().__init__(device)
        self.max_nodes = num
        self._tokens_N = torch.arange(7, 7 + num, device=device)
        self._roots_N = torch.full((num,), -1, dtype=torch.long, device=device)
        self._is_tree = is_tree

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tokens_BN = self._tokens_N.expand(self._num_rows, -1)
        if not self._is_tree:
            return chain(tokens_BN)
        return Tree(tokens_BN=tokens_BN, parents_BN=self._roots_N.expand(self._num_rows, -1), max_depth=1)
