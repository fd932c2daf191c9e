"""A tiny random target with the embedded tokenizer, documents in memory, and requests for the `shallow` test method."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specbench import paths
from specbench.bench.request import Setting
from specbench.data.counts import Counts
from specbench.data.documents import Documents
from specbench.training.corpus import Corpus
from specbench.training.request import TrainRequest

METHODS = Path(__file__).resolve().parent / "methods_dir"
VOCAB = 4096


class Quiet:
    """A TrainProgress that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.losses: list[float] = []

    def plan(self, *, title: str, share_done: float) -> None: ...

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        self.losses.append(loss)

    def say(self, text: str) -> None:
        self.lines.append(text)


def make_target(folder: Path, *, hidden_size: int = 16, vocab_size: int = VOCAB, seed: int = 0) -> Path:
    """A random Llama of one layer; its logits are a unit apart, so that argmax does not hang on rounding."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(paths.DEMO / "target" / name, folder / name)
    return folder


def make_documents(num: int, *, seed: int = 0, masked: bool = False, name: str = "memory") -> Documents:
    """Random walks over few tokens, the last two thirds to be learnt; 9 to 24 tokens each."""
    random = np.random.default_rng(seed)
    tokens, learn, starts, prompts, answers = [], [], [0], [], []
    for _ in range(num):
        length = int(random.integers(9, 25))
        start = int(random.integers(10, 40))
        step = int(random.integers(1, 4))
        ids = [10 + (start + step * place) % 40 for place in range(length)]
        prompt = length // 3
        tokens += ids
        learn += [False] * prompt + [not masked] * (length - prompt)
        starts.append(len(tokens))
        prompts.append(prompt)
        answers.append(length - prompt)
    return Documents(
        name=name,
        tokens_N=np.array(tokens, dtype=np.int32),
        learn_N=np.array(learn, dtype=np.bool_),
        start_of=np.array(starts, dtype=np.int64),
        prompt_length_of=np.array(prompts, dtype=np.int64),
        answer_length_of=np.array(answers, dtype=np.int64),
        counts=Counts(num_read=num, num_kept=num, num_tokens=len(tokens), num_learnt=sum(learn)),
        fingerprint=f"{num}-{seed}-{masked}",
        source="memory",
    )


def make_written(target: Path, num: int) -> Documents:
    """The prompts of `make_documents` with what the target writes greedily, 20 tokens each."""
    model = LlamaForCausalLM.from_pretrained(target)
    plain = make_documents(num)
    tokens, learn, starts = [], [], [0]
    for document in plain:
        prompt = torch.tensor([document.prompt])
        ids = model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)[0].tolist()
        tokens += ids
        learn += [False] * len(document.prompt) + [True] * 20
        starts.append(len(tokens))
    return replace(
        plain,
        tokens_N=np.array(tokens, dtype=np.int32),
        learn_N=np.array(learn, dtype=np.bool_),
        start_of=np.array(starts, dtype=np.int64),
        answer_length_of=np.full(num, 20, dtype=np.int64),
    )


def make_corpus(num: int = 24, *, seed: int = 0, masked: bool = False) -> Corpus:
    return Corpus(
        name="memory",
        train=make_documents(num, seed=seed, masked=masked),
        held_out=make_documents(4, seed=seed + 1000),
    )


def make_request(target: Path, store: Path, **changed: Any) -> TrainRequest:
    """12 steps of 4 rows on one core: well under a second beside loading."""
    settings = tuple(Setting("shallow", name, str(value)) for name, value in changed.pop("options", {}).items())
    values: dict[str, Any] = {
        "method": "shallow",
        "target": str(target),
        "dataset": "memory",
        "learn": "gt",
        "max_length": 48,
        "batch_size": 4,
        "micro_batch": 4,
        "max_steps": 12,
        "lr": 3e-2,
        "eval_every": 6,
        "save_every": 4,
        "eval_prompts": 3,
        "eval_new_tokens": 8,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "store": store,
        "methods_dirs": (METHODS,),
        "settings": settings,
    }
    return TrainRequest(**{**values, **changed})
