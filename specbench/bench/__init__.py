"""Plan a paired run, run it, check equality, resume it.

`specbench.bench` is both this room and one of the three verbs of `import specbench`: the module can be called.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from specbench.bench.request import Progress, RunOutcome, RunRequest

__all__ = ["Progress", "RunOutcome", "RunRequest", "run"]


def run(request: RunRequest, progress: Progress) -> RunOutcome:
    """Carry out a run, or continue one. Raises SpecbenchError where nothing could be measured; partial data is kept."""
    # Late: a front end that only reads requests needs neither. Torch's 2 s after all that is refused without it.
    from specbench.bench.asked import ask

    asked = ask(request, progress)
    from specbench.bench.runner import carry_out

    return carry_out(asked, progress)


class _Room(types.ModuleType):
    def __call__(self, suite: str, **options: Any) -> dict[str, Any]:
        from specbench.api import bench  # 2 s of torch

        return bench(suite, **options)


sys.modules[__name__].__class__ = _Room
