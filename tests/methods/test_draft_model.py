"""draft_model: what it loads, whom it refuses, and how much drafting with the target's noise is worth."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, VOCAB, NoDrafter, plain_logits, requests_for, tiny_lm, tiny_model
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from methods.draft_model.drafter import build
from specbench import registry
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.lm import attention, load
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_tree import TreeDrafter
from specbench.lm.load import load_lm
from specbench.lm.vocabulary import SharedVocabulary, Vocabulary, compare
from specbench.method import Request, Rule
from specbench.sampling import Sampling, sequence_key


def _options(**given: Any) -> dict[str, Any]:
    return registry.check_options(registry.card("draft_model"), given)


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])))


def _compare(target_words: list[str], target_size: int, draft_words: list[str], draft_size: int) -> SharedVocabulary:
    return compare(
        Vocabulary(name="target", tokenizer=_tokenizer(target_words), size=target_size),
        Vocabulary(name="draft", tokenizer=_tokenizer(draft_words), size=draft_size),
    )


def test_the_same_tokens_and_sizes_are_identical() -> None:
    assert _compare(["a", "b", "c"], 4, ["a", "b", "c"], 4) == SharedVocabulary(kind="identical", num_shared=4)


@pytest.mark.parametrize(
    ("target_words", "target_size", "draft_words", "draft_size", "num_shared"),
    [
        (["a", "b", "c"], 8, ["a", "b", "c"], 4, 4),
        (["a", "b", "c"], 4, ["a", "b", "c"], 8, 4),
        (["a", "b", "c", "d"], 4, ["a", "b", "c"], 3, 3),
        (["a", "b", "c"], 8, ["a", "b", "c", "d"], 8, 3),
    ],
)
def test_a_prefix_is_padded_and_only_what_both_know_is_shared(
    target_words: list[str], target_size: int, draft_words: list[str], draft_size: int, num_shared: int
) -> None:
    found = _compare(target_words, target_size, draft_words, draft_size)
    assert found == SharedVocabulary(kind="padded", num_shared=num_shared)


def test_another_vocabulary_is_refused_with_the_first_token_that_differs() -> None:
    with pytest.raises(UsageError, match="id 1 is 'x' against 'b'"):
        _compare(["a", "b", "c"], 3, ["a", "x", "y"], 3)


def test_without_tokenizers_equal_sizes_are_believed_and_others_refused() -> None:
    nothing = Vocabulary(name="t", tokenizer=None, size=8)
    assert compare(nothing, nothing).kind == "identical"
    with pytest.raises(UsageError, match="9 ids against 8"):
        compare(nothing, Vocabulary(name="d", tokenizer=None, size=9))


def test_a_folder_is_loaded_in_the_targets_dtype_and_keeps_the_text(tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    engine = Engine(tiny_lm(), sampling=Sampling(temperature=1.0), max_batch=4, max_len=100, max_nodes=8)
    drafter = build(_options(model=str(tmp_path)), engine.view())
    assert drafter.max_nodes == 4
    assert drafter.num_parameters() == sum(parameter.numel() for parameter in engine.lm.model.parameters())
    requests = requests_for()
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected


def _built_for(name: str, folder: Path, lm: CachedLM) -> ChainDrafter:
    engine = Engine(lm, sampling=Sampling(), max_len=64, max_nodes=8)
    options = registry.check_options(registry.card(name), {"model": str(folder)})
    drafter = registry.load(name)(options, engine.view())
    assert isinstance(drafter, ChainDrafter)
    return drafter


def _attention_of(drafter: ChainDrafter) -> str:
    return str(drafter._lm.model.config._attn_implementation)


@pytest.mark.parametrize("name", ["draft_model", "adaptive_lora"])
def test_a_draft_model_attends_as_the_run_asks_its_target_to(name: str, tmp_path: Path) -> None:
    """One side through the reference and the other through a kernel would be a comparison of attentions."""
    for part, family in (("target", "llama"), ("draft", "qwen2")):
        model = tiny_model(family, attention_name="eager")
        model.generation_config = GenerationConfig()
        model.save_pretrained(tmp_path / part)
    for asked, used in (("plain", attention.PLAIN), ("sdpa", attention.SDPA), ("auto", attention.SDPA)):
        lm = load_lm(str(tmp_path / "target"), device=CPU, dtype=torch.float64, attention_name=asked)
        assert _attention_of(_built_for(name, tmp_path / "draft", lm)) == used


@pytest.mark.parametrize("name", ["draft_model", "adaptive_lora"])
def test_automatic_attention_is_decided_for_the_draft_model_by_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may be right in the target's shapes and wrong in the draft's; the row says so."""

    def why_wrong(config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype) -> str:
        return "the Triton kernel is wrong here: 0.3 off" if config.model_type == "qwen2" else ""

    def as_on_a_card(asked: str, *, device: torch.device, **shape: Any) -> load.PickedAttention:
        return picked(asked, device=torch.device("cuda", 0), **shape)

    picked = load.pick_attention
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("specbench.lm.kernel_check.why_wrong", why_wrong)
    monkeypatch.setattr(load, "pick_attention", as_on_a_card)
    spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "triton" else spec(name))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": VOCAB}
    for model, used, said in (
        (tiny_model("llama"), attention.TRITON, ""),
        (tiny_model("qwen2"), attention.SDPA, "the Triton kernel is wrong here: 0.3 off"),
        (
            tiny_model(config=CONFIG_MAPPING["stablelm"](**shape, num_attention_heads=4, num_key_value_heads=2)),
            attention.SDPA,
            "the kernel was never tested with stablelm",
        ),
    ):
        folder = tmp_path / model.config.model_type
        model.generation_config = GenerationConfig()
        model.save_pretrained(folder)
        drafter = _built_for(name, folder, tiny_lm(dtype=torch.float32))
        assert _attention_of(drafter) == used
        notes = [note.partition("its draft model: attends through torch's SDPA: ") for note in drafter.notes]
        assert "".join(said_of for _, _, said_of in notes).startswith(said) and len(notes) == bool(said)


