"""The script that trains a real target: its batches, its loss, and that it stops in time and goes on."""

from __future__ import annotations

import json
import math
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import real_target
from benchmarks.fitting import Fit, batches, fit, held_out_loss, loss_of
from benchmarks.real_sizes import DRAFTERS, FULL
from benchmarks.real_target import TimeIsUp, Work
from specbench import registry
from specbench.lm.facts import num_parameters, weight_bytes_per_token


def test_every_text_is_in_one_batch_and_none_is_larger_than_asked() -> None:
    rng = random.Random(0)
    rows = [[rng.randrange(50) for _ in range(rng.randrange(1, 60))] for _ in range(100)]
    found = list(batches(rows, 256, rng))
    texts = sorted([token for token in row if token >= 0] for batch in found for row in batch.tolist())
    assert texts == sorted(rows)
    assert all(batch.numel() <= 256 for batch in found)
    longest = [batch.shape[1] for batch in found]
    assert longest != sorted(longest), "long and short texts take turns"


def test_padding_changes_no_loss() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    text = torch.tensor([[3, 5, 7, 11]])
    padded = torch.cat([text, torch.full((1, 3), -1)], dim=1)
    with torch.no_grad():
        assert float(loss_of(model, text)) == pytest.approx(float(loss_of(model, padded)), rel=1e-2)
        assert float(loss_of(model, text)) == pytest.approx(math.log(20), rel=0.2)


def test_a_model_learns_a_text_it_sees_often() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    rows = [[3, 5, 7, 11, 13, 17]] * 8
    before = held_out_loss(model, rows, batch_tokens=48)
    seen, _ = fit(model, rows, random.Random(0), Fit(tokens=4000, batch_tokens=48, warmup=5, rate=3e-2))
    assert seen >= 4000 and held_out_loss(model, rows, batch_tokens=48) < 0.2 * before


def test_what_is_trained_can_be_trained() -> None:
    for method, _, settings in DRAFTERS.values():
        known = registry.card(method).training
        assert {setting.split("=")[0] for setting in settings} <= set(known)


def test_the_target_s_bytes_leave_room_for_what_a_step_launches() -> None:
    """On one H200 in float32, at 60 % of a copy's bandwidth: below that a table has no ranks."""
    with torch.device("meta"):
        target = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                hidden_size=FULL.hidden,
                num_hidden_layers=FULL.layers,
                num_attention_heads=FULL.heads,
                num_key_value_heads=FULL.kv_heads,
                intermediate_size=FULL.inner,
                tie_word_embeddings=True,
            )
        )
    assert 100e6 <= num_parameters(target) <= 300e6
    copied_s = weight_bytes_per_token(target, target.config) / 4.2e12
    num_operators = 45 + 17 * FULL.layers
    assert (copied_s / 0.6 - copied_s / 0.95) / num_operators >= 2e-6


def test_an_out_that_was_begun_in_another_dtype_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Work, "stages", lambda self: iter(()))
    _work(tmp_path, monkeypatch)
    assert real_target.main() == 0
    _work(tmp_path, monkeypatch, "--dtype", "bfloat16")
    assert real_target.main() == 2
    assert "was begun with --dtype float32" in capsys.readouterr().out


