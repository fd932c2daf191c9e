"""Arctic's files are read exactly: against a forward in numpy written from the equations, and back again bit by bit."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from methods.lstm.architecture import Architecture
from methods.lstm.layouts import LAYOUTS
from methods.lstm.module import make_speculator
from specbench.checkpoint import load_state, read_config, read_tensors
from specbench.errors import UsageError
from specbench.layouts import Read

VOCAB, HIDDEN = 11, 10
_GATES = ("forget", "input", "cell", "output")
Array = NDArray[np.float64]


def config_of(**changed: Any) -> dict[str, Any]:
    """As Arctic's training writes it, `base_model_archs` added by hand."""
    return {
        "architectures": ["ArcticLSTMSpeculatorPreTrainedModel"],
        "base_model_name_or_path": "some/target",
        "base_model_archs": ["LlamaForCausalLM"],
        "input_hidden_dim": HIDDEN,
        "inner_dim": "6",
        "proj_dim": "6",
        "emb_dim": "6",
        "model_type": "mlp_speculator",
        "n_candidates": 3,
        "n_predict": 3,
        "scale_input": True,
        "tie_weights": True,
        "tie_lstm_embs": True,
        "top_k_tokens_per_head": [1, 1, 1],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50",
        "vocab_size": VOCAB,
        "method": "sum_lstm",
        **changed,
    }


def tensors_of(config: dict[str, Any], *, seed: int = 0, copies: bool = True) -> dict[str, Tensor]:
    """A file of that layout with random numbers; copies: tied tensors under all of their names, as training saves."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inner = [int(width) for width in config["inner_dim"].split(".")]
    emb = [int(width) for width in config["emb_dim"].split(".")]
    proj = [int(width) for width in config["proj_dim"].split(".")]
    num, is_tied, width = config["n_predict"], config["tie_weights"], inner[0]
    tensors: dict[str, Tensor] = {}
    head = new(VOCAB, inner[-1])
    for depth in range(num if copies or not is_tied else 1):
        tensors[f"head.{depth}.weight"] = head.clone() if is_tied else new(VOCAB, inner[-1])
    if config["method"] == "sum_lstm":
        table = new(VOCAB, width)
        for gate in _GATES:
            if gate == "forget" or copies or not config["tie_lstm_embs"]:
                tensors[f"{gate}_emb.0.weight"] = table.clone() if config["tie_lstm_embs"] else new(VOCAB, width)
            tensors[f"{gate}_proj.0.weight"] = new(width, HIDDEN)
            tensors[f"{gate}_proj.1.weight"] = new(width, width)
        for norm in ("cell_ln", "state_ln"):
            tensors |= {f"{norm}.0.weight": new(width), f"{norm}.0.bias": new(width)}
        return tensors
    for place in range(1 if is_tied else num):
        tensors[f"emb.{place}.0.weight"] = new(VOCAB, emb[0])
        tensors |= {f"ln.{place}.0.weight": new(inner[0]), f"ln.{place}.0.bias": new(inner[0])}
        for stage, (wide, narrow) in enumerate(pairwise(inner)):
            tensors[f"ln.{place}.{3 * stage + 2}.weight"] = new(narrow, wide)
            tensors |= {f"ln.{place}.{3 * stage + 3}.{part}": new(narrow) for part in ("weight", "bias")}
        _stages(tensors, f"emb.{place}", emb, new)
    for place in range(min(num, 2) if is_tied else num):
        tensors[f"proj.{place}.0.weight"] = new(proj[0], inner[-1] if place else HIDDEN)
        _stages(tensors, f"proj.{place}", proj, new)
    return tensors


def _stages(tensors: dict[str, Tensor], name: str, widths: list[int], new: Any) -> None:
    for stage, (wide, narrow) in enumerate(pairwise(widths)):
        tensors |= {f"{name}.{3 * stage + 1}.{part}": new(wide) for part in ("weight", "bias")}
        tensors[f"{name}.{3 * stage + 3}.weight"] = new(narrow, wide)


# --- the forward in numpy --------------------------------------------------------------------------------------------


def _gelu(x: Array) -> Array:
    erf: Array = np.vectorize(math.erf)(x / math.sqrt(2))
    return 0.5 * x * (1 + erf)


def _sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out


def _norm(x: Array, weight: Array | float, bias: Array | float) -> Array:
    out: Array = weight * x / np.sqrt(np.mean(x * x) + 1e-6) + bias
    return out


def numpy_logits(config: dict[str, Any], tensors: dict[str, Tensor], hidden: Array, tokens: list[int]) -> list[Array]:
    """Logits of every depth for one root and what follows it: one vector at a time, float64."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    num, is_tied = config["n_predict"], config["tie_weights"]
    state_weight = 2 ** (-1 / (2 * num))
    width = int(config["emb_dim"].split(".")[-1])
    a = math.sqrt((1 - state_weight**2) * width / 2) / state_weight
    state = _norm(hidden, 1.0, 0.0) / math.sqrt(2) if config["scale_input"] else hidden
    cell: Array = np.zeros(width)
    out = []
    for depth, token in enumerate(tokens):
        if config["method"] == "sum_lstm":
            k = min(depth, 1)
            u = {
                gate: w[f"{gate}_proj.{k}.weight"] @ state
                + a * w[f"{'forget' if config['tie_lstm_embs'] else gate}_emb.0.weight"][token]
                for gate in _GATES
            }
            candidate = _gelu(_norm(u["cell"], w["cell_ln.0.weight"], w["cell_ln.0.bias"]))
            cell = _sigmoid(u["forget"]) * cell + _sigmoid(u["input"]) * candidate
            state = _sigmoid(u["output"]) * _gelu(_norm(cell, w["state_ln.0.weight"], w["state_ln.0.bias"]))
        else:
            k, p = (0, min(depth, 1)) if is_tied else (depth, depth)
            z = _narrow(w, f"emb.{k}", w[f"emb.{k}.0.weight"][token])
            x = _narrow(w, f"proj.{p}", w[f"proj.{p}.0.weight"] @ state) + a * z
            x = _norm(x, w[f"ln.{k}.0.weight"], w[f"ln.{k}.0.bias"])
            place = 2
            while f"ln.{k}.{place}.weight" in w:
                x = w[f"ln.{k}.{place}.weight"] @ _gelu(x)
                x = _norm(x, w[f"ln.{k}.{place + 1}.weight"], w[f"ln.{k}.{place + 1}.bias"])
                place += 3
            state = _gelu(x)
        out.append(w[f"head.{0 if is_tied else depth}.weight"] @ state)
    return out


