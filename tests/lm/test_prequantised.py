"""Checkpoints that come quantised: named, run as what they are, or refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm import prequantised, quantise
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.lm.quantised import quantised_layers
from specbench.lm.self_check import self_check
from tests.helpers import CPU, plain_logits, tokens_of
from tests.lm.test_quantise import folder_of, loaded, needs_bitsandbytes, needs_torchao, tree_logits

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def torchao_checkpoint(folder: Path, **overrides: Any) -> str:
    """Written by transformers as its users write them."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    plain = folder_of(folder / "plain", **overrides)
    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(folder / "int8")
    return str(folder / "int8")


@needs_torchao
def test_a_torchao_checkpoint_runs_as_the_quantised_target_it_is(tmp_path: Path) -> None:
    name = torchao_checkpoint(tmp_path)
    lm = load_lm(name, device=CPU, dtype=torch.float32)
    assert lm.quantisation == "torchao Int8WeightOnly" and len(quantised_layers(lm.model)) == 14
    ours, expected = tree_logits(lm)
    torch.testing.assert_close(ours, expected, atol=5e-6, rtol=5e-6)
    # The same numbers as by --quantisation from the plain folder, and the same bytes.
    same, ids = loaded(str(tmp_path / "plain"), "int8"), tokens_of(2, 9)
    assert torch.equal(plain_logits(lm, ids), plain_logits(same, ids))
    assert lm.weight_bytes_per_token() == same.weight_bytes_per_token()


@needs_torchao
def test_a_quantised_checkpoint_of_an_unproven_family_is_checked_by_what_its_weights_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 and without quantised products: rounding must not hide a wrong mask."""
    checked = []

    def recorded(lm: CachedLM) -> None:
        checked.append((lm.dtype, len(quantised_layers(lm.model))))
        self_check(lm)

    monkeypatch.setattr("specbench.lm.self_check.self_check", recorded)
    config = CONFIG_MAPPING["stablelm"](**_SMALL)
    name = torchao_checkpoint(tmp_path, config=config)
    assert quantised_layers(load_lm(name, device=CPU, dtype=torch.float32).model)
    assert checked == [(torch.float32, 0)]


@needs_torchao
def test_it_is_neither_quantised_again_nor_run_in_another_dtype(tmp_path: Path) -> None:
    name = torchao_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="comes quantised") as caught:
        loaded(name, "int8")
    assert caught.value.try_ == "without --quantisation"
    with pytest.raises(UsageError, match="quantised for float32") as caught:
        loaded(name, "none", torch.bfloat16)
    assert caught.value.try_ == "--dtype float32"


@needs_torchao
def test_a_checkpoint_whose_embeddings_are_quantised_too_is_refused(tmp_path: Path) -> None:
    """Drafters copy and index the head's rows."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), include_input_output_embeddings=True)
    plain = folder_of(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(tmp_path / "all")
    with pytest.raises(UsageError, match="is quantised too"):
        loaded(str(tmp_path / "all"), "none")


def claiming(folder: Path, **claim: Any) -> str:
    """A plain folder whose config says that it is quantised."""
    name = folder_of(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": claim}))
    return name


@pytest.mark.parametrize("method", ["compressed-tensors", "mxfp4", "bitnet", "of-tomorrow"])
def test_a_kind_that_would_be_widened_is_refused_by_name(tmp_path: Path, method: str) -> None:
    with pytest.raises(UsageError, match=f"quantised by {method}"):
        loaded(claiming(tmp_path, quant_method=method), "none")


@pytest.mark.parametrize(
    ("claim", "library"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao"}, "torchao"),
    ],
)
def test_a_missing_library_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: dict[str, Any], library: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda name: None if name == library else find(name))
    with pytest.raises(EnvironmentFailed, match=f"needs {library}, which is not installed") as caught:
        loaded(claiming(tmp_path, **claim), "none")
    assert "pip install" in caught.value.try_


def test_8_bit_floats_without_a_gpu_are_refused_before_transformers_widens_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"capability 8\.9"):
        loaded(claiming(tmp_path, quant_method="fp8", activation_scheme="dynamic"), "none")


@pytest.mark.parametrize(
    ("carried", "name", "note"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq-4bit", "without CUDA graphs"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes-4bit", "without CUDA graphs"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes-8bit", "outlier"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}},
            "torchao Int8DynamicActivationInt8Weight",
            "rounds the input",
        ),
    ],
)
def test_checkpoints_are_named_and_say_what_their_rows_must(carried: dict[str, Any], name: str, note: str) -> None:
    scheme = prequantised._named(carried)
    assert scheme.name == name and any(note in each for each in scheme.notes)


@needs_bitsandbytes
def test_an_8_bit_checkpoint_loses_the_outlier_columns_that_tokens_share(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    plain = folder_of(tmp_path / "plain", dtype=torch.bfloat16)
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "8bit")
    lm = loaded(str(tmp_path / "8bit"), "none", torch.bfloat16)
    assert lm.quantisation == "bitsandbytes-8bit" and not lm.is_capturable
    ids = tokens_of(7, 24)
    assert torch.equal(plain_logits(lm, ids)[:8], plain_logits(lm, ids[:8]))
