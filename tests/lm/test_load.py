"""What is loaded, what is refused, and with which words: models as folders on disk, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm import attention, kernel_check, load
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import PROVEN, load_lm, pick_attention, pick_device, pick_dtype, refuse_unsupported
from specbench.lm.self_check import largest_deviation
from tests.helpers import CPU, FAMILIES, tiny_config, tiny_lm, tiny_model


def _save(model: Any, folder: Path) -> str:
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    return str(folder)


def _tiny_folder(folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, **overrides: Any) -> str:
    return _save(tiny_model(family, dtype=dtype, attention_name="eager", **overrides), folder)


def _load(name: str, *, dtype: torch.dtype = torch.float32, attention_name: str = "auto") -> CachedLM:
    return load_lm(name, device=CPU, dtype=dtype, attention_name=attention_name)


def _config_folder(folder: Path, config: PretrainedConfig) -> str:
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    return str(folder)


# --- refused by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "overrides", "reason"),
    [
        ("mamba", {}, "cannot be rolled back"),
        ("mamba2", {}, "cannot be rolled back"),
        ("falcon_mamba", {}, "cannot be rolled back"),
        ("rwkv", {}, "cannot be rolled back"),
        ("jamba", {}, "cannot be rolled back"),
        ("recurrent_gemma", {}, "cannot be rolled back"),
        ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "cannot be rolled back"),
        ("qwen3_next", {}, "cannot be rolled back"),
        ("t5", {}, "encoder-decoder"),
        ("bart", {}, "encoder-decoder"),
        ("llama4_text", {}, "chunked attention"),
        ("deepseek_v32", {}, "chooses which tokens to attend"),
        ("falcon", {}, "attention interface"),
        ("bloom", {}, "attention interface"),
        ("gptj", {}, "attention interface"),
        ("musicgen", {}, "encoder-decoder"),
    ],
)
def test_what_cannot_be_verified_or_rolled_back_is_refused_by_name_and_reason(
    model_type: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        refuse_unsupported(CONFIG_MAPPING[model_type](**overrides), "some/model")
    assert "some/model" in caught.value.what and model_type in caught.value.what


def test_a_folder_of_such_a_model_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    name = _config_folder(tmp_path / "m", CONFIG_MAPPING["mamba"]())
    with pytest.raises(UsageError, match="recurrent state"):
        _load(name)


def test_bidirectional_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="not causal"):
        refuse_unsupported(tiny_config("gemma3", use_bidirectional_attention=True), "x")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_proven_family_is_accepted_and_is_called_proven(family: str) -> None:
    config = tiny_config(family)
    refuse_unsupported(config, family)
    assert config.model_type in PROVEN


# --- damaged and missing -------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="nowhere"):
        _load(str(tmp_path / "nowhere"))


def test_a_hub_id_that_is_not_here_says_what_to_do_offline() -> None:
    with pytest.raises(EnvironmentFailed, match="cannot fetch model 'no-such-org/no-such-model'") as caught:
        _load("no-such-org/no-such-model")
    assert "local folder" in caught.value.try_


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"config\.json"):
        _load(str(tmp_path))


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(EnvironmentFailed, match=r"config\.json"):
        _load(str(tmp_path))


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    """Unpickling runs code: the file must not even be opened."""
    name = _config_folder(tmp_path, tiny_config("llama"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(EnvironmentFailed, match=r"pickled weights \(pytorch_model\.bin\)") as caught:
        _load(name)
    assert "safe_serialization" in caught.value.try_


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"no \*\.safetensors"):
        _load(_config_folder(tmp_path, tiny_config("llama")))


@pytest.mark.parametrize("num_bytes", [0, 4, 500, 20_000])
def test_truncated_weights_are_an_environment_failure(tmp_path: Path, num_bytes: int) -> None:
    name = _tiny_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(EnvironmentFailed, match="cannot be read") as caught:
        _load(name)
    assert caught.value.where == str(tmp_path)


def test_a_missing_tensor_is_refused_instead_of_filled_with_random_numbers(tmp_path: Path) -> None:
    name = _tiny_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(EnvironmentFailed, match=r"lack 1 tensors.*layers\.1\.mlp\.down_proj"):
        _load(name)


def test_a_tensor_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    name = _tiny_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(EnvironmentFailed, match="cannot be read"):
        _load(name)


# --- names ---------------------------------------------------------------------------------------------------------


def test_a_wrong_dtype_or_attention_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="floot32") as caught:
        pick_dtype("floot32", CPU)
    assert "did you mean 'float32'" in caught.value.try_
    with pytest.raises(UsageError, match="plan") as caught:
        pick_attention("plan", device=CPU, dtype=torch.float32)
    assert "did you mean 'plain'" in caught.value.try_ and caught.value.where == "--attention"


def test_the_triton_kernel_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="runs on CUDA devices, not on cpu"):
        pick_attention("triton", device=CPU, dtype=torch.float32)
    with pytest.raises(UsageError, match="no float64"):
        pick_attention("triton", device=torch.device("cuda"), dtype=torch.float64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailed, match="not installed") as caught:
        pick_attention("triton", device=torch.device("cuda"), dtype=torch.bfloat16)
    assert caught.value.try_ == "pip install triton"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "mps:0", ""])
def test_a_word_that_is_no_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="is not a device"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_an_absent_cuda_device_is_an_error_and_never_the_cpu(name: str) -> None:
    with pytest.raises(EnvironmentFailed, match="no CUDA device"):
        pick_device(name)


def test_automatic_choices_on_a_cpu() -> None:
    assert pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("bf16", CPU) == torch.bfloat16
    assert pick_attention("auto", device=CPU, dtype=torch.float32) == (attention.SDPA, "")


def test_on_cuda_auto_is_the_kernel_where_it_proves_itself_and_sdpa_with_the_reason_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config, cuda = tiny_model().config, torch.device("cuda", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for why, name in (("", attention.TRITON), ("the Triton kernel is wrong here: 0.3 off", attention.SDPA)):
        monkeypatch.setattr(kernel_check, "why_wrong", lambda *_, why=why, **__: why)
        picked = pick_attention("auto", device=cuda, dtype=torch.bfloat16, config=config)
        assert picked.name == name and (why in picked.note if why else picked.note == "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    picked = pick_attention("auto", device=cuda, dtype=torch.bfloat16, config=config)
    assert picked.name == attention.SDPA and "Triton is not installed" in picked.note


def test_a_note_on_the_attention_reaches_the_target_s_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picked = load.PickedAttention(attention.SDPA, "attends through torch's SDPA: no kernel")
    monkeypatch.setattr(load, "pick_attention", lambda *_, **__: picked)
    assert _load(_tiny_folder(tmp_path)).notes == (picked.note,)


def test_a_target_on_another_card_makes_it_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches there, and graphs are captured there; tensors on cuda:1 would be read from cuda:0."""

    class Reached(Exception):
        pass

    def set_device(device: torch.device) -> None:
        raise Reached(str(device))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    with pytest.raises(Reached, match="cuda:1"):
        load_lm(_tiny_folder(tmp_path), device=torch.device("cuda", 1), dtype=torch.float32)