def _narrow(w: dict[str, Array], name: str, x: Array) -> Array:
    place = 1
    while f"{name}.{place}.weight" in w:
        x = w[f"{name}.{place + 2}.weight"] @ _gelu(_norm(x, w[f"{name}.{place}.weight"], w[f"{name}.{place}.bias"]))
        place += 3
    return x


def _our_logits(read: Read, hidden: Tensor, tokens: list[int]) -> list[Tensor]:
    network = make_speculator(Architecture.from_dict(read.architecture))
    load_state(network, read.state, folder=Path("synthetic"))
    state, out = network.start(hidden[None]), []
    with torch.no_grad():
        for depth, token in enumerate(tokens):
            state = network.step(depth, torch.tensor([token]), state)
            out.append(network.logits(depth, state)[0])
    return out


# --- reading ---------------------------------------------------------------------------------------------------------

RNN: dict[str, Any] = {"method": "sum_rnn", "tie_lstm_embs": False}
CONFIGS = {
    "as published": config_of(),
    "untied gates": config_of(tie_lstm_embs=False),
    "unscaled": config_of(scale_input=False),
    "one width with the target": config_of(inner_dim="10", proj_dim="10", emb_dim="10"),
    "two heads": config_of(n_predict=2, n_candidates=2, top_k_tokens_per_head=[1, 1]),
    "rnn tied": config_of(**RNN),
    "rnn untied": config_of(**RNN, tie_weights=False, scale_input=False),
    "rnn stages": config_of(**RNN, inner_dim="6.8", proj_dim="6.6", emb_dim="6.6.6"),
    "rnn stages untied": config_of(**RNN, inner_dim="6.8.4", proj_dim="6.6", tie_weights=False),
}


