"""Tokenizer, encoded rows and batches."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from specbench.demo.recipe.examples import Example
from specbench.demo.recipe.settings import Settings

PAD, USER, ASSISTANT, END = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"
VOCABULARY = 4096
CONTEXT = 1024

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>\n"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}\n"
    "{% else %}<|user|>\n"
    "{{ m['content'] }}<|end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% endif %}"
)


@dataclass(frozen=True)
class Row:
    """An encoded conversation; ``start`` is where the answer's tokens begin."""

    kind: str
    ids: tuple[int, ...]
    start: int
    stop: int  # one past the stop id that ends the answer

    @property
    def answer_tokens(self) -> int:
        """Length of the answer, its stop id included."""
        return self.stop - self.start


def train_tokenizer(texts: Iterable[str], out: Path) -> None:
    """Byte-level BPE of exactly 4096 ids; digits stay single so that sums can be learnt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(
        tokenizer_object=bpe,
        bos_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    assert len(tokenizer) == VOCABULARY
    for folder in ("target", "draft"):
        tokenizer.save_pretrained(out / folder)


def encode(tokenizer: Any, example: Example) -> Row:
    """One example through the shipped chat template, so training sees what users will send."""
    messages = [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.answer},
    ]
    coded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    mask = coded["assistant_masks"]
    start = mask.index(1)
    stop = len(mask) - mask[::-1].index(1)
    return Row(example.kind, tuple(coded["input_ids"]), start, stop)


SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"')]?(?=\s)")


def shortened(tokenizer: Any, example: Example, limit: int) -> Row | None:
    """The example with its answer cut after the last sentence that fits, or None.

    Most role-play answers run past the limit; dropping them would leave a few hundred.
    Maths and code are never cut: half of them is wrong, half a story is a short story.
    """
    row = encode(tokenizer, example)
    if row.answer_tokens <= limit:
        return row
    if example.kind != "roleplay":
        return None
    for end in reversed([found.end() for found in SENTENCE_END.finditer(example.answer)]):
        row = encode(tokenizer, replace(example, answer=example.answer[:end]))
        if row.answer_tokens <= limit:
            return row if row.answer_tokens >= limit // 3 else None
    return None


@dataclass(frozen=True)
class Parts:
    """The encoded rows of each use."""

    long: list[Row]  # training, answers whole
    short: list[Row]  # training, answers that can end within the measured length
    held: list[Row]  # held out, answers as in ``short``


def short_rows(tokenizer: Any, examples: Iterable[Example], settings: Settings) -> list[Row]:
    """Rows whose answer is short, or could be made so."""
    made = [shortened(tokenizer, example, settings.short_answer) for example in examples]
    return [row for row in made if row and row.start <= settings.longest_prompt]


def long_rows(tokenizer: Any, examples: Iterable[Example], settings: Settings) -> list[Row]:
    """All rows but the few that would make slow batches."""
    made = [encode(tokenizer, example) for example in examples]
    return [row for row in made if row.answer_tokens <= settings.long_answer and row.start <= settings.longest_prompt]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows with a loss weight for each predicted position."""

    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens the model really sees: padding does not count."""
        return int((self.weights >= 0).sum())


def collate(rows: Sequence[Row], prompt_weight: float) -> Batch:
    """Pad on the right: under a causal mask the padding is then never looked at.

    ``weights[i, t]`` is the weight of predicting token ``t``; -1 marks padding, and the
    newline after the stop id weighs nothing because generation never gets there.
    """
    width = max(row.stop for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    weights = torch.full((len(rows), width), -1.0)
    for i, row in enumerate(rows):
        ids[i, : row.stop] = torch.tensor(row.ids[: row.stop])
        weights[i, : row.start] = prompt_weight
        weights[i, row.start : row.stop] = 1.0
    weights[:, 0] = weights[:, 0].clamp(max=0.0)
    return Batch(ids, weights)


def batches(rows: Sequence[Row], settings: Settings, rng: random.Random) -> list[Batch]:
    """Rows of similar length together, in random order: little padding, no packing tricks."""
    order = sorted(rows, key=lambda row: row.stop + rng.random() * 16)
    groups: list[list[Row]] = [[]]
    for row in order:
        widest = max([row.stop, *(r.stop for r in groups[-1])])
        if (len(groups[-1]) + 1) * widest > settings.batch_tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return [collate(group, settings.prompt_weight) for group in groups if group]
