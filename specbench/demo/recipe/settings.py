"""Every number of the recipe that a reader may want to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Every number of the recipe that a reader may want to change."""

    seed: int = 20
    epochs: int = 5
    long_epochs: int = 2  # the first epochs also see long answers: more language to learn from
    batch_tokens: int = 4096
    muon_rate: float = 0.02
    muon_decay: float = 0.05
    adam_rate: float = 3e-3
    prompt_weight: float = 0.2  # prompts teach the language too, but the answers are the task
    short_answer: int = 120  # tokens; answers are measured on 128 new ones
    long_answer: int = 320
    longest_prompt: int = 256
    draft_epochs: int = 3
    written: int = 3000  # prompts the target answers for the draft to learn from
    stop_after: int = 0  # leave a training after so many steps of its schedule; 0 is never
    minutes: float = 0.0  # end each training here even if epochs are left; 0 is no limit
    resume: bool = False  # start from the weights in OUT instead of fresh ones
    answer_tokens: int = 128
