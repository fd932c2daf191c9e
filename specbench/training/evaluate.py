"""How good a drafter is without a run: per-depth loss and accuracy on held-out documents, simulated acceptance on
answers that the target wrote itself.

n depths, R ranks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specbench import registry
from specbench.data.documents import Documents
from specbench.engine.decode import Engine
from specbench.engine.graphs import graphs_for
from specbench.engine.replay import Replayed, States, Text, replay
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.losses import DepthCounts, Objective
from specbench.method import Drafter, Request, TargetView
from specbench.recipe import Recipe
from specbench.sampling import Sampling
from specbench.store.files import write_whole
from specbench.training.features import FeatureSource

_MAX_BATCH = 8
"""Prompts decoded or replayed together."""
_PLAIN_PROMPT = 32
"""Tokens of a document that serve as a prompt where all of it is to be learnt."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One evaluation. accuracy_nR: share of labels among the first r + 1 choices. A label that cannot be said (a
    trimmed vocabulary) is a miss and has no loss."""

    loss: float
    """Per label, all depths, each label at its depth's loss."""
    depth_loss: tuple[float, ...]
    """Per label that can be said."""
    summed_loss: tuple[float, ...]
    """`num` labels at `depth_loss`: what a journal holds, whose readers divide by `num`."""
    num: tuple[int, ...]
    said: tuple[int, ...]
    """Labels that can be said."""
    correct: tuple[tuple[int, ...], ...]
    """[depth][r]: labels among the first r + 1 choices."""
    accuracy: tuple[tuple[float, ...], ...]
    right: tuple[int, ...]
    whole: tuple[int, ...]
    replayed: Replayed | None
    """None where no prompt was asked for."""

    @property
    def unsaid(self) -> str:
        """How many labels can be said, in words; empty where all can."""
        num = sum(self.num)
        if sum(self.said) == num:
            return ""
        return f"{100 * sum(self.said) / num:.1f} % of the labels can be said; the others are misses and have no loss"

    @property
    def chain(self) -> float:
        """Tokens a greedy chain would have had accepted per step, by the labels: sum of right / whole."""
        return sum(right / whole for right, whole in zip(self.right, self.whole, strict=True) if whole)

    @property
    def tau(self) -> float | None:
        """Simulated acceptance length, bonus included."""
        return None if self.replayed is None else self.replayed.acceptance_length

    @property
    def top1(self) -> float:
        """Accuracy of the first choice at depth 0."""
        return self.accuracy[0][0] if self.accuracy else 0.0

    def is_better_than(self, best: dict[str, Any]) -> bool:
        """By tau where it was simulated; where it was not, or is the same, by loss."""
        if not best:
            return True
        tau = best.get("tau")
        if self.tau is not None and tau is not None and self.tau != float(tau):
            return self.tau > float(tau)
        return self.loss < float(best["loss"])

    def summary(self) -> dict[str, Any]:
        """For provenance and the last lines."""
        return {"loss": self.loss, "tau": self.tau, "chain": self.chain, "top1": self.top1}


def figures(counts: DepthCounts, replayed: Replayed | None) -> Figures:
    """Counts -> ratios."""
    num = [int(each) for each in counts.num_n.tolist()]
    said = [int(each) for each in counts.said_n.tolist()]
    losses = [float(each) for each in counts.loss_n.tolist()]
    correct = [[int(hit) for hit in hits] for hits in counts.correct_nR.tolist()]
    whole = [
        loss if each == all_ else loss / max(each, 1) * all_ for loss, each, all_ in zip(losses, said, num, strict=True)
    ]
    return Figures(
        loss=sum(whole) / max(sum(num), 1),
        depth_loss=tuple(loss / max(each, 1) for loss, each in zip(losses, said, strict=True)),
        summed_loss=tuple(whole),
        num=tuple(num),
        said=tuple(said),
        correct=tuple(tuple(hits) for hits in correct),
        accuracy=tuple(tuple(hit / max(each, 1) for hit in hits) for hits, each in zip(correct, num, strict=True)),
        right=tuple(int(each) for each in counts.right_n.tolist()),
        whole=tuple(int(each) for each in counts.whole_n.tolist()),
        replayed=replayed,
    )


class Counted(NamedTuple):
    """Sums over held-out rows."""

    counts: DepthCounts
    parts: Mapping[str, float]
    """The loss's named terms, per anchor."""


