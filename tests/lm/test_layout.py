"""Laying weights out anew changes no number's place in the model, only its place in memory."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_model

from specbench.linear import lay_out_linears

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")


@needs_mkl
@pytest.mark.parametrize("is_tied", [True, False])
def test_float32_weights_keep_their_values_and_ties_and_change_their_strides(is_tied: bool) -> None:
    model, same = (tiny_model(dtype=torch.float32, tie_word_embeddings=is_tied) for _ in range(2))
    lay_out_linears(model)
    for (name, now), before in zip(model.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(now, before), name
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head.stride() == (1, head.shape[0])
    assert (head is embedding) == is_tied
    ids = torch.arange(12)[None]
    model.set_attn_implementation("eager")
    same.set_attn_implementation("eager")
    # Another order of summation, so float32 rounding: logits of these models reach tens.
    torch.testing.assert_close(model(ids).logits, same(ids).logits, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    strides = [parameter.stride() for parameter in model.parameters()]
    lay_out_linears(model)
    assert [parameter.stride() for parameter in model.parameters()] == strides
