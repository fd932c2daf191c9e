"""A model's weights, counted: how many there are, and how many bytes of them a token costs."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from specbench.lm.quantised import is_quantised, num_values, quantised_layers, stored_bytes


def num_parameters(model: PreTrainedModel) -> int:
    """Distinct parameters (tied weights once), those of quantised layers as if they were not."""
    layers = quantised_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    plain = (parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    return sum(plain) + sum(map(num_values, layers))


def bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes one decode step at batch 1 reads of the weights: all, less the rows of embedding tables that are not looked
    up and the experts that are not chosen. A table tied to the head is read whole, and counted once; of a quantised
    layer all it holds is read: data, scales, zero points."""
    head = model.get_output_embeddings().weight
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {id(head)}
    names, config = ("num_local_experts", "num_experts", "n_routed_experts"), model.config.get_text_config()
    num_experts = next((number for name in names if (number := getattr(config, name, None))), 0)
    num_chosen = getattr(config, "num_experts_per_tok", num_experts)
    layers = quantised_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    total = 0
    for name, module in model.named_modules():
        if is_quantised(module):
            is_expert = bool(num_experts) and ".experts." in name
            total += stored_bytes(module) * (num_chosen if is_expert else 1) // (num_experts if is_expert else 1)
    for name, parameter in model.named_parameters():
        if id(parameter) in inside:
            continue
        num_bytes = parameter.numel() * parameter.element_size()
        if id(parameter) in tables:
            num_bytes //= parameter.shape[0]
        elif num_experts and ".experts." in name and parameter.shape[0] == num_experts:
            num_bytes = num_bytes * num_chosen // num_experts
        total += num_bytes
    return total
