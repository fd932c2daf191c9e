"""Replay: a drafter against recorded texts of the target. The drafter drafts, the recorded text decides.

Under `coupled` (and at temperature 0) the text does not depend on what is drafted, so what a drafter would have had
accepted in a run is known exactly from the text alone: the same trees, the same accepted paths, the same steps. The
target makes one teacher-forced forward per text for the states that drafters tap, and none at all for the others.

B rows, T tokens of a text, N nodes, C = P + 1, K taps, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import packed_states
from specbench.method import Commit, Drafter, Request
from specbench.sampling import STREAM_ACCEPT, NoiseStream, Sampling
from specbench.tree import DraftTree


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and what the target wrote: greedily, or seeded with `key` under `coupled`."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    key: int = 0
    max_new_tokens: int | None = None
    """What the answer was allowed when it was written, for drafters that draft no further than that. None: its own
    length, which is right where nothing else ended it."""

    @property
    def request(self) -> Request:
        """As it was asked for."""
        limit = len(self.answer) if self.max_new_tokens is None else self.max_new_tokens
        return Request(key=self.key, prompt=self.prompt, max_new_tokens=limit)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Counts over all texts, as a run's journal would hold them; tokens behind an answer's end are not counted."""

    num_steps: int
    num_tokens: int
    """Committed by steps: the answers' tokens less the first of each, which the prefill gives."""
    accepted_at: tuple[int, ...]
    """[d]: steps with at least d + 1 accepted tokens."""
    proposed_at: tuple[int, ...]
    """[d]: steps that proposed depth d + 1 (deeper than the answer's end is not counted)."""
    num_nodes: int
    """Draft nodes proposed."""
    steps_of: tuple[int, ...] = ()
    """Steps per text."""
    steps_at: tuple[tuple[int, int], ...] = ()
    """(nodes, steps that proposed so many), ascending."""

    @property
    def acceptance_length(self) -> float:
        """tau: tokens per step, bonus included."""
        return self.num_tokens / self.num_steps if self.num_steps else 0.0


@dataclass
class _Row:
    text: Text
    states_TKD: Tensor | None
    done: int = 1
    """Answer tokens committed; the first one came with the prefill."""
    steps: int = 0


@dataclass
class _Counts:
    num_steps: int = 0
    num_tokens: int = 0
    num_nodes: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    proposed: dict[int, int] = field(default_factory=dict)
    steps_of: list[int] = field(default_factory=list)
    steps_at: dict[int, int] = field(default_factory=dict)


States = dict[tuple[tuple[int | str, ...], Text], Tensor]
"""Tapped states (T, K, D) by taps and text, for who replays the same texts again."""


@torch.no_grad()
def replay(
    lm: CachedLM,
    drafter: Drafter,
    texts: Sequence[Text],
    *,
    sampling: Sampling | None = None,
    max_batch: int = 8,
    states: States | None = None,
) -> Replayed:
    """All texts, up to max_batch rows at a time. sampling: that of the texts; default greedy. states: filled, and read
    where a text's are there already.

    The drafter must have been built for at least max_batch rows and the same sampling. A text whose answer has fewer
    than two tokens has no step and counts as nothing.
    """
    counts = _Counts()
    for start in range(0, len(texts), max_batch):
        group = [text for text in texts[start : start + max_batch] if len(text.answer) > 1]
        if group:
            _replay_group(lm, drafter, group, sampling or Sampling(), counts, {} if states is None else states)
    deepest = max(counts.proposed, default=0)
    return Replayed(
        num_steps=counts.num_steps,
        num_tokens=counts.num_tokens,
        accepted_at=tuple(counts.accepted.get(depth, 0) for depth in range(1, deepest + 1)),
        proposed_at=tuple(counts.proposed.get(depth, 0) for depth in range(1, deepest + 1)),
        num_nodes=counts.num_nodes,
        steps_of=tuple(counts.steps_of),
        steps_at=tuple(sorted(counts.steps_at.items())),
    )


