"""Adapters in a conversation, as typed into a pipe: learnt between answers, trained, loaded, set aside, refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from specbench.adapt.domains import domain_of
from specbench.adapt.versions import AdapterStore
from tests.bench.conftest import save_tiny_target
from tests.conftest import Ran

SMALL = {"rank": 4, "batch": 4, "steps": 6, "lr": 0.02, "min_held_out": 2, "top_k": 16, "round_s": 0, "num_tokens": 3}

Chat = Callable[..., Ran]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_tiny_target(tmp_path_factory.mktemp("target")), save_tiny_target(
        tmp_path_factory.mktemp("draft"), seed=5
    )


@pytest.fixture
def chat(specbench: Callable[..., Ran], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """chat("line", …, method=…, option=value) -> what the lines came to."""
    target, draft = models

    def talk(*lines: str, method: str = "adaptive_lora", **options: object) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(line + "\n" for line in lines).encode())))
        words = ["chat", "--target", str(target), "--method", method, "--max-new-tokens", "16", "--temperature", "1"]
        words += ["--dtype", "float64", "--threads", "1"]
        if method == "adaptive_lora":
            for name, value in {"model": draft, **SMALL, **options}.items():
                words += ["--set", f"adaptive_lora.{name}={value}"]
        ran = specbench(*words)
        assert ran.code == 0, ran.err
        return ran

    return talk


QUESTIONS = tuple(f"{number} say {'abcdef'[number % 6]}" for number in range(8))


def test_an_adapter_is_learnt_between_answers_and_changes_none_of_them(chat: Chat, tmp_path: Path) -> None:
    """What is said is the target's own, whatever was learnt; the store holds what was observed, and its versions."""
    store = tmp_path / "store"
    plain = chat(*QUESTIONS, method="autoregressive")
    lines = ("/adapter-info", *QUESTIONS, "/stats", "/train", "/adapter-info")
    ran = chat(*lines, adapt="on", store=store, after_positions=30, margin=0)
    assert ran.out == plain.out
    assert "learning from the answers so far (" in ran.err and "new positions) …" in ran.err
    assert ran.err.count(" is drafted with") >= 1
    first, last = ran.err.index("0 rounds of learning so far"), ran.err.rindex("rounds of learning so far")
    assert first < last and f"store {store}" in ran.err
    assert "adapter: " in ran.err and "moving acceptance 0." in ran.err and "it learns between answers" in ran.err
    assert list(AdapterStore(store).rows.read()), "observed answers are in the store"
    with AdapterStore(store).writing():
        pass


