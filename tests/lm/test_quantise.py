"""Quantised targets: what is counted, what they are judged by, what is refused. Real torchao on the CPU."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from specbench import tree as trees
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm import quantise
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.lm.quantised import is_quantised, num_values, plain_layer, quantised_layers, stored_bytes
from tests.helpers import CPU, plain_logits, tiny_model, tokens_of

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'specbench[quant]'"
)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install bitsandbytes"
)
WIDTHS = {"hidden_size": 64, "intermediate_size": 96}


def folder_of(folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, **overrides: Any) -> str:
    model = tiny_model(family, dtype=dtype, attention_name="eager", **{**WIDTHS, **overrides})
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    return str(folder)


def loaded(name: str, quantisation: str, dtype: torch.dtype = torch.float32) -> CachedLM:
    return load_lm(name, device=CPU, dtype=dtype, quantisation=quantisation)


def tree_logits(lm: CachedLM) -> tuple[Tensor, Tensor]:
    """A tree of six nodes behind 20 cached tokens: (ours, path by path)."""
    ids, tokens, parents = tokens_of(1, 21), [[5, 9, 6, 7, 8, 6]], [[-1, -1, 0, 1, 1, 3]]
    lm.allocate(max_batch=1, max_len=64, max_nodes=8)
    lm.begin(1)
    lm.prefill(0, torch.tensor(ids[:-1]))
    ours = lm.verify(torch.tensor(ids[-1:]), trees.from_lists(tokens, parents, device=CPU)).logits_BMV[0]
    paths = [[], *trees.paths(tokens[0], parents[0])]
    return ours, torch.stack([plain_logits(lm, ids + path)[-1] for path in paths])


# --- run on the CPU ------------------------------------------------------------------------------------------------


@needs_torchao
@pytest.mark.parametrize(
    ("quantisation", "dtype", "tolerance"),
    [("int8", torch.float32, 5e-6), ("fp8", torch.float32, 5e-6), ("fp8", torch.float64, 1e-6)],
)
def test_a_quantised_target_verifies_a_tree_as_its_own_path_by_path_forwards(
    tmp_path: Path, quantisation: str, dtype: torch.dtype, tolerance: float
) -> None:
    lm = loaded(folder_of(tmp_path), quantisation, dtype)
    assert lm.quantisation == quantisation and lm.is_capturable
    ours, expected = tree_logits(lm)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


@needs_torchao
@pytest.mark.parametrize("quantisation", ["int8", "fp8"])
def test_every_linear_layer_but_the_head_is_quantised_and_the_logits_move_a_little(
    tmp_path: Path, quantisation: str
) -> None:
    name = folder_of(tmp_path, attention_bias=True)
    lm, plain = loaded(name, quantisation), loaded(name, "none")
    linears = [each for each in lm.model.modules() if isinstance(each, nn.Linear)]
    assert {id(each) for each in quantised_layers(lm.model)} == {id(each) for each in linears} - {id(lm.lm_head)}
    assert torch.equal(lm.lm_head.weight, plain.lm_head.weight)
    ids = tokens_of(3, 12)
    difference = (plain_logits(lm, ids) - plain_logits(plain, ids)).abs().max()
    assert 0 < difference < 0.2 * plain_logits(plain, ids).abs().max()


@needs_torchao
def test_bytes_of_a_token_are_those_of_data_scales_and_zero_points(tmp_path: Path) -> None:
    """Counted by hand: two layers of q, o (64 x 64), k, v (32 x 64), gate, up (96 x 64) and down (64 x 96)."""
    lm = loaded(folder_of(tmp_path), "int8")
    rows = 64 + 64 + 32 + 32 + 96 + 96 + 64
    weights = (64 + 64 + 32 + 32 + 96 + 96) * 64 + 64 * 96
    quantised = 2 * (weights + rows * (4 + 1))  # int8, a float32 scale and an int8 zero point for every row
    head, norms, embedding = 64 * 64 * 4, (2 * 2 + 1) * 64 * 4, 64 * 4
    assert lm.weight_bytes_per_token() == quantised + head + norms + embedding
    assert loaded(str(tmp_path), "fp8").weight_bytes_per_token() == quantised - 2 * rows + head + norms + embedding
    plain = loaded(str(tmp_path), "none")
    assert plain.weight_bytes_per_token() == 2 * weights * 4 + head + norms + embedding
    assert lm.num_parameters() == plain.num_parameters()


@needs_torchao
@pytest.mark.parametrize("quantisation", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_judged_in_float32_by_the_dequantised_weights(
    tmp_path: Path, quantisation: str, dtype: torch.dtype
) -> None:
    """Against an independent truth: the plain model with torchao's own `dequantize()` put in its weights."""
    name = folder_of(tmp_path, attention_bias=True)
    lm = loaded(name, quantisation, dtype)
    expected = tiny_model(dtype=torch.float32, attention_name="eager", attention_bias=True, **WIDTHS)
    for (_, own), (_, other) in zip(lm.model.named_modules(), expected.named_modules(), strict=True):
        if isinstance(own, nn.Linear | nn.Embedding) and isinstance(other, nn.Linear | nn.Embedding):
            weight = own.weight.dequantize() if is_quantised(own) else own.weight
            other.weight.copy_(weight.float())
        bias = getattr(own, "bias", None)
        if isinstance(bias, Tensor):
            other.bias.copy_(bias.float())
    ids = tokens_of(5, 17)
    with torch.inference_mode():
        truth = expected(torch.tensor([ids])).logits[0, -1]
    found = lm.fresh_logits(ids, full_precision=True)
    assert found.dtype == torch.float32
    # bfloat16 scales are rounded as the run's own product rounds them; logits reach tens.
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found, truth, atol=tolerance, rtol=1e-3)
    # The target itself is as it was, quantised and with its biases.
    assert quantised_layers(lm.model) and lm.model.model.layers[0].self_attn.q_proj.bias is not None
    rough = lm.fresh_logits(ids, full_precision=False)
    assert rough.dtype == dtype
    torch.testing.assert_close(rough.float(), truth, atol=1.0 if dtype == torch.bfloat16 else 1e-4, rtol=0.1)


