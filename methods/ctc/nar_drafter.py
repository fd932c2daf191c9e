"""Parallel frames behind the anchor, read by prefix search (nar).

B rows, U frames, W beams, C committed tokens of a step, D width, S cache slots, V the drafter's vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from methods.ctc.drafting import CtcDrafter
from methods.ctc.module import CtcNetwork
from methods.ctc.prefix_search import Levels, frames_of, independent, search
from specbench.method import DraftNoise, DraftTree, Options, TargetView
from specbench.sampling import process


class NarDrafter(CtcDrafter):
    """All frames in one pass, then the prefixes of their collapsed output (or, `off`, one depth a frame)."""

    def __init__(self, network: CtcNetwork, target: TargetView, options: Options) -> None:
        arch = network.architecture
        asked = cast("int", options["num_tokens"])
        super().__init__(network, target, options, depth=min(asked or arch.labels, arch.frames))
        wish = options["transform"]
        self._collapses = wish == "collapse" or (wish == "auto" and arch.has_blank)
        self._top_k = cast("int", options["top_k"])
        # The penalty is for logits, and a collapsed law has none: it enters with the frames.
        self._processors = replace(target.sampling, repetition_penalty=1.0)
        self._cache = self._make_cache(arch.frames)
        self._frame_U = torch.arange(arch.frames, device=target.device)
        if self._width == 1 and self._budget:
            self._depth = min(self._depth, self._budget)

    def frame_logits(self) -> Tensor:
        """(B, U, W + 1) with a blank, else (B, U, W), float32 at least."""
        network, cache = self._network, self._cache
        if cache is None:
            return network.logits(network.mapped(self._anchor_BD), self._head)
        layer = network.layer
        assert layer is not None
        frames_BUD = network.frames(self._anchor_BD)
        # The anchor's own feature stands in the last slot; as the first frame it is written there again.
        first_B1 = cache.len_B[:, None] - int(self._arch.first_frame == "anchor")
        places_BU = first_B1 + self._frame_U
        cache.write(frames_BUD, places_BU)
        last_BU = places_BU if self._arch.causal_frames else places_BU[:, -1:].expand_as(places_BU)
        sees_BUS = cache.slots(cache.num_read) <= last_BU[..., None]
        return network.logits(layer.after(frames_BUD, cache.read(frames_BUD, places_BU, sees_BUS)), self._head)

    def _grow(self, noise: DraftNoise | None) -> DraftTree:
        logits = self.frame_logits()
        if self._seen_BV is not None:
            logits = self._penalised(logits)
        levels = self._collapsed(logits, noise) if self._collapses else self._as_they_are(logits, noise)
        return self._tree(levels.ids, levels.grown)

    def _collapsed(self, logits: Tensor, noise: DraftNoise | None) -> Levels:
        return search(
            frames_of(logits, has_blank=self._arch.has_blank, top_k=self._top_k),
            depth=self._depth,
            width=self._width,
            branch=self._branch,
            process=None if self._target.sampling.is_greedy else self._processed,
            noise=self._noise(noise),
        )

    def _as_they_are(self, logits: Tensor, noise: DraftNoise | None) -> Levels:
        return independent(
            logits[..., :-1] if self._arch.has_blank else logits,
            depth=self._depth,
            width=self._width,
            branch=self._branch,
            process=self._processed,
            noise=self._noise(noise),
        )

    def _processed(self, scores: Tensor) -> Tensor:
        return process(scores, self._processors)

    def _penalised(self, logits_BUX: Tensor) -> Tensor:
        """Repetition penalty on what prompt and answer hold; what the draft itself holds is left out."""
        assert self._seen_BV is not None
        num = self._network.vocabulary.size
        penalised = self._network.vocabulary.scores(logits_BUX[..., :num], self._penalty_only(), self._seen_BV[:, None])
        return torch.cat([penalised, logits_BUX[..., num:]], -1)

    def _penalty_only(self) -> TargetView:
        penalty = self._target.sampling.repetition_penalty
        return replace(self._target, sampling=type(self._target.sampling)(repetition_penalty=penalty))
