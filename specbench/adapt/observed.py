"""What one answer showed of target and draft: the target's law at the verified positions, and how much of it the
draft's law covered.

The law at position t is that of token t of the text given tokens[:t]; kept are the positions a draft reached with the
text's own tokens before it, so that reading the text once gives the draft's law at all of them: it need not be kept.
Laws are those of the models themselves, at temperature 1 and before any processor.

T tokens of the text, N positions, K entries of a law.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.losses import Law


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """One answer. All tensors on the CPU."""

    tokens_T: Tensor
    """int32: prompt and answer."""
    num_prompt: int
    position_N: Tensor
    """int32, ascending."""
    depth_N: Tensor
    """uint8: 1 = the first drafted token of its step."""
    drafted_N: Tensor
    """int32: the token drafted there; it was accepted where it is the text's."""
    overlap_N: Tensor
    """float32: sum min(p, q) over the whole vocabulary, computed while both laws were at hand."""
    target: Law
    """p: log-probabilities float32 (N, K), ids int32, log of the tail."""
    domain: str = ""
    version: int = 0
    """Of the adapter that drafted it; 0 = the draft model itself."""
    row: int = 0
    """Of its group, as it was decoded; not kept on disk."""

    @property
    def num_positions(self) -> int:
        """N."""
        return self.position_N.shape[0]

    @property
    def accepted_N(self) -> Tensor:
        """bool."""
        return self.tokens_T[self.position_N.long()] == self.drafted_N

    def only(self, index_M: Tensor) -> Observed:
        """These positions alone."""

        def cut(law: Law) -> Law:
            assert law.ids_RK is not None and law.log_tail_R is not None
            return Law(law.logp_RK[index_M], law.ids_RK[index_M], law.log_tail_R[index_M])

        return Observed(
            tokens_T=self.tokens_T,
            num_prompt=self.num_prompt,
            position_N=self.position_N[index_M],
            depth_N=self.depth_N[index_M],
            drafted_N=self.drafted_N[index_M],
            overlap_N=self.overlap_N[index_M],
            target=cut(self.target),
            domain=self.domain,
            version=self.version,
            row=self.row,
        )

    def contexts(self) -> list[bytes]:
        """Eight bytes for each position's tokens[:t]: the same context has the same law, whoever asked."""
        tokens = self.tokens_T.to(torch.int32).numpy()
        running, done, found = hashlib.blake2b(digest_size=8), 0, []
        for position in self.position_N.tolist():
            running.update(tokens[done:position].tobytes())
            done = position
            found.append(running.copy().digest())
        return found

    def prompt_digest(self) -> bytes:
        """Eight bytes for the prompt: what decides whether an answer is learnt from or held out."""
        return prompt_digest(self.tokens_T[: self.num_prompt].tolist())


def prompt_digest(prompt: Sequence[int]) -> bytes:
    """See `Observed.prompt_digest`."""
    return hashlib.blake2b(torch.tensor(prompt, dtype=torch.int32).numpy().tobytes(), digest_size=8).digest()


NUM_SIDES = 5
"""One prompt in so many is held out."""


def is_held_out_prompt(prompt: Sequence[int]) -> bool:
    """Whether its answers are never learnt from; decided by the prompt alone."""
    return prompt_digest(prompt)[0] % NUM_SIDES == 0


def shared_law(law: Law, num_shared: int) -> Law:
    """The law as a draft of another vocabulary size can be asked for it: the mass of entries it lacks is lost."""
    ids = law.ids_RK
    assert ids is not None and law.log_tail_R is not None
    ids = ids.long()
    is_known = ids < num_shared
    if bool(is_known.all()):
        return Law(law.logp_RK, ids, law.log_tail_R)
    lost = law.logp_RK.masked_fill(is_known, float("-inf")).logsumexp(-1)
    logp = law.logp_RK.masked_fill(~is_known, float("-inf"))
    return Law(logp, torch.where(is_known, ids, 0), law.log_tail_R, log_lost_R=lost)
