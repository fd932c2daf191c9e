"""A tiny target in a folder (random Llama, byte-level tokenizer with a chat template), a suite file, planted
methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from specbench.api import Silent
from specbench.bench.runner import run
from tests.bench.runs import events_of, request_for
from tests.helpers import tiny_model

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tiny_target(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """259 ids: every byte, <end> (256, stops), <user> (257), <assistant> (258)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model = tiny_model(
        "llama", seed=seed, dtype=dtype, vocab_size=259, max_position_embeddings=256, eos_token_id=256, pad_token_id=256
    )
    model.generation_config = GenerationConfig(eos_token_id=256, pad_token_id=256)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def tiny_suite(tmp_path: Path) -> Path:
    """Four questions, one of them with two turns, in two categories."""
    rows = [
        {"question_id": "one", "category": "x", "turns": ["abc abc abc"]},
        {"question_id": "two", "category": "x", "turns": ["hello", "and again"]},
        {"question_id": "three", "category": "y", "turns": ["0 1 0 1 0 1"]},
        {"question_id": "four", "category": "y", "turns": ["zz"]},
    ]
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def plant(tmp_path: Path):
    """Write a method into a folder for --methods-dir: plant(name, code, carries...) -> folder."""

    def write(name: str, code: str, *, kind: str = "chain") -> Path:
        folder = tmp_path / "planted" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "method.yaml").write_text(
            f"name: {name}\ntitle: Planted {name}\npaper: ''\nkind: {kind}\nsummary: Planted by a test.\n"
        )
        (folder / "drafter.py").write_text(code)
        return folder.parent

    return write


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth reading copies 1 MiB here instead of 256: these tests look at runs, not at memory."""
    from specbench.bench import machine

    right = machine.copy_bandwidth
    monkeypatch.setattr(machine, "copy_bandwidth", lambda device: right(device, size_bytes=1 << 20, rounds=1))


@pytest.fixture
def go(tiny_suite, tiny_target, tmp_path):
    """go(**changes) -> (outcome, events by kind)."""

    def start(**changes):
        store = tmp_path / "results"
        outcome = run(request_for(tiny_suite, tiny_target, store, **changes), Silent())
        return outcome, lambda kind: events_of(store, outcome.run_id, kind)

    return start


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("draft"), seed=5)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve short questions, so that some are held out."""
    path = tmp_path / "many.jsonl"
    rows = [
        {"question_id": f"q{n}", "category": "ab"[n % 2], "turns": [f"{n} say {'abcdef'[n % 6]}"]} for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