def _replay_group(
    lm: CachedLM, drafter: Drafter, texts: Sequence[Text], sampling: Sampling, counts: _Counts, states: States
) -> None:
    noise = None
    if not sampling.is_greedy:
        noise = NoiseStream(
            [text.key for text in texts], vocab_size=lm.vocab_size, device=lm.device, stream=STREAM_ACCEPT
        )
    rows = [_Row(text, _states(lm, drafter, text, states)) for text in texts]
    drafter.begin([row.text.request for row in rows])
    for place, row in enumerate(rows):
        prompt_T = torch.tensor(row.text.prompt, device=lm.device)
        hidden = None if row.states_TKD is None else row.states_TKD[: len(row.text.prompt)]
        drafter.prefill(place, prompt_T, hidden, 0)
    drafter.start(
        [len(row.text.prompt) + 1 for row in rows], torch.tensor([row.text.answer[0] for row in rows], device=lm.device)
    )
    live = list(rows)
    while live:
        if noise is not None:
            noise.seek([len(row.text.prompt) + row.done for row in live])
        paths, proposed = _walk(drafter.draft(noise), live)
        _count(counts, live, paths, proposed)
        drafter.commit(_commit(lm, live, paths))
        places = [place for place, row in enumerate(live) if row.done < len(row.text.answer)]
        counts.steps_of += [row.steps for row in live if row.done == len(row.text.answer)]
        if len(places) < len(live):
            live = [live[place] for place in places]
            if live:
                drafter.keep(places)
                if noise is not None:
                    noise.keep(places)


def _states(lm: CachedLM, drafter: Drafter, text: Text, known: States) -> Tensor | None:
    if not drafter.taps:
        return None
    where = (drafter.taps, text)
    if where not in known:
        ids = torch.tensor([text.prompt + text.answer], device=lm.device)
        known[where] = packed_states(lm, ids, torch.zeros_like(ids), drafter.taps)[0]
    return known[where]


def _walk(tree: DraftTree, live: Sequence[_Row]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Per row the accepted nodes, cut where the answer ends, and (nodes, depth) proposed."""
    tokens, parents = tree.tokens_BN.tolist(), tree.parents_BN.tolist()
    valid = None if tree.valid_BN is None else tree.valid_BN.tolist()
    paths, proposed = [], []
    for place, row in enumerate(live):
        nodes = [node for node in range(tree.num_nodes) if valid is None or valid[place][node]]
        children: dict[tuple[int, int], int] = {}
        depth_of: dict[int, int] = {}
        for node in nodes:
            parent = parents[place][node]
            children.setdefault((parent, tokens[place][node]), node)
            depth_of[node] = 1 + depth_of.get(parent, 0)
        wanted = row.text.answer[row.done :]
        path: list[int] = []
        node = -1
        for token in wanted:
            found = children.get((node, token))
            if found is None:
                break
            path.append(found)
            node = found
        paths.append(path)
        proposed.append((len(nodes), max(depth_of.values(), default=0)))
    return paths, proposed


def _count(
    counts: _Counts, live: Sequence[_Row], paths: Sequence[list[int]], proposed: Sequence[tuple[int, int]]
) -> None:
    for row, path, (num_nodes, depth) in zip(live, paths, proposed, strict=True):
        left = len(row.text.answer) - row.done
        counts.num_steps += 1
        row.steps += 1
        counts.num_nodes += num_nodes
        counts.steps_at[num_nodes] = counts.steps_at.get(num_nodes, 0) + 1
        counts.num_tokens += min(len(path) + 1, left)
        for at in range(1, min(depth, left) + 1):
            counts.proposed[at] = counts.proposed.get(at, 0) + 1
        for at in range(1, len(path) + 1):
            counts.accepted[at] = counts.accepted.get(at, 0) + 1


def _commit(lm: CachedLM, live: Sequence[_Row], paths: Sequence[list[int]]) -> Commit:
    """What the engine would hand over. Where the answer ends with an accepted token, no bonus follows: the row ends."""
    width = max(len(path) for path in paths) + 1
    tokens_BC, path_BP, states, kept, accepted = [], [], [], [], []
    for row, path in zip(live, paths, strict=True):
        new = list(row.text.answer[row.done : row.done + len(path) + 1])
        before = len(row.text.prompt) + row.done
        # A row that ends has no bonus token in the record; its number of accepted tokens stays what it was.
        padded = new + [0] * (width - len(new))
        tokens_BC.append(padded)
        path_BP.append(path + [-1] * (width - 1 - len(path)))
        accepted.append(len(path))
        kept.append(new)
        if row.states_TKD is not None:
            index = [min(before - 1 + min(i, len(path)), row.states_TKD.shape[0] - 1) for i in range(width)]
            states.append(row.states_TKD[index])
        row.done += len(new)
    return Commit(
        num_accepted_B=torch.tensor(accepted, device=lm.device),
        path_BP=torch.tensor(path_BP, dtype=torch.long, device=lm.device).view(len(live), width - 1),
        tokens_BC=torch.tensor(tokens_BC, device=lm.device),
        hidden_BCKD=torch.stack(states) if states else None,
        tokens=kept,
        finished=[row.done == len(row.text.answer) for row in live],
    )
