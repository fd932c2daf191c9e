"""EAGLE-1's layout, read from a synthetic checkpoint, drafts what a small independent numpy forward says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig

from methods.ctc.architecture import Architecture
from methods.ctc.drafter import make
from methods.ctc.layouts import LAYOUTS
from methods.ctc.module import CtcNetwork
from specbench import registry
from specbench.errors import UsageError
from specbench.tree import paths
from tests.helpers import VOCAB
from tests.methods.ctc_features import Walk, drafting, recipe_of, small_lm, view_of

Array = NDArray[np.float64]
WIDTH, INNER, HEADS = 32, 40, 4


def _files(*, kv_heads: int, bias: bool, seed: int = 0) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    kv = kv_heads * WIDTH // HEADS
    shapes = {
        "embed_tokens.weight": (VOCAB, WIDTH),
        "fc.weight": (WIDTH, 2 * WIDTH),
        "layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
        "layers.0.self_attn.k_proj.weight": (kv, WIDTH),
        "layers.0.self_attn.v_proj.weight": (kv, WIDTH),
        "layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
        "layers.0.mlp.gate_proj.weight": (INNER, WIDTH),
        "layers.0.mlp.up_proj.weight": (INNER, WIDTH),
        "layers.0.mlp.down_proj.weight": (WIDTH, INNER),
        "layers.0.post_attention_layernorm.weight": (WIDTH,),
    }
    if bias:
        shapes["fc.bias"] = (WIDTH,)
    tensors = {name: torch.from_numpy(0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "bias": bias,
    }
    return config, tensors


class _Numpy:
    """One EAGLE layer over a whole sequence, written from the equations."""

    def __init__(self, tensors: dict[str, torch.Tensor], kv_heads: int) -> None:
        self._w = {name: each.numpy() for name, each in tensors.items()}
        self._kv_heads = kv_heads

    def states(self, embedded: Array, hidden: Array) -> Array:
        w = self._w
        z = np.concatenate([embedded, hidden], 1) @ w["fc.weight"].T
        if "fc.bias" in w:
            z = z + w["fc.bias"]
        length, size = z.shape[0], WIDTH // HEADS
        heads = {kind: (z @ w[f"layers.0.self_attn.{kind}_proj.weight"].T).reshape(length, -1, size) for kind in "qkv"}
        mixed = np.zeros((length, HEADS, size))
        for head in range(HEADS):
            kv = head // (HEADS // self._kv_heads)
            for i in range(length):
                query = self._turned(heads["q"][i, head], i)
                scores = np.array([query @ self._turned(heads["k"][j, kv], j) for j in range(i + 1)]) / size**0.5
                weights = np.exp(scores - scores.max())
                mixed[i, head] = (weights / weights.sum()) @ heads["v"][: i + 1, kv]
        r = z + mixed.reshape(length, -1) @ w["layers.0.self_attn.o_proj.weight"].T
        normed = r / np.sqrt((r**2).mean(1, keepdims=True) + 1e-5) * w["layers.0.post_attention_layernorm.weight"]
        gate = normed @ w["layers.0.mlp.gate_proj.weight"].T
        up = normed @ w["layers.0.mlp.up_proj.weight"].T
        return r + (gate / (1 + np.exp(-gate)) * up) @ w["layers.0.mlp.down_proj.weight"].T

    @staticmethod
    def _turned(x: Array, position: int) -> Array:
        half = len(x) // 2
        angle = position * 10000.0 ** (-np.arange(half) / half)
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


@pytest.mark.parametrize(("kv_heads", "bias", "layout"), [(4, True, "ctc"), (2, False, "eagle"), (1, True, "eagle")])
@torch.no_grad()
def test_an_imported_checkpoint_drafts_what_numpy_says(kv_heads: int, bias: bool, layout: str) -> None:
    """Every node of a tree three deep: log q of the node given its parent, the drafter's own states fed back."""
    view = view_of(small_lm())
    config, tensors = _files(kv_heads=kv_heads, bias=bias)
    read = LAYOUTS[layout].read(config, tensors)
    assert any("embed_tokens" in note for note in read.notes)
    network = CtcNetwork(Architecture.read(read.architecture, where="test")).double()
    network.load_state_dict(read.state)
    drafter = make(network, view, drafting(num_tokens=3, beams=3, max_nodes=7))
    walk = Walk(drafter, [4, 7], seed=3)
    walk.commit(3)
    tree = drafter.draft(None)
    reference = _Numpy(tensors, kv_heads)
    head = view.lm_head.weight.detach().numpy()
    assert tree.score_BN is not None
    for row in range(2):
        tokens, parents = tree.tokens_BN[row].tolist(), tree.parents_BN[row].tolist()
        for node, path in enumerate(paths(tokens, parents)):
            said, hidden = walk.tokens[row][1:].tolist(), walk.states[row].numpy()
            for token in path:
                state = reference.states(view.embed_tokens(torch.tensor(said)).detach().numpy(), hidden)[-1]
                logits = head @ state
                score = logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                said, hidden = [*said, token], np.concatenate([hidden, state[None]])
            assert float(tree.score_BN[row, node]) == pytest.approx(score, abs=1e-5)
    assert max(len(path) for path in paths(tokens, parents)) == 3


