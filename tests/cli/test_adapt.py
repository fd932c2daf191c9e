"""`specbench adapt` as typed: observe, look, learn, choose, hand on, delete."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.adapt.versions import AdapterStore
from tests.conftest import Ran

DRAFT = ("--model", "demo-draft")


def test_a_store_is_filled_learnt_from_looked_at_and_purged(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "adapters"))
    words = ("adapt", "collect", "demo", "--limit", "6", "--max-new-tokens", "24", "--threads", "1", *DRAFT, *store)
    ran = specbench(*words)
    assert ran.code == 0 and "positions of 6 answers" in ran.out and "specbench adapt train" in ran.out, ran.err
    ran = specbench(*words)
    assert "0 positions of 0 answers" in ran.out and "6 questions were there already" in ran.out
    stats = json.loads(specbench("adapt", "stats", "--json", *store).out)
    assert stats["num_answers"] == 6 and sum(stats["tried_at"]) == stats["num_positions"] > 30
    assert "overlap of both laws" in specbench("adapt", "stats", *store).out
    small = (
        "--set",
        "adaptive_lora.steps=2",
        "--set",
        "adaptive_lora.visits=0",
        "--set",
        "adaptive_lora.min_held_out=2",
        "--threads",
        "1",
    )
    ran = specbench("adapt", "train", *DRAFT, *small, *store)
    assert ran.code == 0 and "2 steps on" in ran.out and ("kept" in ran.out or "promoted" in ran.out), ran.err
    ran = specbench("adapt", "purge", *store)
    assert ran.code == 0 and "bytes of observed answers deleted" in ran.out
    assert "no answers" in specbench("adapt", "stats", *store).out
    ran = specbench("adapt", "train", *DRAFT, *store)
    assert ran.code == 2 and "nothing to learn from" in ran.err and "specbench adapt collect" in ran.err


def test_a_store_of_domains_names_them_to_who_would_learn_from_it(
    specbench: Callable[..., Ran], tmp_path: Path
) -> None:
    """What `collect` tells to type learns; without a domain, or with a mistyped one, the store's are named."""
    rows = [{"question_id": f"q{n}", "category": ("a b", "math")[n % 2], "turns": [f"say {n}"]} for n in range(8)]
    questions = tmp_path / "mine.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = tmp_path / "adapters"
    given = ("--threads", "1", "--set", "adaptive_lora.domains=category", *DRAFT, "--store", str(store))
    ran = specbench("adapt", "collect", str(questions), "--max-new-tokens", "8", *given)
    assert ran.code == 0 and "their domains    a b, math" in ran.out, ran.err
    [hint] = [line for line in ran.out.splitlines() if line.startswith("learn from them")]
    words = shlex.split(hint.removeprefix("learn from them"))
    assert words[-2:] == ["--domain", "a b"]
    ran = specbench("adapt", "train", *DRAFT, "--store", str(store))
    assert ran.code == 2 and "no answer is of no domain" in ran.err and "a b (4 answers), math (4 answers)" in ran.err
    assert "--domain 'a b'" in ran.err
    ran = specbench("adapt", "train", *DRAFT, "--store", str(store), "--domain", "mth")
    assert ran.code == 2 and "no answer is of domain 'mth'" in ran.err and "did you mean 'math'?" in ran.err
    small = ("--threads", "1", "--set", "adaptive_lora.steps=1", "--set", "adaptive_lora.min_held_out=2")
    ran = specbench(*words[1:], *small)
    assert ran.code == 0 and "1 steps on" in ran.out, ran.err


def _with_versions(folder: Path) -> AdapterStore:
    from tests.adapt.test_adapter_files import _adapter

    store = AdapterStore(folder)
    store.add(_adapter(seed=1))
    store.add(_adapter(seed=2))
    return store


def test_the_list_says_what_answers_a_held_out_acceptance_is_of(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    """Versions from before they said it are listed as they were."""
    store = _with_versions(tmp_path / "adapters")
    shown = {"before": 0.5, "after": 0.6}
    for number, figures in (
        (1, shown),
        (2, {**shown, "temperature": 0.7, "rule": "rejection", "draft": "sampled"}),
    ):
        file = store.path(number) / "lineage.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "figures": figures}))
    ran = specbench("adapt", "ls", "--store", str(store.folder))
    assert ran.code == 0, ran.err
    first, second = (line for line in ran.out.splitlines() if "0.5000 → 0.6000" in line)
    assert "T 0.7, rejection, sampled" in second and "rejection" not in first and "T 0" not in first


def test_an_unknown_rule_names_the_nearest(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    ran = specbench("adapt", "train", *DRAFT, "--store", str(tmp_path), "--rule", "reject")
    assert ran.code == 2 and "--rule" in ran.err and "rejection" in ran.err


def test_versions_are_listed_chosen_rolled_back_and_exported(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    store = _with_versions(tmp_path / "adapters")
    where = ("--store", str(store.folder))
    assert specbench("adapt", "activate", "1", *where).code == specbench("adapt", "activate", "2", *where).code == 0
    listed = json.loads(specbench("adapt", "ls", "--json", *where).out)
    assert [(each["version"], each["active"]) for each in listed] == [(1, False), (2, True)]
    assert "2*" in specbench("adapt", "ls", *where).out
    lineage = store.path(1) / "lineage.json"
    whole = lineage.read_bytes()
    lineage.write_bytes(whole[:9])
    ran = specbench("adapt", "ls", *where)
    assert ran.code == 0 and "2*" in ran.out and "version 1: lineage.json cannot be read" in ran.err
    lineage.write_bytes(whole)
    assert "version 1 is drafted with" in specbench("adapt", "rollback", *where).out
    assert "no adapter is drafted with" in specbench("adapt", "rollback", *where).out
    assert specbench("adapt", "rollback", *where).code == 2
    out = tmp_path / "out"
    assert specbench("adapt", "export", "2", "-o", str(out), *where).code == 0
    assert (out / "adapter_model.safetensors").is_file() and (out / "adapter_config.json").is_file()
    assert specbench("adapt", "export", "2", "-o", str(out), *where).code == 2
    assert specbench("adapt", "purge", "--all", *where).code == 0 and store.numbers() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("adapt", "collect", "demo", "--target", "other"), "no draft model was named"),
        (("adapt", "train", *DRAFT, "--set", "suffix.depth=3"), "the command is about adaptive_lora"),
        (("adapt", "train", *DRAFT, "--set", "adaptive_lora.stepz=3"), "did you mean 'steps'"),
        (("adapt", "activate", "3"), "no adapter version 3"),
        (("adapt", "purge"), "no adapter store at"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_type(
    specbench: Callable[..., Ran], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ran = specbench(*words, "--store", str(tmp_path / "none"))
    assert ran.code == 2 and said in ran.err, ran.err
