"""Which ids end an answer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from specbench.lm.cached_lm import CachedLM


def stop_ids_of(lm: CachedLM) -> frozenset[int]:
    """The ids that end an answer: the model's generation config, otherwise its tokenizer's end token."""
    return _ids(getattr(lm.model, "generation_config", None), lm.tokenizer)


def stop_ids_in(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The same for a model folder whose weights another program loads."""
    has_config = (folder / "generation_config.json").is_file()
    return _ids(GenerationConfig.from_pretrained(folder) if has_config else None, tokenizer)


def _ids(generation: Any, tokenizer: Any) -> frozenset[int]:
    ids: Any = getattr(generation, "eos_token_id", None)
    if ids is None and tokenizer is not None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
