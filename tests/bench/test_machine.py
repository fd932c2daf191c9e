"""Readings of the machine."""

from __future__ import annotations

import torch

from specbench.bench.machine import copy_bandwidth, copy_size


def test_a_copy_outgrows_a_card_s_caches_and_leaves_it_room() -> None:
    """256 MiB take an H200 a tenth of a millisecond, of which a launch and a wait are a tenth."""
    gib = 1 << 30
    assert copy_size(None) == gib // 4
    assert copy_size(140 * gib) == 2 * gib
    assert copy_size(8 * gib) == gib
    assert copy_size(5) == 1 << 20
    assert copy_size(8 * gib + 27) % 4 == 0


def test_both_directions_of_a_copy_are_counted() -> None:
    assert 1e8 < copy_bandwidth(torch.device("cpu"), size_bytes=1 << 22, rounds=2) < 1e13
