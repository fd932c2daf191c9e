"""What is known of a model without running it: its final norm, its positions, its parameters, the bytes of a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from specbench.errors import UsageError
from specbench.lm.quantised import is_quantised, num_values, quantised_layers, stored_bytes
from specbench.lm.taps import decoder_of


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm whose output the head reads, where the decoder exposes one under a usual name."""
    decoder = decoder_of(model)
    for name in ("norm", "final_layer_norm", "ln_f", "final_norm"):
        found = getattr(decoder, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def num_positions(config: PretrainedConfig) -> int:
    """Positions the model serves; 0 where its config does not say.

    LongRoPE swaps the frequencies of every position once one token passes the original length, but not those of the
    keys already cached: the text would depend on where drafts reach. So its context ends at the original length.
    """
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    original = [each["original_max_position_embeddings"] for each in layers if each.get("rope_type") == "longrope"]
    return int(min([positions, *original]))


def num_parameters(model: PreTrainedModel) -> int:
    """Distinct parameters (tied weights once), those of quantised layers as if they were not."""
    layers = quantised_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    plain = (parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    return sum(plain) + sum(map(num_values, layers))


def weight_bytes_per_token(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """Bytes one decode step at batch 1 reads of the weights: all, less the rows of embedding tables that are not looked
    up and the experts that are not chosen. A table tied to the head is read whole, and counted once; of a quantised
    layer all it holds is read: data, scales, zero points."""
    head = model.get_output_embeddings().weight
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {id(head)}
    names = ("num_local_experts", "num_experts", "n_routed_experts")
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


def check_positions(num_tokens: int, *, config: PretrainedConfig, name: str) -> None:
    """Raises UsageError for a text longer than the model was built for."""
    most = num_positions(config)
    if most and num_tokens > most:
        raise UsageError(
            f"a text of {num_tokens} tokens, but {name} was built for {most}",
            try_="a shorter text, or a target with a longer context",
        )


def check_tokens(tokens: Sequence[int], *, vocab_size: int, name: str) -> None:
    """Raises UsageError for an id outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"token id {token} is outside the vocabulary of {name} ({vocab_size})",
                try_="use the tokenizer that belongs to the target",
            )
