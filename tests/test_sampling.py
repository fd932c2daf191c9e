"""Noise that depends on (key, position, token) and nothing else, is uniform and independent; processors like
transformers'.

Statistical tests use fixed keys, so that they give the same p-value every time; each threshold is 1e-3 per test.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbench import sampling
from specbench.errors import UsageError
from specbench.sampling import (
    STREAM_ACCEPT,
    STREAM_DRAFT,
    NoiseStream,
    Sampling,
    gumbel,
    log_probs,
    process,
    rows_at_once,
    sequence_key,
    stream_keys,
    top_children,
    uniforms,
)
from tests.helpers import CPU

P_VALUE = 1e-3


def _keys(num: int, *, seed: int = 0) -> torch.Tensor:
    return torch.tensor([sequence_key(seed=seed, question_id=str(i), turn=0) for i in range(num)])


def _positions(num_rows: int, positions: list[int]) -> torch.Tensor:
    return torch.tensor(positions).expand(num_rows, -1)


# --- uniforms and Gumbel noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "positions", "size"),
    [
        (_keys(1), list(range(2000)), 50),  # one sequence, many positions
        (_keys(2000), [7], 50),  # many sequences, one position
        (_keys(1), [0], 100_000),  # one position, many tokens
        (torch.arange(2000), [3], 50),  # keys that count up: the hash must not care
    ],
    ids=["positions", "keys", "tokens", "counting keys"],
)
def test_uniforms_are_uniform(keys: torch.Tensor, positions: list[int], size: int) -> None:
    """Kolmogorov-Smirnov over all, and a chi-square over the tokens' own means."""
    u = uniforms(keys, _positions(len(keys), positions), size).double()
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > P_VALUE
    per_token = u.reshape(-1, size)
    if per_token.shape[0] >= 100:
        z = (per_token.mean(0) - 0.5) * math.sqrt(12 * per_token.shape[0])
        assert stats.chi2.sf(float((z**2).sum()), size) > P_VALUE


def test_neighbouring_positions_tokens_and_keys_are_uncorrelated() -> None:
    u = uniforms(torch.arange(40) * 3 + 1, _positions(40, list(range(50))), 40).double() - 0.5
    pairs = {
        "next position": (u[:, 1:], u[:, :-1]),
        "next token": (u[:, :, 1:], u[:, :, :-1]),
        "next key": (u[1:], u[:-1]),
        "diagonal": (u[:, 1:, 1:], u[:, :-1, :-1]),
        "antidiagonal": (u[:, 1:, :-1], u[:, :-1, 1:]),
        "squares": (u[:, 1:] ** 2 - 1 / 12, u[:, :-1] ** 2 - 1 / 12),
    }
    for name, (one, other) in pairs.items():
        z = float((one * other).mean() / (one * other).std() * math.sqrt(one.numel()))
        assert 2 * stats.norm.sf(abs(z)) > P_VALUE / len(pairs), name


def test_pairs_of_draws_fill_the_unit_square() -> None:
    """Chi-square over 10 x 10 cells of (this position, next position): independence, not only lack of correlation."""
    u = uniforms(_keys(1), _positions(1, list(range(4000))), 20)[0].double()
    cells = (u[:-1] * 10).long() * 10 + (u[1:] * 10).long()
    assert stats.chisquare(torch.bincount(cells.flatten(), minlength=100).numpy()).pvalue > P_VALUE


