"""The run that measures a new drafter: for the command that a training ends with and for the viewer's form."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from specbench.quantisation import NONE
from specbench.suite import CHAT

DEMO = "demo"
"""Both the embedded target and its suite."""


def use_values(
    *, target: str, method: str, weights: str, quantisation: str, template: str, methods_dirs: Sequence[str]
) -> dict[str, str]:
    """As the form's values, which are strings: what `b` on the Train screen fills in. weights: the drafter's folder."""
    found = {
        "suite": DEMO if target == DEMO else "mtbench",
        "target": target,
        "methods": f"autoregressive,{method}",
        "settings": shlex.quote(f"{method}.weights={weights}"),
    }
    if quantisation != NONE:
        found["quantisation"] = quantisation
    if template != CHAT:
        found["template"] = template
    if methods_dirs:
        found["methods_dirs"] = shlex.join(methods_dirs)
    return found