@needs_torchao
@pytest.mark.parametrize("quantisation", ["int8", "fp8"])
def test_a_quantised_target_can_be_copied_and_run_in_inference_mode(tmp_path: Path, quantisation: str) -> None:
    lm = loaded(folder_of(tmp_path), quantisation)
    same = CachedLM(copy.deepcopy(lm.model), name="copy")
    assert torch.equal(tree_logits(lm)[0], tree_logits(same)[0])


@needs_torchao
def test_laying_out_linears_leaves_quantised_weights_alone_and_lays_out_the_head(tmp_path: Path) -> None:
    """A quantised float32 weight calls itself float32 on a CPU, but has no order of ours."""
    lm = loaded(folder_of(tmp_path, tie_word_embeddings=True), "int8")
    assert all("forward" not in vars(each) and each.weight.qdata.is_contiguous() for each in quantised_layers(lm.model))
    assert ("forward" in vars(lm.lm_head)) == torch.backends.mkl.is_available()
    assert lm.lm_head.weight is lm.embed_tokens.weight


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchao and bitsandbytes were installed: refusals come before they are touched."""
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda _: object())


def check(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, is_split: bool = False) -> None:
    quantise.check_asked(name, device=torch.device(device), dtype=dtype, is_split=is_split, where="--quantisation")


@pytest.mark.usefixtures("with_libraries")
@pytest.mark.parametrize(
    ("name", "dtype", "said", "try_"),
    [
        ("int4", torch.float32, "no 4-bit product for CPUs", "--quantisation int8"),
        ("int8", torch.float64, "float64", "--dtype float32"),
        ("bnb-int4", torch.bfloat16, "4-bit product fails on CPUs", "--quantisation bnb-int8"),
        ("bnb-int8", torch.float32, "16 bits", "--dtype bfloat16"),
        ("int9", torch.float32, "'int9' is not a choice", "did you mean"),
    ],
)
def test_what_a_cpu_or_a_dtype_cannot_do_is_refused_with_what_to_type_instead(
    name: str, dtype: torch.dtype, said: str, try_: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        check(name, dtype=dtype)
    assert try_ in caught.value.try_ and "--quantisation" in caught.value.where


@pytest.mark.usefixtures("with_libraries")
@pytest.mark.parametrize(
    ("name", "capability", "dtype", "said"),
    [
        ("int4", (7, 5), torch.bfloat16, "capability 8.0, this one has 7.5"),
        ("int4", (9, 0), torch.float16, "bfloat16, not float16"),
        ("int4", (9, 0), torch.bfloat16, None),
        ("fp8", (8, 6), torch.bfloat16, "capability 8.9, this one has 8.6"),
        ("fp8", (8, 9), torch.bfloat16, None),
        ("int8", (7, 0), torch.float16, None),
        ("bnb-int4", (8, 0), torch.bfloat16, None),
    ],
)
def test_a_gpu_is_asked_for_its_capability(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], dtype: torch.dtype, said: str | None
) -> None:
    """Dispatch only: no GPU has run any of these."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if said is None:
        check(name, device="cuda:0", dtype=dtype)
    else:
        with pytest.raises(UsageError, match=said):
            check(name, device="cuda:0", dtype=dtype)


@pytest.mark.usefixtures("with_libraries")
def test_other_devices_and_split_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="no kernels here for mps"):
        check("int8", device="mps")
    with pytest.raises(UsageError, match="not split"):
        check("int8", is_split=True)


@pytest.mark.parametrize(("name", "install"), [("int8", "specbench[quant]"), ("bnb-int8", "bitsandbytes")])
def test_a_missing_library_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, install: str
) -> None:
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFailed, match="not installed") as caught:
        check(name, dtype=torch.bfloat16)
    assert install in caught.value.try_