@pytest.mark.parametrize("prefix", ["", "speculator."])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_imported_file_computes_what_the_equations_say(name: str, prefix: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    tensors = tensors_of(config, copies=not prefix)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "model.safetensors")
    read = LAYOUTS["arctic"].read(read_config(tmp_path), read_tensors(tmp_path))
    tokens = [3, 7, 3, 0, 10][: config["n_predict"] + (2 if config["tie_weights"] else 0)]
    hidden = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    wanted = numpy_logits(config, tensors, hidden.double().numpy(), tokens)
    for ours, theirs in zip(_our_logits(read, hidden, tokens), wanted, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)
    assert (read.hidden_size, read.vocab_size) == (HIDDEN, VOCAB)


def test_fused_projections_are_read_as_four() -> None:
    config = config_of()
    tensors = tensors_of(config, copies=False)
    rows = ("forget", "input", "output", "cell")
    fused = {name: tensor for name, tensor in tensors.items() if "_proj" not in name}
    fused |= {f"projs.{k}.weight": torch.cat([tensors[f"{gate}_proj.{k}.weight"] for gate in rows]) for k in (0, 1)}
    split, joined = LAYOUTS["arctic"].read(config, tensors), LAYOUTS["arctic"].read(config, fused)
    assert split.architecture == joined.architecture
    assert all(torch.equal(split.state[name], joined.state[name]) for name in split.state)


def test_an_mlp_speculators_file_is_read_with_its_own_names_and_config() -> None:
    """Its emb_dim is the target's width; every tied part is saved once per depth; names have no stage."""
    staged = tensors_of(config_of(**RNN, n_predict=3))
    mlp = {}
    for depth in range(3):
        mlp[f"speculator.emb.{depth}.weight"] = staged["emb.0.0.weight"]
        mlp[f"speculator.proj.{depth}.weight"] = staged[f"proj.{min(depth, 1)}.0.weight"]
        mlp |= {f"speculator.ln.{depth}.{part}": staged[f"ln.0.0.{part}"] for part in ("weight", "bias")}
        mlp[f"speculator.head.{depth}.weight"] = staged["head.0.weight"]
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"], "emb_dim": HIDDEN, "inner_dim": 6, "n_predict": 3,
        "vocab_size": VOCAB, "tie_weights": True, "scale_input": True,
    }  # fmt: skip
    read = LAYOUTS["mlp"].read(config, mlp)
    wanted = LAYOUTS["arctic"].read(config_of(**RNN), staged)
    assert {name: read.architecture[name] for name in ("inner_dim", "emb_dim", "hidden_size")} == {
        "inner_dim": [6], "emb_dim": [6], "hidden_size": HIDDEN,
    }  # fmt: skip
    assert read.state.keys() == wanted.state.keys()
    assert all(torch.equal(read.state[name], wanted.state[name]) for name in wanted.state)
    assert read.notes == ("9 tied copies left out, each equal to its twin",)


@pytest.mark.parametrize("name", CONFIGS)
def test_export_and_import_give_back_the_same_bits(name: str) -> None:
    config = CONFIGS[name]
    layout = LAYOUTS["arctic"]
    tensors = {key: tensor.bfloat16() for key, tensor in tensors_of(config, copies=False).items()}
    read = layout.read(config, tensors)
    written = layout.write(read.architecture, read.state, target={"name": "some/target"})
    assert written.tensors.keys() == tensors.keys()
    assert all(torch.equal(written.tensors[key], tensors[key]) for key in tensors)
    assert {key: value for key, value in config.items() if key != "transformers_version"} == {
        key: value for key, value in written.config.items() if key != "base_model_arch"
    }
    assert written.config["base_model_arch"] == "LlamaForCausalLM"
    again = layout.read(written.config, written.tensors)
    assert again.architecture == read.architecture
    assert all(torch.equal(again.state[key], read.state[key]) for key in read.state)


