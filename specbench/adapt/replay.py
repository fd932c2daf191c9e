"""What decoding would have observed, from texts that are known: under `coupled` a draft is accepted exactly where its
choice, made with the target's own noise, is the text's token, so that one forward over the text gives every step.

N positions, K drafted tokens of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.sampling import STREAM_ACCEPT, NoiseStream


class ReplayedStep(NamedTuple):
    """One step of a chain. Positions are places in the text, prompt included."""

    first: int
    """Of the first drafted token."""
    num_drafted: int
    num_accepted: int
    """Before the text's end cuts it."""
    num_kept: int
    """Tokens of the text that the step committed, the bonus token included."""

    @property
    def num_verified(self) -> int:
        """Positions of the text at which the draft was tried: the accepted ones and the first that was not."""
        return min(self.num_accepted + 1, self.num_drafted, self.num_kept)


def choices(logits_NV: Tensor, *, temperature: float, key: int, first: int) -> Tensor:
    """What a draft model picks at positions first .. first + N - 1 of the sequence with this key: int64 (N,).

    Its argmax at temperature 0, else argmax(log q + g) with the acceptance noise; no other processor.
    """
    if temperature == 0:
        return logits_NV.argmax(-1)
    noise = NoiseStream([key], vocab_size=logits_NV.shape[-1], device=logits_NV.device, stream=STREAM_ACCEPT)
    noise.seek([first])
    compute = torch.promote_types(logits_NV.dtype, torch.float32)
    return (logits_NV.to(compute) / temperature + noise.ahead(logits_NV.shape[0])[0]).argmax(-1)


def chain_steps(agrees: Sequence[bool], *, num_prompt: int, max_new_tokens: int, num_tokens: int) -> list[ReplayedStep]:
    """agrees[t]: the draft's choice given text[:t] is text[t]. The text: prompt and the target's answer, ended by
    a stop or the limit. num_tokens: K.

    The same rules as `ChainDrafter` and the engine: the prefill gives the first token; a draft is no longer than the
    answer may grow by, less one.
    """
    end = num_prompt + max_new_tokens
    place, found = num_prompt + 1, []
    while place < len(agrees):
        num_drafted = max(min(num_tokens, end - place - 1), 0)
        accepted = 0
        while accepted < num_drafted and place + accepted < len(agrees) and agrees[place + accepted]:
            accepted += 1
        kept = min(accepted + 1, len(agrees) - place)
        found.append(ReplayedStep(place, num_drafted, accepted, kept))
        place += kept
    return found