@needs_torchao
@pytest.mark.parametrize(("family", "weight"), [("gpt2", "c_attn.weight"), ("mixtral", "mlp")])
def test_a_model_whose_weights_are_not_in_linear_layers_is_refused(tmp_path: Path, family: str, weight: str) -> None:
    """Half of it would stay as it is, under a quantised name."""
    widths = {} if family == "gpt2" else WIDTHS
    name = folder_of(tmp_path, family, **({"hidden_size": 32} | widths))
    with pytest.raises(UsageError, match="no linear layer's weight") as caught:
        loaded(name, "int8")
    assert weight in caught.value.what


def test_int4_takes_the_largest_group_that_divides_every_width() -> None:
    def group(*widths: int) -> int:
        return quantise._group_for([nn.Linear(width, 1) for width in widths], asked="--quantisation int4")

    assert (group(4096, 14336), group(4096, 11008 + 64), group(320, 864)) == (128, 64, 32)
    with pytest.raises(UsageError, match="divides layers 256, 688 wide"):
        group(256, 688)


@needs_torchao
def test_int4_is_asked_of_torchao_in_tiles_that_torch_multiplies_itself() -> None:
    """The layout whose kernel is in torch; never run here, where there is no GPU."""
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    config = quantise._torchao_config("int4", 64)
    assert isinstance(config, Int4WeightOnlyConfig) and config.group_size == 64
    assert config.int4_packing_format == Int4PackingFormat.TILE_PACKED_TO_4D


@needs_torchao
def test_int4_is_recorded_with_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch only, on a CPU: what would round to 4 bits rounds to 8 here."""
    import torchao.quantization

    right, asked = torchao.quantization.quantize_, []

    def rounds_to_8(model: nn.Module, config: Any, **how: Any) -> None:
        asked.append(config)
        right(model, torchao.quantization.Int8WeightOnlyConfig(set_inductor_config=False), **how)

    monkeypatch.setattr(torchao.quantization, "quantize_", rounds_to_8)
    model = tiny_model(dtype=torch.bfloat16, **WIDTHS)
    scheme = quantise.quantise(model, "int4", device=CPU, where="--quantisation")
    assert scheme.name == "int4-g32" and asked[0].group_size == 32 and len(quantised_layers(model)) == 14


# --- bitsandbytes --------------------------------------------------------------------------------------------------


@needs_bitsandbytes
def test_bitsandbytes_targets_run_eagerly_say_so_and_do_not_depend_on_what_stands_beside_a_token(
    tmp_path: Path,
) -> None:
    """Weights so large that the library's default threshold finds outlier columns, over all tokens together."""
    lm = loaded(folder_of(tmp_path, dtype=torch.bfloat16, scale=16.0), "bnb-int8", torch.bfloat16)
    assert not lm.is_capturable and any("without CUDA graphs" in note for note in lm.notes)
    ids = tokens_of(7, 24)
    # bfloat16 without a shared scale: the same numbers whatever follows.
    assert torch.equal(plain_logits(lm, ids)[:8], plain_logits(lm, ids[:8]))
    rows, weights = 64 + 64 + 32 + 32 + 96 + 96 + 64, (64 + 64 + 32 + 32 + 96 + 96) * 64 + 64 * 96
    plain = (64 * 64 + (2 * 2 + 1) * 64 + 64) * 2
    assert lm.weight_bytes_per_token() == 2 * (weights + rows * 4) + plain
    truth = lm.fresh_logits(ids, full_precision=True)
    assert truth.dtype == torch.float32
    torch.testing.assert_close(truth, plain_logits(lm, ids)[-1].float(), atol=1.5, rtol=0.1)


@needs_bitsandbytes
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_4_bit_layer_stands_for_the_weights_its_library_dequantises(has_bias: bool) -> None:
    """By its answers to unit vectors, against bitsandbytes' own `dequantize_4bit`. Made by hand: a 4-bit target is
    refused on CPUs."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    how: dict[str, Any] = {"compute_dtype": torch.float32, "compress_statistics": False, "quant_type": "nf4"}
    layer = Linear4bit(128, 64, bias=has_bias, **how).to("cpu").eval()
    truth = dequantize_4bit(layer.weight.data.clone(), copy.deepcopy(layer.weight.quant_state)).float()
    assert is_quantised(layer) and num_values(layer) == 128 * 64 + 64 * has_bias
    # Two weights a byte and one float32 scale for every 64 of them, 16 levels; the bias.
    assert stored_bytes(layer) == 128 * 64 // 2 + 128 * 64 // 64 * 4 + 16 * 4 + 64 * 4 * has_bias
    plain = plain_layer(layer, dtype=torch.float32, wide=torch.float32)
    torch.testing.assert_close(plain.weight.data, truth.view(64, 128), atol=0.01, rtol=0.01)
    assert (plain.bias is None) != has_bias and (layer.bias is None) != has_bias


@needs_bitsandbytes
def test_4_bits_are_nf4_in_the_runs_dtype() -> None:
    options = quantise.loading_options("bnb-int4", device=CPU, dtype=torch.float16)
    config = options["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.float16 and options["device_map"] == {"": CPU}
