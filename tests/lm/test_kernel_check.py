"""`auto` takes the Triton kernel only where it computes what the plain reference does: kernels broken on purpose are
found out, whatever breaks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import CPU, tiny_model

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux)")

from specbench.lm.kernel_check import heads_of, why_wrong
from specbench.lm.tree_kernel import tree_attention


def _without(name: str) -> Callable[..., Tensor]:
    def kernel(*tensors: Tensor, **options: Any) -> Tensor:
        return tree_attention(*tensors, **{**options, name: None})

    return kernel


def _sees_all(*tensors: Tensor, **options: Any) -> Tensor:
    return tree_attention(*tensors, **{**options, "bits_BMW": torch.full_like(options["bits_BMW"], -1)})


def _sees_words_of_the_first(*tensors: Tensor, **options: Any) -> Tensor:
    """Right for as many slots as one word has bits."""
    bits_BMW = options["bits_BMW"].clone()
    bits_BMW[..., 1:] = bits_BMW[..., :1]
    return tree_attention(*tensors, **{**options, "bits_BMW": bits_BMW})


def _knows_one_block(*tensors: Tensor, **options: Any) -> Tensor:
    """Right for as many slots as a block of the cache has."""
    bits_BMW = options["bits_BMW"].clone()
    bits_BMW[..., 2:] = 0
    return tree_attention(*tensors, **{**options, "bits_BMW": bits_BMW})


def _slips(*tensors: Tensor, **options: Any) -> Tensor:
    return tree_attention(*tensors, **{**options, "length_B": options["length_B"] - 1})


def _not_finite(*tensors: Tensor, **options: Any) -> Tensor:
    found = tree_attention(*tensors, **options)
    found[0, 0, 0, 0] = float("nan")
    return found


def _refuses(*tensors: Tensor, **options: Any) -> Tensor:
    raise RuntimeError("out of resource: shared memory, Required: 270336, Hardware limit: 232448\nmore")


@pytest.mark.parametrize(("family", "most_nodes"), [("llama", 64), ("gemma2", 16), ("gpt_oss", 16)])
def test_a_right_kernel_is_taken(family: str, most_nodes: int) -> None:
    config = tiny_model(family).config.get_text_config()
    assert why_wrong(config, device=CPU, dtype=torch.float32, most_nodes=most_nodes) == ""


@pytest.mark.parametrize(
    ("family", "kernel", "why"),
    [
        ("llama", _sees_all, "is wrong here"),
        ("llama", _slips, "is wrong here"),
        ("llama", _not_finite, "is wrong here: inf off"),
        ("llama", _sees_words_of_the_first, "64 nodes"),
        ("llama", _knows_one_block, "64 nodes"),
        ("llama", _refuses, "does not run here: RuntimeError: out of resource"),
        ("gemma2", _without("window"), "is wrong here"),
        ("gemma2", _without("cap"), "is wrong here"),
        ("gpt_oss", _without("sink_H"), "is wrong here"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_kernel_is_found_out(family: str, kernel: Callable[..., Tensor], why: str) -> None:
    found = why_wrong(tiny_model(family).config.get_text_config(), device=CPU, dtype=torch.float32, kernel=kernel)
    assert why in found and "\n" not in found


def test_a_dtype_without_a_kernel_is_said() -> None:
    assert "no float64" in why_wrong(tiny_model().config, device=CPU, dtype=torch.float64)


def test_the_kernel_is_tried_in_the_target_s_own_shapes() -> None:
    heads = heads_of(tiny_model("gemma2").config.get_text_config())
    assert (heads.num, heads.num_kv, heads.width, heads.has_window, heads.cap) == (4, 2, 16, True, 2.0)
