"""Readings of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import torch

from specbench.bench import machine
from specbench.bench.machine import copy_bandwidth, copy_size, settled_heap


def test_a_copy_outgrows_a_card_s_caches_and_leaves_it_room() -> None:
    """256 MiB take an H200 a tenth of a millisecond, of which a launch and a wait are a tenth."""
    gib = 1 << 30
    assert copy_size(None) == gib // 4
    assert copy_size(140 * gib) == 2 * gib
    assert copy_size(8 * gib) == gib
    assert copy_size(5) == 1 << 20
    assert copy_size(8 * gib + 27) % 4 == 0


def test_both_directions_of_a_copy_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would let every baseline pass for twice as close to the roof."""
    seconds, copied = iter([4.0, 1.0, 2.0]), []

    def took(source: torch.Tensor, target: torch.Tensor) -> float:
        copied.append(source.data_ptr() != target.data_ptr() and source.nbytes == target.nbytes == 1 << 22)
        return next(seconds)

    monkeypatch.setattr(machine, "_copy_s", took)
    assert copy_bandwidth(torch.device("cpu"), size_bytes=1 << 22, rounds=2) == 2 * (1 << 22) / 1.0
    assert copied == [True] * 3, "the best of them counts"


def test_a_copy_s_time_is_the_copy_s() -> None:
    source, target = torch.ones(1 << 20), torch.zeros(1 << 20)
    began = time.perf_counter()
    found = machine._copy_s(source, target)
    assert 0 < found <= time.perf_counter() - began and torch.equal(source, target)


def test_what_is_kept_from_collections_is_let_go_behind_a_measurement(
    loaded_stays: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "unfreeze", loaded_stays)
    try:
        with settled_heap():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()  # as the session found it
