# mypy: ignore-errors
# Triton compiles this from its source; to Python's type checkers it means nothing.
"""One thread writes the GPU's global timer. Imported only where Triton is and a stamp is asked for on CUDA."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit
def write_timer(slots_ptr, index):
    tl.store(slots_ptr + index, globaltimer())