def test_an_adapter_is_learnt_from_prompts_of_the_answers_and_drafted_with_in_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(Work, "command", lambda self, *words: said.append(words))
    work = _work(tmp_path, monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    rows = [{"prompt_id": str(n), "messages": [{"role": "user", "content": f"prompt {n}"}]} for n in range(20)]
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work.adapter()
    collect, learn = said
    asked = [json.loads(line) for line in Path(str(collect[2])).read_text().splitlines()]
    assert len(asked) == 8 and {row["prompt"] for row in asked} < {f"prompt {n}" for n in range(20)}
    assert learn[:2] == ("adapt", "train")
    said.clear()
    work.suite("gsm8k")
    assert f"adaptive_lora.store={learn[learn.index('--store') + 1]}" in said[0]


def test_on_a_card_the_target_is_compiled_whole_unless_the_caller_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arithmetic counts on it; of two options that are one the last is taken."""
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(Work, "command", lambda self, *words: said.append(words))
    work = _work(tmp_path, monkeypatch, "--run-options", "--compile auto")
    for device in ("cpu", "cuda"):
        work.device = torch.device(device)
        work.suite("gsm8k")
    chosen = [[words[at + 1] for at, word in enumerate(words) if word == "--compile"] for words in said]
    assert chosen == [["auto", "auto"], ["whole", "auto"]]


def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Work:
    line = ["real_target.py", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--small", *words]
    monkeypatch.setattr(sys, "argv", line)
    return Work(real_target.arguments())


def test_a_command_is_stopped_when_time_is_up_and_not_begun_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background as well, where a shell has Ctrl-C ignored."""
    work = _work(tmp_path, monkeypatch, "--minutes", "0.01")
    was = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(TimeIsUp):
            work.command("run", "demo", "--store", tmp_path / "store", "--repeats", 50)
    finally:
        signal.signal(signal.SIGINT, was)
    with pytest.raises(TimeIsUp):
        work.command("no such command, and nobody asks")


def test_stages_that_are_done_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(Work, "command", lambda self, *words: said.append(words))
    work = _work(tmp_path, monkeypatch, "--drafters", "lstm", "nar", "--suites", "gsm8k")
    (tmp_path / "out").mkdir()
    for name, _ in work.stages():
        if name not in ("drafter-nar", "suite-gsm8k", "batch-2"):
            (tmp_path / "out" / f"{name}.done").touch()
    assert real_target.main() == 0
    train, run, batch = said
    assert train[:3] == ("train", "--method", "ctc")
    methods = str(run[run.index("--methods") + 1]).split(",")
    assert methods[:3] == ["autoregressive", "draft_model", "adaptive_lora"]
    assert methods[3:] == ["prompt_lookup", "suffix", "lstm", "ctc", "hybrid"]
    differing = {word for word, other in zip(batch, run, strict=True) if word != other}
    assert batch[batch.index("--batch-size") + 1] == 2 and differing == {2, 4}, "more questions, two at a time"
    assert real_target.main() == 0 and len(said) == 3


def test_runs_of_other_batches_and_of_other_questions_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(Work, "command", lambda self, *words: said.append(words))
    found = {"1-gsm8k-a": (1, 2), "2-gsm8k-b": (2, 4), "3-gsm8k-c": (1, 4)}
    monkeypatch.setattr(
        real_target, "read_manifest",
        lambda folder: SimpleNamespace(batch_size=found[folder.name][0], questions=[None] * found[folder.name][1]),
    )  # fmt: skip
    work = _work(tmp_path, monkeypatch)
    for name in found:
        (work.store / "runs" / name).mkdir(parents=True)
        (work.store / "runs" / name / "manifest.json").touch()
    work.batch(2)
    work.suite("gsm8k")
    work.batch(1)
    assert [words[:3] for words in said] == [
        ("run", "--resume", f"{place}-gsm8k-{name}") for place, name in ((2, "b"), (1, "a"), (3, "c"))
    ]


def test_where_no_page_can_be_made_the_script_says_how_to_make_it_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(self: Work, *words: object) -> None:
        raise AssertionError("a page needs duckdb and plotly")

    monkeypatch.setattr(Work, "command", refuses)
    for name in ("duckdb", "plotly"):
        monkeypatch.setitem(sys.modules, name, None)
    _work(tmp_path, monkeypatch).board()
    said = capsys.readouterr().out
    assert "duckdb and plotly not installed" in said and str(tmp_path / "out" / "store") in said
    assert "specbench results ingest --store store" in said and "specbench leaderboard --store store" in said
