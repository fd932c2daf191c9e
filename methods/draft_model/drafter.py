"""A second Hugging Face model drafts a chain (Leviathan 2023; Chen 2023). The chain itself is `specbench.lm.chain`."""

from __future__ import annotations

from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_model import load_draft
from specbench.method import Drafter, Options, TargetView


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Loads `model` on the target's device. Raises UsageError (another vocabulary, a quantisation that the device or
    dtype cannot do), EnvironmentFailed (no weights, no library)."""
    draft = load_draft(options, target, method="draft_model")
    drafter = ChainDrafter(draft.lm, target, **draft.chain)
    drafter.notes = draft.notes
    return drafter