@torch.no_grad()
def count_documents(
    recipe: Recipe,
    source: FeatureSource,
    *,
    num_rows: int,
    micro_batch: int,
    objective: Objective,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Counted:
    """Held-out rows through the recipe's loss, in evaluation mode; draws no random number that training would miss.

    autocast: around the drafter's arithmetic alone. The target reads the rows in its own dtype, as it does in training.
    """
    was_training = recipe.module.training
    recipe.module.eval()
    total: DepthCounts | None = None
    parts: dict[str, float] = defaultdict(float)
    num_anchors = 0
    try:
        for start in range(0, num_rows, micro_batch):
            features = source.make(list(range(start, min(start + micro_batch, num_rows))))
            with autocast():
                loss = recipe.loss(features, objective)
            total = loss.counts if total is None else total.plus(loss.counts)
            num_anchors += int(loss.num_anchors)
            for name, part in loss.parts.items():
                parts[name] += float(part)
    finally:
        recipe.module.train(was_training)
    assert total is not None, "there is at least one held-out row"
    return Counted(
        counts=DepthCounts(*(part.cpu() for part in total)),
        parts={name: part / max(num_anchors, 1) for name, part in parts.items()},
    )


class Simulator:
    """Held-out prompts with the target's own greedy answers, written once and kept in the run's folder."""

    def __init__(self, lm: CachedLM, documents: Documents, *, num: int, max_new_tokens: int) -> None:
        self._lm = lm
        self._max_new_tokens = max_new_tokens
        self._prompts = prompts_of(documents, num=num, lm=lm, max_new_tokens=max_new_tokens)
        longest = max((len(prompt) for prompt in self._prompts), default=1)
        self._engine = Engine(
            lm,
            sampling=Sampling(),
            max_batch=min(_MAX_BATCH, max(len(self._prompts), 1)),
            max_len=longest + max_new_tokens,
            stop=Stop(ids=stop_ids_of(lm)),
            graphs=graphs_for(lm),
        )
        self._texts: list[Text] = []
        self._states: States = {}

    @property
    def num_prompts(self) -> int:
        """Prompts that were found."""
        return len(self._prompts)

    def view(self) -> TargetView:
        """What recipe and drafter may read of the target."""
        return self._engine.view()

    def write_answers(self, file: Path | None) -> None:
        """Make the answers, or read them where an earlier attempt left them."""
        known: dict[str, list[int]] = {}
        if file is not None and file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
        missing = [prompt for prompt in self._prompts if _name(prompt) not in known]
        drafter = registry.load("autoregressive")({}, self._engine.view())
        for start in range(0, len(missing), self._engine.max_batch):
            group = missing[start : start + self._engine.max_batch]
            requests = [Request(key=0, prompt=prompt, max_new_tokens=self._max_new_tokens) for prompt in group]
            result = self._engine.generate(drafter, requests)
            for prompt, generation in zip(group, result.generations, strict=True):
                known[_name(prompt)] = list(generation.tokens)
        if self._engine.graphs is not None:
            # A training wants their memory, and does not decode again.
            self._engine.graphs.forget(None)
        limit = self._max_new_tokens
        self._texts = [
            Text(prompt=prompt, answer=tuple(known[_name(prompt)]), max_new_tokens=limit) for prompt in self._prompts
        ]
        if file is not None and missing:
            write_whole(file, json.dumps(known))

    @torch.no_grad()
    def replay(self, drafter: Drafter) -> Replayed | None:
        """The drafter on all texts; None where there are none."""
        if not self._texts:
            return None
        # The target is frozen: its states over the same texts are computed once for all evaluations.
        return replay(self._lm, drafter, self._texts, max_batch=self._engine.max_batch, states=self._states)


def prompts_of(documents: Documents, *, num: int, lm: CachedLM, max_new_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The first `num` documents' text before their first answer that leaves room for one in the target's context, where
    it is what a run would ask with."""
    room = (lm.context_length or 1 << 30) - max_new_tokens
    found: dict[tuple[int, ...], None] = {}
    for document in documents:
        if len(found) == num:
            break
        prompt = document.prompt or document.ids[:_PLAIN_PROMPT]
        if document.is_asked and 0 < len(prompt) <= room:
            found.setdefault(prompt)
    return tuple(found)


def _name(prompt: tuple[int, ...]) -> str:
    return ",".join(map(str, prompt))