def test_an_mlp_export_reads_back_as_the_same_drafter() -> None:
    read = LAYOUTS["arctic"].read(config_of(**RNN), tensors_of(config_of(**RNN)))
    written = LAYOUTS["mlp"].write(read.architecture, read.state, target={"name": "some/target"})
    assert set(written.tensors) == {
        "emb.0.weight", "proj.0.weight", "proj.1.weight", "ln.0.weight", "ln.0.bias", "head.0.weight",
    }  # fmt: skip
    again = LAYOUTS["mlp"].read(written.config, written.tensors)
    assert again.architecture == read.architecture
    assert all(torch.equal(again.state[key], read.state[key]) for key in read.state)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_every_missing_unknown_misshapen_and_unequal_tensor_is_listed() -> None:
    tensors = tensors_of(config_of())
    del tensors["state_ln.0.bias"]
    tensors["emb_norm.weight"] = torch.zeros(3)
    tensors["output_proj.1.weight"] = torch.zeros(6, 7)
    tensors["head.2.weight"][0, 0] += 1
    tensors["cell_emb.0.weight"][0, 0] += 1
    with pytest.raises(UsageError) as caught:
        LAYOUTS["arctic"].read(config_of(), tensors)
    for fault in (
        "missing state_ln.0.bias",
        "unknown emb_norm.weight",
        "output_proj.1.weight is (6, 7), not (6, 6)",
        "head.2.weight differs from head.0.weight",
        "cell_emb.0.weight differs from forget_emb.0.weight",
    ):
        assert fault in caught.value.what


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["EagleModel"]}, "no speculator of this kind"),
        ({"method": "sum_gru"}, "neither sum_lstm nor sum_rnn"),
        ({"n_predict": None}, "cannot be read"),
        ({"inner_dim": "6.x"}, "no width"),
        ({"tie_weights": False}, "one set of weights"),
        ({"emb_dim": "8"}, "emb_dim ends with width 8"),
        ({"inner_dim": "6.8"}, "no further stages"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LAYOUTS["arctic"].read(config_of(**changed), tensors_of(config_of()))


def test_what_the_layout_cannot_say_is_refused_by_name() -> None:
    read = LAYOUTS["arctic"].read(config_of(), tensors_of(config_of()))
    borrowed = read.architecture | {"embedding": "target", "head": "target", "trimmed": 4}
    with pytest.raises(UsageError) as caught:
        LAYOUTS["arctic"].write(borrowed, read.state, target={})
    assert all(word in caught.value.what for word in ("embedding", "head", "4 of 11 tokens"))
    with pytest.raises(UsageError, match="sum_lstm"):
        LAYOUTS["mlp"].write(read.architecture, read.state, target={})
    uneven = LAYOUTS["arctic"].read(config_of(**RNN), tensors_of(config_of(**RNN))).architecture
    with pytest.raises(UsageError, match="differ in width"):
        LAYOUTS["arctic"].write(uneven | {"proj_dim": [8, 6]}, {}, target={})


def test_a_factored_table_is_multiplied_out_on_export() -> None:
    arch = LAYOUTS["arctic"].read(config_of(), tensors_of(config_of())).architecture
    factored = Architecture.from_dict(arch | {"embedding": "factored", "embedding_rank": 4})
    network = make_speculator(factored)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.reset_parameters()
    written = LAYOUTS["arctic"].write(factored.as_dict(), network.state_dict(), target={"name": "t"})
    whole = LAYOUTS["arctic"].read(written.config, written.tensors)
    hidden = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    plain = make_speculator(Architecture.from_dict(whole.architecture))
    load_state(plain, whole.state, folder=Path("written"))
    with torch.no_grad():
        ours = network.step(0, torch.tensor([5]), network.start(hidden[None])).hidden_ND
        theirs = plain.step(0, torch.tensor([5]), plain.start(hidden[None])).hidden_ND
    torch.testing.assert_close(ours, theirs)


def test_the_serving_line_names_the_drafter_and_is_empty_where_no_engine_runs_it(tmp_path: Path) -> None:
    line = LAYOUTS["arctic"].serving("a folder", target="some/target", num_tokens=3)
    assert '"method": "arctic"' in line and '"num_speculative_tokens": 3' in line and '"model": "a folder"' in line
    (tmp_path / "config.json").write_text(json.dumps(config_of(tie_lstm_embs=False)))
    assert LAYOUTS["arctic"].serving(str(tmp_path), target="some/target", num_tokens=3) == ""