def test_a_draft_model_of_another_size_without_tokenizers_is_refused(tmp_path: Path) -> None:
    tiny_model(vocab_size=40).save_pretrained(tmp_path)
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=64, max_nodes=8)
    with pytest.raises(UsageError, match="has another vocabulary than target tiny-llama"):
        build(_options(model=str(tmp_path)), engine.view())


def test_adaptive_reserves_room_for_its_longest_chain(tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=64, max_nodes=8)
    drafter = build(_options(model=str(tmp_path), adaptive="true", max_tokens=7), engine.view())
    assert (drafter.max_nodes, drafter.carries) == (7, "stream")


def _built(folder: Path, **given: Any) -> ChainDrafter:
    tiny_model(seed=1).save_pretrained(folder)
    engine = Engine(tiny_lm(), sampling=Sampling(temperature=1.0), max_len=64, max_nodes=8)
    drafter = build(_options(model=str(folder), **given), engine.view())
    assert isinstance(drafter, ChainDrafter)
    return drafter


def test_one_beam_is_a_chain_and_several_are_a_tree_within_the_budget(tmp_path: Path) -> None:
    plain = _built(tmp_path)
    assert type(plain) is ChainDrafter and plain.max_nodes == 4, "the default drafts what it always did"
    assert type(_built(tmp_path, branch=3)) is ChainDrafter
    assert _built(tmp_path, max_nodes=3).max_nodes == 3, "a chain's best nodes are its first ones"
    assert _built(tmp_path, adaptive=True, max_nodes=3).max_nodes == 3
    shapes = {(3, 0, 0): 12, (3, 2, 0): 2 + 3 + 3 + 3, (3, 0, 7): 7, (2, 0, 99): 8}
    for (width, branch, budget), nodes in shapes.items():
        drafter = _built(tmp_path, beam_width=width, branch=branch, max_nodes=budget)
        assert type(drafter) is TreeDrafter and drafter.max_nodes == nodes and drafter.capturable


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"adaptive": True}, "draft_model.adaptive", "the length of a chain"),
        ({"draft": "sampled"}, "draft_model.draft", "picked, not drawn"),
    ],
)
def test_what_only_a_chain_can_do_is_refused_with_what_to_type(
    tmp_path: Path, given: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        _built(tmp_path, beam_width=3, **given)
    assert caught.value.where == where and "--set draft_model.beam_width=1" in caught.value.try_


def _alpha(target: CachedLM, draft: CachedLM, *, picks: str, rule: Rule, prompts: list[tuple[int, ...]]) -> float:
    engine = Engine(
        target, sampling=Sampling(temperature=1.0), rule=rule, max_batch=len(prompts), max_len=200, max_nodes=4
    )
    drafter = ChainDrafter(draft, engine.view(), num_tokens=4, num_shared=105, picks=picks)  # type: ignore[arg-type]
    accepted = tried = 0
    for answer in engine.generate(drafter, requests_for(prompts, max_new_tokens=120)).generations:
        for step in answer.steps:
            if not step.num_truncated:
                accepted += step.num_accepted
                tried += min(step.num_accepted + 1, step.num_nodes)
    return accepted / tried


def _best_for_one_child(target: CachedLM, draft: CachedLM, prompts: list[tuple[int, ...]]) -> float:
    """Mean of sum_v min(p, q) over the target's own texts, from plain full forwards: no one-child rule accepts more."""
    engine = Engine(target, sampling=Sampling(temperature=1.0), max_batch=len(prompts), max_len=200)
    overlaps = []
    requests = requests_for(prompts, max_new_tokens=120)
    for request, generation in zip(requests, engine.generate(NoDrafter(), requests).generations, strict=True):
        answer = generation.tokens
        p, q = (
            plain_logits(lm, [*request.prompt, *answer])[len(request.prompt) :].softmax(-1) for lm in (target, draft)
        )
        overlaps.append(torch.minimum(p, q).sum(-1))
    return float(torch.cat(overlaps).mean())


@pytest.mark.slow
def test_drafting_with_the_same_noise_accepts_nearly_the_optimum_on_real_models(shared: Path) -> None:
    """T = 1. Without the noise a greedy draft loses a tenth, and an independent draw is worth least of all."""
    target, draft = (
        load_lm(str(shared / "models" / name), device=torch.device("cpu"), dtype=torch.float32)
        for name in ("babyllama-tok105", "babyllama-tok361-on-tok105")
    )
    assert target.tokenizer is not None
    starts = ("Once upon a time", "Tom and Sue", "One day", "The little dog", "Lily had a", "It was")
    prompts = [tuple(target.tokenizer(text)["input_ids"]) for text in starts]
    best = _best_for_one_child(target, draft, prompts)
    same_noise = _alpha(target, draft, picks="shared-noise", rule="coupled", prompts=prompts)
    greedy = _alpha(target, draft, picks="greedy", rule="coupled", prompts=prompts)
    independent = _alpha(target, draft, picks="sampled", rule="coupled", prompts=prompts)
    sampled = _alpha(target, draft, picks="sampled", rule="rejection", prompts=prompts)
    print(
        f"optimum {best:.3f}, same noise {same_noise:.3f}, greedy {greedy:.3f}, "
        f"independent {independent:.3f}, speculative sampling {sampled:.3f}"
    )
    # Some 700 positions are tried: 0.05 is four standard errors.
    assert same_noise == pytest.approx(best, abs=0.05)
    assert sampled == pytest.approx(best, abs=0.05)
    assert same_noise > greedy + 0.05
    assert greedy > independent


def test_speculative_sampling_has_the_targets_law() -> None:
    """Tokens 2 and 3 of an answer, against the law enumerated from the target's own forwards."""
    vocab, num_rows, num_groups, prompt = 5, 64, 48, (1, 2, 0)
    lm = tiny_lm(vocab_size=vocab, eos_token_id=None, scale=1.5)
    draft = CachedLM(tiny_model(seed=9, vocab_size=vocab, eos_token_id=None, scale=1.5), name="draft")
    engine = Engine(
        lm, sampling=Sampling(temperature=1.0), rule="rejection", max_batch=num_rows, max_len=16, max_nodes=2
    )
    drafter = ChainDrafter(draft, engine.view(), num_tokens=2, num_shared=vocab, picks="sampled")
    counts = torch.zeros(vocab, vocab, dtype=torch.float64)
    for group in range(num_groups):
        requests = [
            Request(key=sequence_key(seed=group, question_id=str(row), turn=0), prompt=prompt, max_new_tokens=3)
            for row in range(num_rows)
        ]
        for answer in engine.generate(drafter, requests).generations:
            counts[answer.tokens[1], answer.tokens[2]] += 1
    law = torch.zeros(vocab, vocab, dtype=torch.float64)
    for first, second, third in itertools.product(range(vocab), repeat=3):
        logp = plain_logits(lm, [*prompt, first, second, third]).log_softmax(-1)
        law[second, third] += (logp[2, first] + logp[3, second] + logp[4, third]).exp()
    expected = law / law.sum() * counts.sum()
    assert float(expected.min()) > 5
    assert chisquare(counts.flatten().numpy(), expected.flatten().numpy()).pvalue > 1e-3
