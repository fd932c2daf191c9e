"""Little datasets on disk and tokenizers small enough to see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specbench.paths import DEMO_MODELS

WriteRows = Callable[[str, Sequence[Mapping[str, Any]]], Path]
MakeTokenizer = Callable[[str | None], PreTrainedTokenizerFast]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template of the common form, without marks: a newline stands behind the stop token."""


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """(name, rows) -> a JSONL file under the test's folder."""

    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def demo_tokenizer() -> Any:
    """The embedded target's, whose template marks its answers."""
    return AutoTokenizer.from_pretrained(DEMO_MODELS["demo"])


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """One id a byte, after `<|im_start|>` 0 and `<|im_end|>` 1, which ends answers."""

    def make(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
        special = ["<|im_start|>", "<|im_end|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(special)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<|im_end|>", clean_up_tokenization_spaces=False
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


def turn(role: str, content: str) -> dict[str, str]:
    """One message."""
    return {"role": role, "content": content}
