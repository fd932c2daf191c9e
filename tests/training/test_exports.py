"""Drafters that the runner really made, for other programs and for the Hub: they name their target and their length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training.small import Quiet, make_corpus, make_request

from specbench import checkpoint, paths, weights
from specbench.bench.request import Setting
from specbench.training import train
from specbench.training.record import target_name

EXPORTS = {
    "redrafter": ("apple", {"depth": "3", "num_layers": "1"}, "--redrafter_draft_len_per_beam 3"),
    "lstm": ("arctic", {"num_heads": "2", "inner_dim": "16"}, '"num_speculative_tokens": 2'),
    "ctc": ("eagle", {"form": "eagle", "labels": "3", "fc_bias": "false"}, '"num_speculative_tokens": 3'),
}


@pytest.mark.parametrize("method", EXPORTS)
def test_the_export_of_a_trained_drafter_names_its_target_and_its_length(
    method: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, options, said = EXPORTS[method]
    monkeypatch.setattr("specbench.lm.load.snapshot_download", lambda *_, **__: str(target))
    request = replace(
        make_request(Path("org/tiny-7B"), tmp_path, max_steps=1, method=method),
        settings=tuple(Setting(method, name, value) for name, value in options.items()),
        methods_dirs=(),
    )
    corpus = replace(make_corpus(), facts={"source": "the tests' own", "licence": "CC0 1.0"})
    outcome = train(request, Quiet(), corpus=corpus)
    assert outcome.folder is not None
    assert checkpoint.load(outcome.folder, method=method).target.name == "org/tiny-7B"
    made = weights.export_weights(outcome.folder, layout=layout, out=tmp_path / "exported")
    assert "org/tiny-7B" in made.serving and said in made.serving
    card = (tmp_path / "exported" / "README.md").read_text()
    for line in (
        "base_model: org/tiny-7B",
        '"learn": "gt"',
        "licence: CC0 1.0",
        "source: the tests' own",
        f"own greedy answers): {outcome.best['tau']:.3f}",
        "ended by max_steps behind step 1",
    ):
        assert line in card


def test_a_drafter_learnt_from_a_folder_says_its_name_and_not_where_it_lies(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(target.parent)
    assert {target_name(str(target)), target_name(target.name), target_name(f"./{target.name}")} == {target.name}
    monkeypatch.chdir(target)
    assert target_name(".") == target.name
    assert target_name("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    assert all(target_name(name) == name for name in paths.DEMO_MODELS)


def test_nothing_in_a_data_sets_name_becomes_part_of_the_card() -> None:
    facts = {"name": "a\n## b <img>", "documents": 1, "held_out": 1, "hash": "0", "licence": "`x`"}
    drafter = checkpoint.Checkpoint(
        method="lstm",
        architecture={},
        target=checkpoint.TrainedOn(name="demo", weights_hash="0", hidden_size=1, vocab_size=1),
        state={},
        training={"dataset": facts},
    )
    card = weights.model_card(drafter)
    assert "- a ## b &lt;img>: 1 documents" in card and "licence: 'x'" in card
