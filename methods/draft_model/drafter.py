"""A second Hugging Face model drafts (Leviathan 2023; Chen 2023): `specbench.lm.chain`, with several beams
`specbench.lm.draft_tree`."""

from __future__ import annotations

from specbench.lm.draft_model import load_draft
from specbench.method import Drafter, Options, TargetView


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """What `load_draft` raises."""
    return load_draft(options, target, method="draft_model").drafter(target)