def test_versions_are_loaded_and_set_aside(chat: Chat, models: tuple[Path, Path], tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    for seed in (1, 2):
        store.add(an_adapter(models[1], seed=seed))
    question = QUESTIONS[0]
    asked = (
        question,
        "/load 2",
        question,
        "/stats",
        "/unload",
        "/load 1",
        "/adapter-info",
        "/load 7",
        "/load x",
        "/unload",
    )
    told: dict[str, Ran] = {}
    for adapt in ("on", "off"):
        told[adapt] = chat(*asked, adapt=adapt, store=store.folder)
        said = told[adapt].err
        assert "version 2 is drafted with" in said and "no adapter is drafted with" in said
        assert "version 1 is drafted with" in said and "no adapter version 7 here" in said
        assert "'x' is no version" in said and "versions 1" in said
    assert told["on"].out == told["off"].out == chat(question, question, method="autoregressive").out
    assert "adapter: version 2" in told["on"].err and "drafts with adapter 0002; it does not learn" in told["off"].err
    assert store.active() == 0, "set aside last, so nothing is drafted with next time"
    again = chat("/unload", "/load 1", adapt="on")
    assert "no adapter is drafted with" in again.err and "no adapter store is named" in again.err


def test_a_conversation_learns_on_from_those_before_it(chat: Chat, tmp_path: Path) -> None:
    """Answers to judge by add up over conversations, and so do the steps of a candidate."""
    given = {"adapt": "on", "store": tmp_path / "store", "after_positions": 0, "min_held_out": 99}
    first = chat(*QUESTIONS[:4], "/train", **given)
    assert "99 are needed to judge: it learns on" in first.err
    [candidate] = (tmp_path / "store" / "candidates").iterdir()
    before = candidate.read_bytes()
    second = chat("/adapter-info", *QUESTIONS[4:6], "/train", "/adapter-info", **given)
    info = [line for line in second.err.splitlines() if line.startswith("observed: ")]
    assert not info[0].startswith("observed: 0 positions") and ", 0 of them not learnt from" in info[0]
    assert candidate.read_bytes() != before
    with safe_open(candidate, framework="pt") as file:
        assert json.loads(file.metadata()["candidate"])["num_updates"] >= 2
    again = chat("/train", **given)
    assert "kept: " in again.err and "nothing new to learn from" not in again.err


def test_under_another_system_prompt_another_adapter_is_learnt_and_chosen(
    chat: Chat, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """What one conversation shows is nothing to the other, and a version is loaded for its own prompts alone."""
    store = AdapterStore(tmp_path / "store")
    store.add(an_adapter(models[1], seed=1))
    given = {"adapt": "on", "store": store.folder, "domains": "system", "after_positions": 0}
    terse = domain_of("system", system="Be terse.")
    lines = (
        '/set system="Be terse."',
        QUESTIONS[0],
        "/load 1",
        "/adapter-info",
        '/set system="Be kind."',
        "/adapter-info",
    )
    told = chat(*lines, "/train", QUESTIONS[1], "/adapter-info", **given).err
    own, other, after = (part for part in told.split("adapter: ")[1:])
    assert own.startswith("version 1") and terse in own and "observed: 0 positions" not in own
    assert "version 1* in " in own and "version 1 in " in other, "the star is at what this prompt is drafted with"
    assert other.startswith("none") and terse not in other and "observed: 0 positions" in other
    assert "nothing new to learn from" in other, "what /train says: its own prompts showed nothing yet"
    assert after.startswith("none") and "observed: 0 positions" not in after
    assert store.active(terse) == 1 and store.active() == 0
    assert {each.domain for each in store.rows.read()} == {terse, domain_of("system", system="Be kind.")}


def test_the_version_that_a_system_prompt_is_drafted_with_is_starred_though_nothing_learns(
    chat: Chat, models: tuple[Path, Path], tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "store")
    for seed in (1, 2):
        store.add(an_adapter(models[1], seed=seed))
    store.activate(1)
    store.activate(2, domain_of("system", system="Be terse."))
    lines = ("/adapter-info", '/set system="Be terse."', QUESTIONS[0], "/adapter-info")
    told = chat(*lines, store=store.folder, domains="system").err
    assert [told.count(words) for words in ("versions 1*, 2", "versions 1, 2*")] == [1, 1]
    assert told.index("versions 1*, 2") < told.index("versions 1, 2*")


def test_another_process_at_the_store_is_refused_and_its_shape_as_well(
    chat: Chat, models: tuple[Path, Path], tmp_path: Path, specbench: Callable[..., Ran]
) -> None:
    store = AdapterStore(tmp_path / "store")
    store.add(an_adapter(models[1], seed=1, rank=2))
    ran = chat("/load 1", adapt="on", store=store.folder)
    assert "another shape (rank 2)" in ran.err and "adapt=off" in ran.err
    with store.writing():
        ran = chat(f"/set adaptive_lora.store={store.folder}", "/adapter-info", adapt="on")
        assert "is adapting here already" in ran.err and "kept in memory alone" in ran.err


@pytest.mark.parametrize("command", ["/train", "/load 1", "/unload", "/adapter-info"])
def test_a_method_without_adapters_says_so(chat: Chat, command: str) -> None:
    ran = chat(command, method="prompt_lookup")
    assert "method 'prompt_lookup' drafts with no adapter" in ran.err and "/method adaptive_lora" in ran.err


def test_training_says_what_is_missing(chat: Chat) -> None:
    off = chat("/train", "/adapter-info", adapt="off")
    assert "nothing is observed" in off.err and "/set adaptive_lora.adapt=on" in off.err
    assert "adapter: none; it does not learn" in off.err
    assert "nothing new to learn from: 0 positions" in chat("/train", adapt="on").err


def an_adapter(draft: Path, *, seed: int, rank: int = 4) -> object:
    import torch

    from specbench.adapt.adapter import Adapter, Lineage
    from specbench.adapt.lora import LoraLayers, LoraShape
    from specbench.lm.load import load_lm
    from tests.adapt.adapted import noisy_weights

    lm = load_lm(str(draft), device=torch.device("cpu"), dtype=torch.float64)
    shape = LoraShape(rank=rank, alpha=32.0, targets=("all-linear",))
    weights = noisy_weights(LoraLayers(lm.model, shape, seed=seed), seed=seed, size=0.1)
    return Adapter(shape=shape, weights=weights, lineage=Lineage(base=lm.name, base_hash=lm.weights_hash))


def test_what_was_observed_without_a_store_outlives_another_temperature(chat: Chat) -> None:
    """Laws are the models' own, before any processor, so they are as good at another one."""
    ran = chat(
        *QUESTIONS[:2], "/adapter-info", "/set temperature=0.7", "/adapter-info",
        "/set adaptive_lora.num_tokens=2", "/adapter-info", adapt="on", after_positions=0,
    )  # fmt: skip
    first, second, third = [row for row in ran.err.splitlines() if "observed: " in row]
    assert "observed: 0 " not in first and second == first
    assert "observed: 0 " in third and "remembered of this conversation is gone, its adapter with it" in ran.err
