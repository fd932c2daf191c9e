"""Disks that refuse while a target writes answers: plain words, exit code 3, and the same command goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from specbench.data import Documents, Prompt, load_prompts
from specbench.data.generating import GenerateRequest, generate
from specbench.data.responses import read_responses
from specbench.data.writing import write_responses
from specbench.errors import EnvironmentFailed
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.sampling import Sampling


@pytest.fixture(scope="module")
def lm() -> CachedLM:
    """The embedded target."""
    torch.set_num_threads(1)
    return load_lm("demo", device=torch.device("cpu"), dtype=torch.float32)


def demo_prompts(number: int) -> tuple[Prompt, ...]:
    return load_prompts("demo", seed=0, limit=number).prompts


def write(lm: CachedLM, prompts: tuple[Prompt, ...]) -> Documents:
    return write_responses(lm, prompts, sampling=Sampling(), max_new_tokens=12, seed=0, max_len=256, batch_size=1)


def pairs(documents: Documents) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    return {(text.prompt, text.answer) for text in documents}


def request(out: Path) -> GenerateRequest:
    return GenerateRequest(target="demo", dataset="demo", out=out, limit=6, max_new_tokens=12, threads=1, batch_size=1)


@contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    """The system itself refuses, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_ends_writing_in_plain_words_and_the_same_call_goes_on(lm: CachedLM) -> None:
    """In the cache, where a training has its target answer."""
    prompts = demo_prompts(6)
    whole = write(lm, prompts)
    [path] = (Path(os.environ["SPECBENCH_CACHE"]) / "responses").iterdir()
    size = path.stat().st_size
    path.unlink()
    with no_file_beyond(size // 2), pytest.raises(EnvironmentFailed) as caught:
        write(lm, prompts)
    assert caught.value.exit_code == 3 and str(path) in caught.value.what
    kept = read_responses(path)
    assert 0 < len(kept) < 6
    assert pairs(write(lm, prompts)) == pairs(whole)
    assert read_responses(path)[: len(kept)] == kept


def test_a_disk_that_is_full_ends_data_generate_in_plain_words(tmp_path: Path) -> None:
    asked = request(tmp_path / "out")
    with no_file_beyond(3_000), pytest.raises(EnvironmentFailed) as caught:
        generate(asked)
    assert caught.value.exit_code == 3 and "worker-0000" in caught.value.what and caught.value.try_
    assert generate(asked).statistics.num_rows == 6


def test_a_place_that_cannot_be_written_names_what_to_type(
    lm: CachedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("SPECBENCH_CACHE", str(file))
    with pytest.raises(EnvironmentFailed) as caught:
        write(lm, demo_prompts(1))
    assert "SPECBENCH_CACHE=DIR" in caught.value.try_
    with pytest.raises(EnvironmentFailed) as caught:
        generate(request(file / "out"))
    assert "--out" in caught.value.try_