@pytest.mark.parametrize(("fc_bias", "layout"), [(True, "ctc"), (False, "eagle"), (False, "ctc")])
def test_written_and_read_again_is_the_same(fc_bias: bool, layout: str) -> None:
    recipe = recipe_of(view_of(small_lm()), form="eagle", fc_bias=fc_bias, kv_heads=2)
    state = recipe.module.state_dict()
    written = LAYOUTS[layout].write(recipe.architecture, state, target={})
    read = LAYOUTS[layout].read(written.config, written.tensors)
    assert read.architecture == recipe.architecture and read.notes == ()
    assert all(torch.equal(read.state[name], state[name]) for name in state) and set(read.state) == set(state)
    assert (read.hidden_size, read.vocab_size) == (WIDTH, VOCAB)


@pytest.mark.parametrize(
    ("changed", "layout", "said"),
    [
        ({}, "ctc", "parallel frames"),
        ({"form": "eagle", "module": "linear"}, "ctc", "linear map"),
        ({"form": "eagle", "vocabulary": 20}, "ctc", "trimmed"),
        ({"form": "eagle"}, "eagle", "a bias of fc"),
    ],
    ids=str,
)
def test_what_a_layout_has_no_place_for_is_refused(changed: dict[str, Any], layout: str, said: str) -> None:
    recipe = recipe_of(view_of(small_lm()), **changed)
    with pytest.raises(UsageError, match=said):
        LAYOUTS[layout].write(recipe.architecture, recipe.module.state_dict(), target={})


def test_missing_unknown_and_misshapen_tensors_are_listed_together() -> None:
    config, tensors = _files(kv_heads=2, bias=True)
    del tensors["layers.0.self_attn.o_proj.weight"]
    tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(1)
    tensors["fc.weight"] = torch.zeros(3, 3)
    with pytest.raises(UsageError) as raised:
        LAYOUTS["eagle"].read(config, tensors)
    for fault in ("missing layers.0.self_attn.o_proj", "unknown layers.1.mlp.up_proj", "fc.weight is (3, 3)"):
        assert fault in raised.value.what


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 2}, "2 layers"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_parameters .*llama3"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta 10000 and 500000"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 16}, "head_dim 16, but 4 heads of a width of 32 have 8 columns"),
        ({"bias": False}, "hold fc.bias"),
    ],
    ids=str,
)
def test_a_config_of_another_drafter_is_refused(fact: dict[str, Any], said: str) -> None:
    config, tensors = _files(kv_heads=2, bias=True)
    with pytest.raises(UsageError, match=said):
        LAYOUTS["ctc"].read({**config, **fact}, tensors)


@pytest.mark.parametrize("version", ["this one's", "4's"])
def test_the_rotary_base_is_read_from_a_config_as_transformers_writes_it(version: str) -> None:
    config, tensors = _files(kv_heads=2, bias=True)
    llama = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=VOCAB,
        head_dim=WIDTH // HEADS,
        rope_theta=500000.0,
    )
    written = json.loads(llama.to_json_string())
    if version == "4's":
        written = {**config, "rope_theta": 500000.0, "rope_scaling": None, "hidden_act": "silu"}
    assert LAYOUTS["eagle"].read(written, tensors).architecture["rope_theta"] == 500000.0
    assert LAYOUTS["eagle"].read(config, tensors).architecture["rope_theta"] == 10000.0


def test_layouts_are_found_by_name() -> None:
    assert set(registry.load_layouts("ctc")) == {"eagle", "ctc"}
    assert "num_speculative_tokens" in LAYOUTS["eagle"].serving("DIR", target="T", num_tokens=3)
    assert LAYOUTS["ctc"].serving("DIR", target="T", num_tokens=3) == ""
