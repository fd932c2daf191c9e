"""A target and a draft of its own first layers that disagree as often as is wanted, and no rounding decides where.

The layers of a random model agree or disagree by chance, and in 16 bits their closest logits change places with every
shape of a forward: two programs then write two texts, and their acceptance differs by chance alone. Here every token
has one successor that is read off its embedding, which the first layers leave as it is. Some tokens also have a second
one: the first of the skipped layers has a neuron that fires for them and turns the state towards it. How strongly it
fires is one of two levels, a factor of four apart, so that scaling the skipped layers' output projections decides how
many of the levels change the target's mind, each by twice what is needed for it, or by half of that. Shapes, and so the
work, are those of the published model.

V vocabulary, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LEVELS = 2
"""More of them would not do: at a scale that moves the lowest, the highest would drown what tells its rows apart."""
SHARE = 0.1
"""Of the vocabulary, at each level. One in ten refused makes 0.74 of five drafted tokens right, two in ten 0.54."""
STEP = 4.0
"""From one level to the next, and from one scale to the next: a power of two, so that scaling rounds nothing."""
STRONGEST = 0.5
"""Of the squared norm of an embedding, at the highest level, what lies along the neuron's direction."""
SECOND = 0.6
"""Logit of the second successor before it is turned to, of the first one's."""
ENOUGH = STRONGEST / 2
"""Strength that just turns the target's mind at the last scale at which any does: half-way below the strongest."""
SIZE = 100.0
"""Standard deviation of embeddings: far above what any random layer adds."""
LOWEST, HIGHEST = 0.6, 0.9
"""Acceptance that is asked for: of the drafted tokens those that were accepted."""


def give_second_thoughts(model: PreTrainedModel, *, num_layers: int) -> None:
    """Change embeddings, head (its own, not tied) and one neuron of layer `num_layers`, the first a draft leaves out.
    All levels change the target's mind; `scale_skipped` takes the lowest away one by one."""
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert isinstance(embeddings, Tensor) and isinstance(head, Tensor) and embeddings is not head
    (num, width), device = embeddings.shape, embeddings.device
    norm = SIZE * width**0.5
    with torch.no_grad():
        axes, _ = torch.linalg.qr(torch.randn(width, 2, device=device))
        fires, turns = axes.unbind(1)
        base_VD = embeddings.float()
        base_VD -= (base_VD @ axes) @ axes.T
        base_VD *= norm / base_VD.norm(dim=1, keepdim=True)

        order, per_level = torch.randperm(num, device=device), int(num * SHARE)
        strength_V = torch.zeros(num, device=device)
        for level in range(LEVELS):
            strength_V[order[level * per_level : (level + 1) * per_level]] = STRONGEST / STEP**level
        along_V = (strength_V / (1 - strength_V)).sqrt() * norm
        embeddings.copy_(base_VD + along_V[:, None] * fires)

        # One round through the whole vocabulary, so that no text runs in a small circle.
        round_V = torch.randperm(num, device=device)
        first_V = torch.empty_like(round_V)
        first_V[round_V] = round_V.roll(-1)
        before_V = torch.empty_like(round_V)
        before_V[first_V] = torch.arange(num, device=device)
        undecided_A = order[: LEVELS * per_level]
        # Tokens that nothing undecided comes to first: a row cannot stand for both thoughts of one token.
        is_free_V = torch.ones(num, dtype=torch.bool, device=device)
        is_free_V[first_V[undecided_A]] = False
        second_A = is_free_V.nonzero()[:, 0]
        second_A = second_A[torch.randperm(len(second_A), device=device)][: len(undecided_A)]
        rows_VD = base_VD[before_V]
        own_AD = base_VD[undecided_A]
        rows_AD = rows_VD[second_A]
        rows_AD -= ((rows_AD * own_AD).sum(1, keepdim=True) / norm**2) * own_AD
        rows_VD[second_A] = rows_AD + SECOND * own_AD + norm * turns
        head.copy_(rows_VD * 1e-3)

        _set_neuron(model, num_layers, fires, turns * norm * STEP ** (LEVELS - 1))


def _set_neuron(model: PreTrainedModel, index: int, fires: Tensor, writes: Tensor) -> None:
    """Neuron 0 of a layer: a strength s along `fires` adds s / ENOUGH * (1 - SECOND) * writes."""
    layer: Any = model.get_decoder().layers[index]
    width, gain = fires.shape[0], 16.0
    layer.mlp.gate_proj.weight[0] = fires * gain
    layer.mlp.up_proj.weight[0] = fires
    # The norm in front makes a squared component of s * width of strength s, and silu(x) is x where it fires.
    layer.mlp.down_proj.weight[:, 0] = writes * (1 - SECOND) / (ENOUGH * gain * width)


def cut_after(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A draft model of the target's first layers, its final norm and its head, all shared."""
    decoder: Any = model.get_decoder()
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    with torch.device("meta"):
        draft: PreTrainedModel = type(model)(config)
    shared: Any = draft.get_decoder()
    shared.embed_tokens, shared.norm = decoder.embed_tokens, decoder.norm
    shared.layers = nn.ModuleList(decoder.layers[:num_layers])
    shared.rotary_emb = decoder.rotary_emb
    draft.set_output_embeddings(model.get_output_embeddings())
    return draft.eval()


def scale_skipped(model: PreTrainedModel, num_layers: int, factor: float) -> None:
    """Multiply the output projections of all layers from `num_layers` on, in place."""
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        for layer in decoder.layers[num_layers:]:
            layer.self_attn.o_proj.weight.mul_(factor)
            layer.mlp.down_proj.weight.mul_(factor)


def calibrate(model: PreTrainedModel, num_layers: int, *, acceptance: Callable[[], float]) -> float:
    """Scale the skipped layers down until the acceptance that is measured lies where it is asked for -> the scale.
    Raises RuntimeError where no scale does it."""
    scale, seen = 1.0, []
    for _ in range(LEVELS + 1):
        seen.append(acceptance())
        if LOWEST <= seen[-1] <= HIGHEST:
            return scale
        scale_skipped(model, num_layers, 1 / STEP)
        scale /= STEP
    raise RuntimeError(f"no scale of the skipped layers has an acceptance of {LOWEST} to {HIGHEST}: {seen}")
