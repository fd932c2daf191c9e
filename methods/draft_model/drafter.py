"""A second Hugging Face model drafts a chain (Leviathan 2023; Chen 2023). The chain itself is `specbench.lm.chain`."""

from __future__ import annotations

from typing import cast

from specbench.lm.chain import AdaptiveLength, ChainDrafter, Picks
from specbench.lm.load import load_lm, pick_dtype
from specbench.lm.vocabulary import Vocabulary, compare
from specbench.method import Drafter, Options, TargetView
from specbench.quantisation import NONE


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Loads `model` on the target's device. Raises UsageError (another vocabulary, a quantisation that the device or
    dtype cannot do), EnvironmentFailed (no weights, no library)."""
    dtype = target.dtype if options["dtype"] == "auto" else pick_dtype(cast("str", options["dtype"]), target.device)
    lm = load_lm(
        cast("str", options["model"]),
        device=target.device,
        dtype=dtype,
        quantisation=cast("str", options["quantisation"]),
        quantisation_said_by="draft_model.quantisation",
    )
    shared = compare(
        Vocabulary(name=target.name, tokenizer=target.tokenizer, size=target.vocab_size),
        Vocabulary(name=lm.name, tokenizer=lm.tokenizer, size=lm.vocab_size),
    )
    num_tokens, max_tokens = cast("int", options["num_tokens"]), cast("int", options["max_tokens"])
    adaptive = None
    if options["adaptive"]:
        num_tokens = min(num_tokens, max_tokens)
        adaptive = AdaptiveLength(first=num_tokens, maximum=max_tokens, cost_ratio=cast("float", options["cost_ratio"]))
    drafter = ChainDrafter(
        lm,
        target,
        num_tokens=num_tokens,
        num_shared=shared.num_shared,
        picks=cast("Picks", options["draft"]),
        adaptive=adaptive,
    )
    if lm.quantisation != NONE:
        drafter.notes = (f"its draft model's weights are {lm.quantisation}", *lm.notes)
    return drafter
