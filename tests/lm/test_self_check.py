"""Model types that no other test proves are checked when they are loaded: served where they pass, refused by name where
not. The check itself fails for attention that is broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

from specbench.errors import UsageError
from specbench.lm import visibility
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import PROVEN, load_lm
from specbench.lm.self_check import largest_deviation, self_check
from tests.helpers import CPU, LLAMA_LIKE, tiny_lm, tiny_model

_HALF_WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

UNPROVEN: dict[str, dict[str, Any]] = {
    "stablelm": {},
    "cohere": {},
    "cohere2": _HALF_WINDOWED,
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "persimmon": {},
    "phi": {},
    "olmo": {},
    "olmo3": _HALF_WINDOWED,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "exaone4": _HALF_WINDOWED,
    "nemotron": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "helium": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8},
    "gpt_bigcode": {},
    "biogpt": {},
    "bitnet": {},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "vaultgemma": {**_HALF_WINDOWED, "head_dim": 16},
}
"""Types no family test proves, which pass the check at load. Two dozen of the 80 that were tried and pass."""


def _folder(folder: Path, model_type: str, **overrides: Any) -> str:
    config = CONFIG_MAPPING[model_type](**{**LLAMA_LIKE, **overrides})
    model = tiny_model(config=config, attention_name="eager", dtype=torch.float32)
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    return str(folder)


def _load(name: str, *, dtype: torch.dtype = torch.float32) -> CachedLM:
    return load_lm(name, device=CPU, dtype=dtype)


@pytest.mark.parametrize("model_type", UNPROVEN)
def test_an_unproven_type_is_checked_at_load_and_served(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr("specbench.lm.self_check.self_check", lambda lm: (checked.append(lm.dtype), self_check(lm)))
    lm = _load(_folder(tmp_path, model_type, **UNPROVEN[model_type]))
    assert lm.config.model_type not in PROVEN
    assert checked == [torch.float32] and lm.attention_used == set()


@pytest.mark.parametrize("model_type", ["stablelm", "cohere2", "olmoe"])
def test_an_unproven_type_is_served_in_float64_too(tmp_path: Path, model_type: str) -> None:
    """Its own plain attention takes the softmax in float32 there, so that no closer agreement can be asked."""
    lm = _load(_folder(tmp_path, model_type, **UNPROVEN[model_type]), dtype=torch.float64)
    assert lm.dtype == torch.float64
    assert 0 < largest_deviation(lm)[0] < 1e-6


def test_the_check_is_made_in_float32_for_a_sixteen_bit_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 rounding is as large as a wrong mask."""
    checked = []
    monkeypatch.setattr("specbench.lm.self_check.self_check", lambda lm: checked.append(lm.dtype))
    assert _load(_folder(tmp_path, "stablelm"), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert checked == [torch.float32]


@pytest.mark.parametrize(
    ("model_type", "why"), [("bert", "logits differ"), ("doge", "mask of its own")]
)  # fmt: skip
def test_an_unproven_type_that_fails_its_check_is_refused(tmp_path: Path, model_type: str, why: str) -> None:
    """bert sees both ways unless told; doge builds a mask that depends on content."""
    name = _folder(tmp_path, model_type)
    with pytest.raises(UsageError, match=f"cannot be verified as a tree.*{why}"):
        _load(name)


def test_a_type_that_has_two_texts_of_its_own_is_refused_where_they_part(tmp_path: Path) -> None:
    """transformers' moshi masks nothing by its window, and its cache drops what the window has passed: a forward and
    `generate` differ behind it. The published one's window is as long as its context."""
    changed = {"ffn_dim": 48, "num_codebooks": 2, "audio_vocab_size": 16, "head_dim": 8}
    name = _folder(tmp_path / "short", "moshi", sliding_window=8, **changed)
    with pytest.raises(UsageError, match=r"moshi.*its window of 8") as caught:
        _load(name)
    assert "full attention" in caught.value.try_
    whole = _load(_folder(tmp_path / "long", "moshi", sliding_window=LLAMA_LIKE["max_position_embeddings"], **changed))
    assert whole.config.model_type == "moshi"
    own = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager")
    ids = torch.arange(4, 24)[None]
    with torch.inference_mode():
        forward = own(input_ids=ids, use_cache=False).logits[0, -1]
        before = own(input_ids=ids[:, :-1], use_cache=True).past_key_values
        cached = own(input_ids=ids[:, -1:], past_key_values=before).logits[0, -1]
    assert (forward - cached).abs().max() > 1e-3, "transformers' two paths agree by now: nothing need be refused"


def test_the_check_fails_for_an_attention_that_is_broken_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings that see each other: the classic fault of a causal mask on a tree."""
    lm = tiny_lm("llama", dtype=torch.float32)
    self_check(lm)
    whole = visibility.visible

    def siblings_see_each_other(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen = whole(*args, **kwargs)
        return seen | torch.ones_like(seen).tril(seen.shape[2] - seen.shape[1])

    monkeypatch.setattr(visibility, "visible", siblings_see_each_other)
    monkeypatch.setattr(
        visibility.HostForward,
        "_make_bias",
        lambda self, window: visibility.as_bias(
            visibility.visible(
                self.topology, self.length_B, span=self.longest + self.topology.depth_BM.shape[1], window=window
            ),
            self.dtype,
        )[:, None],
    )
    with pytest.raises(UsageError, match="logits differ"):
        self_check(lm)


def test_the_check_notices_a_window_the_attention_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt is longer than the window: otherwise a layer that forgets its window would pass."""
    lm = tiny_lm("mistral", dtype=torch.float32, sliding_window=40)
    self_check(lm)
    bias = visibility.Forward.bias
    monkeypatch.setattr(visibility.Forward, "bias", lambda self, window, group: bias(self, None, group))
    with pytest.raises(UsageError, match="logits differ"):
        self_check(lm)