def test_on_cuda_attention_never_waits_for_a_plan_of_cudnn_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN would make one for every length of a prompt."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(load, "resolve_folder", _reached)
    was = torch.backends.cuda.cudnn_sdp_enabled()
    found = {}
    try:
        for device in (CPU, torch.device("cuda", 0)):
            torch.backends.cuda.enable_cudnn_sdp(True)
            with pytest.raises(LookupError, match="reached"):
                load_lm(_tiny_folder(tmp_path), device=device, dtype=torch.float32)
            found[device.type] = torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
    assert found == {"cpu": True, "cuda": False}


def _reached(name: str) -> Path:
    raise LookupError("reached")


# --- what is loaded ------------------------------------------------------------------------------------------------


def test_sixteen_bit_weights_are_computed_in_float32_on_a_cpu(tmp_path: Path) -> None:
    name = _tiny_folder(tmp_path, dtype=torch.float16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    lm = _load(name, dtype=pick_dtype("auto", CPU))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.float32}
    assert lm.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_run_in_float64(tmp_path: Path, family: str) -> None:
    """transformers' default for experts has no float64; exactness is demanded there."""
    lm = _load(_tiny_folder(tmp_path, family), dtype=torch.float64)
    assert largest_deviation(lm)[0] < 1e-6


def test_gemma_3_with_its_vision_tower_is_served_as_text(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = CONFIG_MAPPING["gemma3"](
        text_config=tiny_config("gemma3").to_dict(), vision_config=vision, mm_tokens_per_image=4, image_token_index=60
    )
    torch.manual_seed(0)
    lm = _load(_save(AutoModelForCausalLM.from_config(config), tmp_path))
    assert largest_deviation(lm)[0] < 5e-6
    assert lm.context_length == 128


def test_tied_weights_are_counted_once_and_looked_up_rows_are_not_the_whole_table() -> None:
    """Worked by hand: V = 64, H = 32, 2 layers.

    A layer: q 32x32, k and v 16x32 each, o 32x32, three mlp matrices of 48x32, two norms of 32 = 7744 numbers; final
    norm 32. Untied, a token reads 2 layers, the norm, the head (64x32) and one row of the embedding; tied, the table
    is the
    head.
    """
    body = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32 + 2 * 32) + 32
    untied = tiny_lm("llama", dtype=torch.float32, tie_word_embeddings=False)
    tied = tiny_lm("llama", dtype=torch.float32, tie_word_embeddings=True)
    assert untied.num_parameters() == body + 2 * 64 * 32
    assert tied.num_parameters() == body + 64 * 32
    assert untied.weight_bytes_per_token() == 4 * (body + 64 * 32 + 32)
    assert tied.weight_bytes_per_token() == 4 * (body + 64 * 32)
    assert tiny_lm("llama", dtype=torch.float64).weight_bytes_per_token() == 2 * untied.weight_bytes_per_token()


def test_position_tables_and_idle_experts_are_not_read_by_a_token() -> None:
    gpt2 = tiny_lm("gpt2", dtype=torch.float32)
    assert gpt2.weight_bytes_per_token() == 4 * (gpt2.num_parameters() - (128 - 1) * 32)
    mixtral = tiny_lm("mixtral", dtype=torch.float32)
    experts = 2 * 4 * 3 * 48 * 32  # layers, experts, matrices
    assert mixtral.weight_bytes_per_token() == 4 * (mixtral.num_parameters() - experts // 2 - (64 - 1) * 32)
