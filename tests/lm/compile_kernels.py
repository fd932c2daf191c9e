"""Compiles the kernels as a launch on a GPU would, without one: `python compile_kernels.py [all]` -> JSON, one line a
kernel: what it is, '' or why it was refused, bytes of shared memory, its instructions for products of matrices.

A program of its own: where Triton's interpreter is on, as the other tests want it, nothing can be compiled.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specbench.engine import stamp_kernel
from specbench.lm import tree_kernel

HOPPER = GPUTarget("cuda", 90, 32)
DTYPES = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}


class Case(NamedTuple):
    dtype: str
    width: int
    group: int
    num_slots: int
    shares: int
    has_window: bool = False
    has_cap: bool = False
    has_sink: bool = False


FEW = (
    Case("bf16", 128, 4, 1, 32),
    Case("bf16", 128, 4, 65, 8, has_window=True, has_cap=True),
    Case("fp16", 64, 7, 129, 64, has_sink=True),
    Case("bf16", 256, 4, 9, 2, has_window=True),
    Case("fp16", 80, 1, 17, 1),
    Case("fp32", 256, 1, 9, 1),
)
"""Every dtype, every kind of block, every switch on and off; float32, which takes the compiler longest, once, with the
widest heads and few slots (with 65 of them it takes 12 s, and 221,440 bytes of shared memory)."""


def every_case() -> Iterator[Case]:
    """All dtypes and head sizes, one slot and many, plain and with everything."""
    for dtype in DTYPES:
        for width in (64, 80, 96, 128, 192, 256):
            for group, num_slots in ((1, 1), (4, 1), (4, 65), (7, 129)):
                for extra in (False, True):
                    yield Case(dtype, width, group, num_slots, 16, extra, extra, extra)


class Kernel(NamedTuple):
    """shared: bytes. products: PTX instructions that multiply matrices on tensor cores, by the types they take."""

    shared: int
    products: tuple[str, ...]


def compiled(kernel: Any, pointers: dict[str, str], floats: set[str], constants: dict[str, Any]) -> str | Kernel:
    """The kernel, or why not. What is no pointer, float or constant is an integer. As a launch has it,
    pointers and strides are multiples of 16."""
    names: list[str] = kernel.arg_names
    kinds = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    kinds |= dict.fromkeys(floats, "fp32")
    aligned = [["tt.divisibility", 16]]
    strides = {name for name in names if name[-2:] in ("_b", "_h", "_m", "_s") and name not in constants}
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): aligned for name in strides | set(pointers)},
    )
    try:
        made = triton.compile(source, target=HOPPER)
        return Kernel(
            int(made.metadata.shared), tuple(sorted(set(re.findall(r"\S*mma\S*\.f32\.\S+", made.asm["ptx"]))))
        )
    except Exception as error:  # noqa: BLE001 - the reason is what is asked for
        return f"{type(error).__name__}: {error}"


def attend(case: Case) -> str | Kernel:
    """The kernel of `tree_attention` for these shapes."""
    inputs = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), DTYPES[case.dtype])
    integers = dict.fromkeys(("length_ptr", "depth_ptr", "bits_ptr"), "*i32")
    outputs = dict.fromkeys(("mixed_ptr", "sum_ptr"), "*fp32")
    # A launch makes constants of arguments that are 1, but of `num_shares`.
    ones = ["query_d", "key_d", "value_d", *(["num_slots"] if case.num_slots == 1 else [])]
    return compiled(
        tree_kernel._attend,
        inputs | integers | outputs,
        {"scale", "cap"},
        {
            **dict.fromkeys(ones, 1),
            **tree_kernel.blocks_of(case.group * case.num_slots, case.width, case.width),
            "GROUP": case.group,
            "WORDS": -(-case.num_slots // 32),
            "WIDTH": case.width,
            "WIDTH_V": case.width,
            "HAS_CAP": case.has_cap,
            "HAS_WINDOW": case.has_window,
            "UPCAST": False,
        },
    )


def merge(case: Case) -> str | Kernel:
    """The kernel that adds the shares up."""
    sinks = "*fp32" if not case.has_sink else DTYPES[case.dtype]
    return compiled(
        tree_kernel._merge,
        {"mixed_ptr": "*fp32", "sum_ptr": "*fp32", "sink_ptr": sinks, "out_ptr": DTYPES[case.dtype]},
        set(),
        {
            **({"num_slots": 1} if case.num_slots == 1 else {}),
            "GROUP": case.group,
            "BLOCK_P": triton.next_power_of_2(case.shares),
            "WIDTH_V": case.width,
            "BLOCK_V": tree_kernel.blocks_of(1, case.width, case.width)["BLOCK_V"],
            "HAS_SINK": case.has_sink,
        },
    )


def main() -> None:
    """Prints as it goes."""
    is_all = "all" in sys.argv[1:]

    def say(what: str, found: str | Kernel) -> None:
        why, kernel = (found, Kernel(0, ())) if isinstance(found, str) else ("", found)
        print(json.dumps({"what": what, "why": why, **kernel._asdict()}), flush=True)

    say("stamp", compiled(stamp_kernel.write_timer, {"slots_ptr": "*i64"}, set(), {}))
    for place, case in enumerate(every_case() if is_all else FEW):
        say(f"attend {case}", attend(case))
        if is_all or place < 3:
            say(f"merge {case}", merge(case))


if __name__ == "__main__":
    main()
