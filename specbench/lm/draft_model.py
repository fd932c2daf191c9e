"""A second model as a drafter: loaded for its target, its vocabulary compared, its options read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, cast

from specbench.errors import UsageError
from specbench.lm.adaptive_length import AdaptiveLength
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter, Picks
from specbench.lm.draft_tree import TreeDrafter, TreeShape
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
    tree: TreeShape | None
    """None: a chain is drafted."""
    notes: tuple[str, ...]
    """What the row says of its weights."""

    def drafter(self, target: TargetView) -> ChainDrafter:
        """A chain's or a tree's, with its notes."""
        made = (
            ChainDrafter(self.lm, target, **self.chain)
            if self.tree is None
            else TreeDrafter(self.lm, target, tree=self.tree, **self.chain)
        )
        made.notes = self.notes
        return made

    def arguments(self) -> dict[str, Any]:
        """Beside the models, for drafters that are a chain's or a tree's and more."""
        return {**self.chain, **({} if self.tree is None else {"tree": self.tree})}


def load_draft(options: Options, target: TargetView, *, method: str) -> DraftModel:
    """Loads option `model` on the target's device, under the run's choice of attention, and reads num_tokens,
    beam_width, branch, max_nodes, draft, adaptive, max_tokens, cost_ratio, dtype and quantisation. method: whose
    options they are, for errors.

    `auto` attention is decided for the draft by itself: its model type, its heads and its dtype are not the target's.

    Raises UsageError (another vocabulary, a quantisation that the device or dtype cannot do, a chain's option beside a
    tree), EnvironmentFailed (no weights, no library).
    """
    tree = _tree_shape(options, method)
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
    if options["max_nodes"]:
        # A chain's best nodes are its first ones.
        num_tokens, max_tokens = min(num_tokens, options["max_nodes"]), min(max_tokens, options["max_nodes"])
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
        tree=tree,
        notes=(
            *([f"its draft model's weights are {lm.quantisation}"] if lm.quantisation != NONE else []),
            *(f"its draft model: {note}" for note in lm.notes),
        ),
    )


def _tree_shape(options: Options, method: str) -> TreeShape | None:
    """None: a chain. Raises UsageError for what only a chain can do."""
    width = cast("int", options["beam_width"])
    if width == 1:
        return None
    if options["adaptive"]:
        raise UsageError(
            "adaptive chooses the length of a chain, and a tree of several beams is asked for",
            where=f"{method}.adaptive",
            try_=f"--set {method}.beam_width=1, or --set {method}.adaptive=false with max_nodes for the tree's size",
        )
    if options["draft"] == "sampled":
        raise UsageError(
            "a tree's nodes are picked, not drawn from the draft's law",
            where=f"{method}.draft",
            try_=f"--set {method}.draft=shared-noise or greedy, or --set {method}.beam_width=1",
        )
    return TreeShape(
        beam_width=width, branch=cast("int", options["branch"]), max_nodes=cast("int", options["max_nodes"])
    )