def test_gumbel_noise_has_its_law_and_draws_the_softmax() -> None:
    """argmax(log p + g) over 60 000 keys against p, and the noise itself against its distribution."""
    g = gumbel(_keys(2000), _positions(2000, list(range(30))), 5)
    assert stats.kstest(g.flatten().double().numpy(), "gumbel_r").pvalue > P_VALUE
    p = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01])
    drawn = torch.bincount((p.log() + g).argmax(-1).flatten(), minlength=5)
    assert stats.chisquare(drawn.numpy(), (p.double() / p.double().sum() * drawn.sum()).numpy()).pvalue > P_VALUE


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """The tail: float32 noise must keep its precision where only one draw in ten thousand decides."""
    num = 400_000
    g = gumbel(_keys(40), _positions(40, list(range(num // 40))), 2)
    p = torch.tensor([1 - 1e-4, 1e-4])
    hits = int((p.log() + g).argmax(-1).sum())
    assert stats.binomtest(hits, num, 1e-4).pvalue > P_VALUE


def test_noise_is_a_function_of_key_position_and_token_alone() -> None:
    """Row, batch, neighbours, order of positions and size of the vocabulary change nothing."""
    keys, positions = _keys(4), [5, 6, 700]
    whole = uniforms(keys, _positions(4, positions), 64)
    for row in range(4):
        torch.testing.assert_close(
            uniforms(keys[row : row + 1], _positions(1, positions), 64)[0], whole[row], atol=0, rtol=0
        )
    shuffled = uniforms(keys[[2, 0]], torch.tensor([[700, 5], [6, 5]]), 64)
    assert torch.equal(shuffled[0, 0], whole[2, 2]) and torch.equal(shuffled[1, 0], whole[0, 1])
    assert torch.equal(uniforms(keys, _positions(4, positions), 20), whole[:, :, :20])


def test_keys_tell_seeds_questions_and_turns_apart() -> None:
    keys = {
        sequence_key(seed=seed, question_id=question, turn=turn)
        for seed in (0, 1)
        for question in ("1", "11", "a/b")
        for turn in (0, 1, 11)
    }
    assert len(keys) == 18
    assert all(0 <= key < 1 << 63 for key in keys)
    assert sequence_key(seed=0, question_id="81", turn=1) == sequence_key(seed=0, question_id="81", turn=1)


def _stream(keys: list[int], *, stream: int = STREAM_ACCEPT, block: int | None = None) -> NoiseStream:
    return NoiseStream(keys, vocab_size=16, device=CPU, stream=stream, block=block)


@pytest.mark.parametrize("block", [1, 3, 8, 32])
def test_block_borders_do_not_change_the_noise(block: int) -> None:
    """Steps of random length through one text, with steps back (a new generation), at batch 1 and 3, against no
    blocks."""
    keys = [sequence_key(seed=0, question_id=name, turn=0) for name in "abc"]
    one, three = _stream(keys[:1], block=block), _stream(keys)
    for length, num in ((5, 4), (6, 4), (9, 1), (10, 7), (31, 5), (36, 40), (77, 2), (5, 3), (6, 6)):
        one.seek([length])
        three.seek([length, 3, 50])
        torch.testing.assert_close(one.ahead(num)[0], three.ahead(num)[0], atol=0, rtol=0)
        torch.testing.assert_close(one.at_depth(num)[0], three.ahead(num)[0, num - 1], atol=0, rtol=0)


def test_noise_has_the_values_it_has_always_had() -> None:
    """Texts above temperature 0 are told by their seed: when rows are hashed may change, what comes out may not."""
    stream = NoiseStream(
        [sequence_key(seed=7, question_id="81", turn=1)], vocab_size=5, device=CPU, stream=STREAM_ACCEPT
    )
    stream.seek([10])
    wanted = [
        [1.4972552061080933, -0.3626556992530823, 0.18748630583286285, -0.4927738308906555, -0.9843934774398804],
        [1.8106961250305176, -0.2521648406982422, 1.4415571689605713, 2.3392090797424316, -1.3731708526611328],
    ]
    # Bits of the hash are exact; logarithms may round differently between machines.
    torch.testing.assert_close(stream.ahead(2)[0], torch.tensor(wanted), atol=1e-6, rtol=1e-6)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the hash, which makes nothing."""
    made: list[int] = []

    def counted(keys_B: torch.Tensor, positions_BQ: torch.Tensor, size: int) -> torch.Tensor:
        made.append(positions_BQ.numel())
        return torch.zeros(1, 1, 1).expand(*positions_BQ.shape, size)

    monkeypatch.setattr(sampling, "gumbel", counted)
    return made


@pytest.mark.parametrize("vocab_size", [259, 4096, 32_000, 151_936, 300_000])
def test_one_call_of_the_hash_makes_no_more_than_a_core_s_cache_holds(vocab_size: int, hashed: list[int]) -> None:
    """Plain decoding asks for a row a step: in blocks of 32 a large vocabulary cost it ten times a row."""
    stream = NoiseStream([5], vocab_size=vocab_size, device=CPU, stream=STREAM_ACCEPT)
    for length in range(10, 74):
        stream.seek([length])
        stream.ahead(1)
    assert max(hashed) * vocab_size <= max(1 << 17, vocab_size)
    assert sum(hashed) <= 64 + 31 and (vocab_size > 4096 or len(hashed) == 2)


def test_what_is_made_ahead_is_bounded_over_a_batch_wherever_it_is_kept() -> None:
    cuda = torch.device("cuda")
    assert [rows_at_once(num, cuda) for num in (259, 32_000, 1 << 17, 1 << 20)] == [32, 32, 32, 4]
    assert [rows_at_once(151_936, cuda, num_rows=num) for num in (2, 8, 64)] == [13, 3, 1]
    assert [rows_at_once(4096, CPU, num_rows=num) for num in (1, 32, 64, 4096)] == [32, 32, 16, 1]


@pytest.mark.parametrize("depth", [0, 4, 31, 64])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_position_is_hashed_once_however_deep_the_drafts_reach(num_rows: int, depth: int, hashed: list[int]) -> None:
    """A drafter asks for the positions ahead in every step, plain decoding never: hashing them again is a cost that
    falls on drafts alone."""
    stream = _stream(list(range(num_rows)), block=1)
    lengths, committed = [10 + row for row in range(num_rows)], 0
    for step in range(60):
        stream.seek(lengths)
        for at in range(1, depth + 1):
            stream.at_depth(at)
        stream.ahead(depth + 1)
        kept = [1 + (step + row) % 3 if depth else 1 for row in range(num_rows)]
        committed += sum(kept)
        lengths = [length + num for length, num in zip(lengths, kept, strict=True)]
    assert sum(hashed) <= committed + num_rows * (depth + 1)


@pytest.mark.parametrize("block", [None, 1, 5])
def test_noise_that_is_kept_is_the_noise_of_its_position(block: int | None) -> None:
    """Ragged walks, depth by depth or at once, rows that leave, steps back: every value against the hash itself, again
    after the next steps, as a drafter may still hold what it was handed."""
    rng = random.Random(0)
    keys = [sequence_key(seed=0, question_id=name, turn=0) for name in "abc"]
    stream, held = _stream(keys, block=block), []
    lengths, live = [5, 40, 9], [0, 1, 2]
    for step in range(150):
        if step in (60, 110):
            leaves = rng.randrange(len(live))
            kept = [place for place in range(len(live)) if place != leaves]
            stream.keep(kept)
            lengths, live = [lengths[place] for place in kept], [live[place] for place in kept]
        stream.seek(lengths)
        num = rng.choice([1, 2, 5, 11, 40])
        by_depth = [stream.at_depth(at) for at in range(1, num + 1)] if step % 2 else []
        found = torch.stack(by_depth, dim=1) if by_depth else stream.ahead(num)
        noise_keys = torch.tensor(stream_keys([keys[row] for row in live], STREAM_ACCEPT))
        held.append((found, gumbel(noise_keys, torch.tensor(lengths)[:, None] + torch.arange(num), 16)))
        lengths = [max(length + rng.choice([-3, 0, 1, 1, 2, 6, 50]), 1) for length in lengths]
    for found, wanted in held:
        assert torch.equal(found, wanted)


def test_depth_one_below_the_root_is_the_position_after_it() -> None:
    """The same position reached from two roots carries the same noise: a token's noise does not know who drafted it."""
    stream = _stream([sequence_key(seed=0, question_id="a", turn=0)])
    stream.seek([10])
    third = stream.at_depth(3).clone()
    stream.seek([12])
    assert torch.equal(stream.at_depth(1), third)


def test_rows_that_stay_keep_their_noise() -> None:
    keys = [sequence_key(seed=0, question_id=name, turn=0) for name in "abcd"]
    stream, fresh = _stream(keys), _stream([keys[1], keys[3]])
    stream.seek([4, 5, 6, 7])
    before = stream.ahead(3).clone()
    stream.keep([1, 3])
    fresh.seek([5, 7])
    assert torch.equal(stream.ahead(3), fresh.ahead(3)) and torch.equal(stream.ahead(3), before[[1, 3]])
    stream.keep([1])
    assert torch.equal(stream.ahead(3), before[3:])


def test_the_drafts_stream_is_independent_of_the_acceptance() -> None:
    keys = [sequence_key(seed=0, question_id=str(i), turn=0) for i in range(500)]
    one, other = _stream(keys), _stream(keys, stream=STREAM_DRAFT)
    for stream in (one, other):
        stream.seek([8] * 500)
    a, b = one.ahead(4).flatten().double().numpy(), other.ahead(4).flatten().double().numpy()
    assert stats.pearsonr(a, b).pvalue > P_VALUE


def test_the_best_children_are_the_largest_perturbed_scores() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    noise = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    assert top_children(scores, None, 1).tolist() == [[1]]
    assert top_children(scores, None, 3).tolist() == [[1, 3, 2]]
    assert top_children(scores, noise, 2).tolist() == [[0, 1]]
    assert top_children(scores[:, None].expand(1, 2, 4), noise[:, None], 1).shape == (1, 2, 1)


# --- processors ----------------------------------------------------------------------------------------------------

_SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=500),
    Sampling(temperature=1.0, top_p=0.3),
    Sampling(temperature=1.0, top_p=0.95),
    Sampling(temperature=2.0, min_p=0.2),
    Sampling(temperature=1.0, repetition_penalty=1.7),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    Sampling(temperature=1.5, top_k=9, top_p=0.5, repetition_penalty=0.6),
]


def _transformers_scores(logits: torch.Tensor, context: list[int], sampling: Sampling) -> torch.Tensor:
    """transformers' own processors in the order its `generate` builds them."""
    each = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        each.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0.0, 1.0):
        each.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        each.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        each.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        each.append(MinPLogitsWarper(sampling.min_p))
    ids = torch.tensor([context]).expand(logits.shape[0], -1)
    scores: torch.Tensor = each(ids, logits.clone())
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling", _SAMPLINGS, ids=str)
def test_processors_give_what_transformers_gives(sampling: Sampling, dtype: torch.dtype) -> None:
    """Random logits of several spreads; the same tokens survive and the laws agree."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 64, generator=generator, dtype=torch.float64).to(dtype) * torch.linspace(0.2, 8, 200)[
        :, None
    ].to(dtype)
    context = [3, 9, 9, 60, 0]
    seen = torch.zeros(64, dtype=torch.bool)
    seen[context] = True
    ours = process(logits, sampling, seen.expand(200, -1))
    theirs = _transformers_scores(logits, context, sampling)
    assert ours.dtype == dtype
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(log_probs(ours).exp(), theirs.softmax(-1), atol=1e-6, rtol=1e-5)


def test_greedy_keeps_the_penalty_and_drops_the_filters() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[True, False, True]])
    sampling = Sampling(temperature=0.0, top_k=1, top_p=0.1, repetition_penalty=2.0)
    torch.testing.assert_close(process(logits, sampling, seen), torch.tensor([[1.0, 1.9, -2.0]]))


def test_sixteen_bit_logits_are_processed_in_float32() -> None:
    assert process(torch.zeros(2, 3, dtype=torch.bfloat16), Sampling(temperature=0.5)).dtype == torch.float32


def test_the_nucleus_is_never_empty() -> None:
    for top_p in (1e-6, 0.5, 0.999999):
        scores = process(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), Sampling(temperature=1.0, top_p=top_p))
        assert (~scores.isinf()).sum(-1).min() >= 1


def test_leading_dimensions_do_not_matter() -> None:
    logits = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.8, min_p=0.01)
    torch.testing.assert_close(process(logits, sampling)[1, 2], process(logits[1, 2], sampling))


def test_the_penalty_needs_to_know_the_context() -> None:
    with pytest.raises(AssertionError, match="context"):
        process(torch.zeros(1, 3), Sampling(repetition_penalty=1.2))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 1.0),
        ("min_p", -0.2),
        ("repetition_penalty", 0.0),
        ("top_p", float("nan")),
    ],
)
def test_an_option_out_of_range_names_its_flag_and_range(option: str, value: float) -> None:
    with pytest.raises(UsageError, match="--" + option.replace("_", "-")) as caught:
        Sampling(**{option: value})
    assert "must be" in caught.value.try_
