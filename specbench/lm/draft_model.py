"""A second model as a drafter: loaded for its target, its vocabulary compared, its options read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, cast

from specbench.lm.adaptive_length import AdaptiveLength
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import Picks
from specbench.lm.load import load_lm, pick_dtype
from specbench.lm.vocabulary import Vocabulary, compare
from specbench.method import Options, TargetView
from specbench.quantisation import NONE


class Chain(TypedDict):
    """Arguments of `ChainDrafter` beside the models."""

    num_tokens: int
    num_shared: int
    picks: Picks
    adaptive: AdaptiveLength | None


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """What `load_draft` makes."""

    lm: CachedLM
    chain: Chain
    notes: tuple[str, ...]
    """What the row says of its weights."""


def load_draft(options: Options, target: TargetView, *, method: str) -> DraftModel:
    """Loads option `model` on the target's device, under the run's choice of attention, and reads num_tokens, draft,
    adaptive, max_tokens, cost_ratio, dtype and quantisation. method: whose options they are, for errors.

    `auto` attention is decided for the draft by itself: its model type, its heads and its dtype are not the target's.

    Raises UsageError (another vocabulary, a quantisation that the device or dtype cannot do), EnvironmentFailed (no
    weights, no library).
    """
    dtype = target.dtype if options["dtype"] == "auto" else pick_dtype(cast("str", options["dtype"]), target.device)
    lm = load_lm(
        cast("str", options["model"]),
        device=target.device,
        dtype=dtype,
        attention_name=target.attention,
        quantisation=cast("str", options["quantisation"]),
        quantisation_said_by=f"{method}.quantisation",
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
    return DraftModel(
        lm=lm,
        chain=Chain(
            num_tokens=num_tokens,
            num_shared=shared.num_shared,
            picks=cast("Picks", options["draft"]),
            adaptive=adaptive,
        ),
        notes=(
            *([f"its draft model's weights are {lm.quantisation}"] if lm.quantisation != NONE else []),
            *(f"its draft model: {note}" for note in lm.notes),
        ),
    )
