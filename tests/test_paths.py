"""Where things live on disk, by what the environment names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specbench import paths
from specbench.lm import parallel

PLACES = [
    ("SPECBENCH_RESULTS", lambda: paths.results_dir(None), "results"),
    ("SPECBENCH_CACHE", paths.cache_dir, "home/.cache/specbench"),
    ("XDG_CACHE_HOME", paths.cache_dir, "home/.cache/specbench"),
    ("SPECBENCH_CONFIG", paths.config_file, "home/.config/specbench/config.yaml"),
    ("XDG_CONFIG_HOME", paths.config_file, "home/.config/specbench/config.yaml"),
]


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, _, _ in PLACES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("name", "place", "default"), PLACES)
def test_an_empty_variable_names_no_place(
    name: str, place: Callable[[], Path], default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`XDG_CACHE_HOME= specbench run demo` is no wish for a cache in the folder one stands in."""
    unset = place()
    monkeypatch.setenv(name, "")
    assert place() == unset and unset.absolute() == tmp_path / default


@pytest.mark.parametrize(("name", "place", "default"), PLACES)
def test_a_variable_that_says_something_names_the_place(
    name: str, place: Callable[[], Path], default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "chosen"))
    assert place().is_relative_to(tmp_path / "chosen")


def test_empty_variables_of_torchrun_mean_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some job systems set them without a value where one process runs."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert (parallel.num_processes(), parallel.rank()) == (1, 0)
    assert parallel.own_device(torch.device("cuda")) == torch.device("cuda", 0)
