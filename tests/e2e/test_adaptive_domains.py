"""The two-domain experiment on models of a few thousand numbers: pairing, alternation, resuming, the table's sums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import adaptive_domains
from benchmarks.adaptive_stream import observe, told
from methods.adaptive_lora.drafter import build
from specbench import registry
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.load import load_lm
from specbench.method import Request
from specbench.sampling import Sampling
from tests.bench.conftest import save_tiny_target

SMALL = ("after_positions=20", "steps=4", "lr=0.02", "batch=4", "min_held_out=2", "top_k=16", "round_s=0", "rank=4")


def _questions(path: Path, words: str, number: int) -> Path:
    rows = [{"prompt": f"{place} {words} {'abcdef'[place % 6]}"} for place in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole experiment: two domains, two seeds."""
    folder = tmp_path_factory.mktemp("domains")
    adaptive_domains.main(_words(folder))
    return folder / "out"


def _words(folder: Path) -> list[str]:
    target, draft = folder / "target", folder / "draft"
    if not target.exists():
        save_tiny_target(folder / "target")
        save_tiny_target(folder / "draft", seed=5)
        for name, words in (("sums", "plus"), ("words", "say")):
            _questions(folder / f"{name}.jsonl", words, 10)
            _questions(folder / f"{name}-held.jsonl", f"now {words}", 4)
    words = ["--target", str(target), "--draft", str(draft), "--out", str(folder / "out"), "--seeds", "0,1"]
    for name in ("sums", "words"):
        words += ["--domain", f"{name}={folder / name}.jsonl,{folder / name}-held.jsonl"]
    words += ["--max-new-tokens", "12", "--every", "10", "--temperature", "1"]
    return words + [part for item in SMALL for part in ("--set", item)]


def test_both_arms_see_the_same_and_begin_from_the_draft_model(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "domains.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["seed"], row["set"]) for row in rows} == {
        (arm, seed, name) for arm in ("one", "each") for seed in (0, 1) for name in ("sums", "words")
    }
    for name in ("sums", "words"):
        first = [row for row in rows if row["answers"] == 0 and row["set"] == name]
        assert len({(tuple(row["accepted"]), tuple(row["tried"])) for row in first}) == 1, "nothing is learnt yet"
    last = max(row["answers"] for row in rows)
    ends = {(row["arm"], row["seed"], row["set"]): row for row in rows if row["answers"] == last}
    for seed in (0, 1):
        apart = [ends["each", seed, name]["positions"] for name in ("sums", "words")]
        together = ends["one", seed, "sums"]["positions"]
        # Two arms draft differently once one has learnt, so their observed positions need not be equal in number.
        assert min(apart) > 0 and max(apart) < together == ends["one", seed, "words"]["positions"]


def test_a_finished_experiment_is_not_run_again_and_its_table_is_its_counts(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (out / "domains.jsonl").read_text()
    monkeypatch.setattr(adaptive_domains, "run_arm", lambda *_: pytest.fail("it was done already"))
    adaptive_domains.main(_words(out.parent))
    assert (out / "domains.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    last = max(row["answers"] for row in rows)
    mine = [row for row in rows if (row["arm"], row["set"], row["answers"]) == ("each", "sums", last)]
    rate = sum(sum(row["accepted"]) for row in mine) / sum(sum(row["tried"]) for row in mine)
    [line] = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| sums | 2 |")]
    assert f"| {rate:.4f} |" in line and line.count("[") == 3


def test_counts_of_other_conditions_are_never_mixed(out: Path) -> None:
    with pytest.raises(SystemExit, match="rank was 4, now 8"):
        adaptive_domains.main([*_words(out.parent), "--set", "rank=8"])
    with pytest.raises(SystemExit, match=r"temperature was '1\.0', now '0\.0'"):
        adaptive_domains.main([*_words(out.parent), "--temperature", "0"])


@pytest.mark.parametrize("per_answer", [5, 64])
def test_what_a_replay_learns_from_is_what_decoding_would_have_observed(out: Path, per_answer: int) -> None:
    """The same positions, depths and drafts; the target's laws are those that were recorded."""
    arguments = adaptive_domains.parsed(_words(out.parent))
    arguments.temperature = 0.0
    kind = {"device": torch.device("cpu"), "dtype": torch.float32}
    target, draft = load_lm(arguments.target, **kind), load_lm(arguments.draft, **kind)
    prompts = [tuple(range(3 + seed, 9 + seed)) for seed in range(4)]
    on = Engine(target, sampling=Sampling(), max_batch=1, max_len=40, max_nodes=8, stop=Stop(ids=frozenset()))
    given = {"model": arguments.draft, "num_tokens": 4, "adapt": True, "per_answer": per_answer, "top_k": 16}
    drafter = build(registry.check_options(registry.card("adaptive_lora"), given), on.view())
    assert drafter.adaptation is not None and drafter.adaptation.collector is not None
    num = 0
    for prompt in prompts:
        request = Request(key=1, prompt=prompt, max_new_tokens=12)
        [generation] = on.generate(drafter, [request]).generations
        [seen] = drafter.adaptation.collector.settle()
        replayed, _ = observe(draft, told(target, prompt, generation.tokens), arguments, per_answer=per_answer)
        for name in ("position_N", "depth_N", "drafted_N"):
            assert getattr(replayed, name).tolist() == getattr(seen, name).tolist()
        num += seen.num_positions
    assert num >= 8


def test_domains_take_turns_in_a_seeded_order(out: Path) -> None:
    streams, held_out = adaptive_domains.answered(adaptive_domains.parsed(_words(out.parent)))
    orders = {seed: adaptive_domains.alternating(streams, seed=seed) for seed in (0, 0, 1)}
    assert [answer.domain for answer in orders[0]] == ["sums", "words"] * (len(orders[0]) // 2)
    digests = {seed: [answer.prompt_digest() for answer in order] for seed, order in orders.items()}
    assert digests[0] != digests[1] and sorted(digests[0]) == sorted(digests[1])
    held = {answer.prompt_digest() for answers in held_out.values() for answer in answers}
    assert not held & set(digests[0])
