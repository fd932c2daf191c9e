"""The cell laid out for drafting has the network's numbers, for one branch and for many, and changes nothing of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.lstm import laid_out
from methods.lstm.laid_out import LaidOut, lay_out
from methods.lstm.module import SumLSTM
from specbench.conformance.targets import random_target
from tests.methods.test_lstm import CELLS, VOCAB, recipe_of, view_of

GATED = [name for name, training in CELLS.items() if training.get("method") != "sum_rnn"]


def network_of(name: str, dtype: torch.dtype = torch.float64) -> SumLSTM:
    network = recipe_of(CELLS[name]).network
    assert isinstance(network, SumLSTM)
    with torch.no_grad():
        for norm in (network.cell_norm, network.state_norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return network.to(dtype)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_depth_has_the_network_s_states_and_logits(name: str, num: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    view = view_of(random_target("llama"))
    network = network_of(name, dtype)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    cell = lay_out(network, view)
    assert isinstance(cell, LaidOut)
    hidden = torch.randn(num, network.architecture.hidden_size, dtype=dtype)
    mine, wanted = cell.start(hidden), network.start(hidden)
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    with torch.no_grad():
        for depth in range(network.architecture.num_heads + 2):
            tokens = torch.randint(VOCAB, (num,))
            mine, wanted = cell.step(depth, tokens, mine), network.step(depth, tokens, wanted)
            for ours, theirs in zip(mine, wanted, strict=True):
                assert ours is not None and theirs is not None
                torch.testing.assert_close(ours, theirs, **tolerance)
            # A borrowed head is the target's, here in float32.
            loose = {"atol": 1e-4, "rtol": 1e-4, "check_dtype": False} if "borrowed" in name else tolerance
            torch.testing.assert_close(cell.logits(depth, mine), network.logits(depth, wanted), **loose)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_a_table_that_would_be_too_large_leaves_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("published")
    monkeypatch.setattr(laid_out, "TABLE_BYTES", 1000)
    assert lay_out(network, view_of(random_target("llama"))) is network


def test_the_plain_recurrence_is_read_as_it_is() -> None:
    network = recipe_of(CELLS["rnn"]).network
    assert lay_out(network, view_of(random_target("llama"))) is network


def test_one_depth_alone_has_nothing_to_forget() -> None:
    view = view_of(random_target("llama"))
    network = recipe_of({"num_heads": 1}, view=view).network
    assert isinstance(network, SumLSTM)
    network = network.double()
    hidden = torch.randn(2, network.architecture.hidden_size, dtype=torch.float64)
    cell = lay_out(network, replace(view))
    tokens = torch.tensor([3, 4])
    with torch.no_grad():
        mine = cell.step(0, tokens, cell.start(hidden))
        torch.testing.assert_close(mine.hidden_ND, network.step(0, tokens, network.start(hidden)).hidden_ND)
