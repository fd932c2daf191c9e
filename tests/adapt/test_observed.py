"""What is observed: the laws of the models themselves, at the positions that were verified, each context once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import plain_logits, requests_for

from specbench.adapt.collector import with_laws
from specbench.adapt.memory import NUM_SIDES, Memory, is_held_out
from specbench.adapt.observed import Observed, shared_law
from specbench.adapt.row_file import RowFile
from specbench.engine.decode import Engine
from specbench.engine.graphs import Backend
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import EnvironmentFailed
from specbench.losses import Law
from specbench.method import DraftNoise, DraftTree, Rule
from tests.adapt.adapted import engine, learning_drafter, save_draft

TOP_K = 8


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_draft(tmp_path_factory.mktemp("draft"))


def _observe(draft: Path, on: Engine, *, num: int = 4, **given: object) -> list[Observed]:
    drafter = learning_drafter(draft, on, **given)
    on.reserve(drafter.max_nodes)
    on.generate(drafter, requests_for(max_new_tokens=16)[:num])
    collector = drafter.adaptation.collector  # type: ignore[union-attr]
    assert collector is not None
    return collector.settle()


TREE = {"beam_width": 3, "max_nodes": 7}


@pytest.mark.parametrize("given", [{}, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize(
    ("temperature", "rule", "graphs"),
    [(0.0, "coupled", None), (1.0, "coupled", None), (1.0, "rejection", None), (0.0, "coupled", RecordedGraphs())],
)
def test_every_law_is_that_of_a_plain_forward(
    draft: Path, temperature: float, rule: Rule, graphs: Backend | None, given: dict[str, int]
) -> None:
    """Both models' laws against transformers' own forward over the text, at every position; steps as graphs too."""
    plain = engine(temperature=temperature, rule=rule)
    on = Engine(plain.lm, sampling=plain.sampling, rule=rule, max_batch=4, max_len=110, max_nodes=8, graphs=graphs)
    drafter = learning_drafter(draft, on, **given)
    on.reserve(drafter.max_nodes)
    generations = on.generate(drafter, requests_for(max_new_tokens=16)).generations
    found = drafter.adaptation.collector.settle()  # type: ignore[union-attr]
    assert len(found) == 4
    drafter.adaptation.layers.detach()  # type: ignore[union-attr]
    lms = (on.lm, drafter.adaptation.lm)  # type: ignore[union-attr]
    texts = {(*request.prompt, *generation.tokens): generation for request, generation in
             zip(requests_for(max_new_tokens=16), generations, strict=True)}  # fmt: skip
    for observed in found:
        text = observed.tokens_T.tolist()
        generation = texts[tuple(text)]
        wanted = [plain_logits(lm, text).float().log_softmax(-1) for lm in lms]
        positions = observed.position_N.long()
        law, here = observed.target, wanted[0][positions - 1]
        assert law.ids_RK is not None and law.log_tail_R is not None
        torch.testing.assert_close(law.logp_RK, here.gather(-1, law.ids_RK.long()), rtol=0, atol=1e-4)
        tail = 1 - here.topk(law.ids_RK.shape[-1]).values.exp().sum(-1)
        torch.testing.assert_close(law.log_tail_R.exp(), tail, rtol=0, atol=1e-4)
        both = torch.minimum(wanted[0].exp(), wanted[1].exp()).sum(-1)[positions - 1]
        torch.testing.assert_close(observed.overlap_N, both, rtol=0, atol=1e-4)
        # Each step verified what it accepted and its first rejection, and no text behind an end.
        assert int(observed.accepted_N.sum()) == sum(
            min(step.num_accepted, step.num_committed - step.num_truncated) for step in generation.steps
        )
        assert int(positions.max()) < len(text) and int(positions.min()) > observed.num_prompt


def test_a_tree_is_observed_along_the_text_and_once_where_it_left_it(draft: Path) -> None:
    """Walked here by hand: at each position the accepted child or, where none was, the first that stood there; where
    nothing stood there nothing was tried. The live acceptance counts the same positions."""
    on = engine()
    drafter = learning_drafter(draft, on, **TREE)
    on.reserve(drafter.max_nodes)
    trees: list[DraftTree] = []
    drafted = drafter.draft

    def kept(noise: DraftNoise | None) -> DraftTree:
        trees.append(drafted(noise))
        return trees[-1]

    drafter.draft = kept  # type: ignore[method-assign]
    request = requests_for(max_new_tokens=40)[0]
    [generation] = on.generate(drafter, [request]).generations
    [observed] = drafter.adaptation.collector.settle()  # type: ignore[union-attr]
    text, at = [*request.prompt, *generation.tokens], len(request.prompt) + 1
    rows: list[tuple[int, int, int, bool]] = []
    tried = accepted = 0
    for step, tree in zip(generation.steps, trees, strict=True):
        tokens, parents, node = tree.tokens_BN[0].tolist(), tree.parents_BN[0].tolist(), -1
        assert tree.valid_BN is None
        for depth in range(1, 9):
            children = [child for child, parent in enumerate(parents) if parent == node]
            if not children or at + depth - 1 >= len(text):
                break
            own = [child for child in children if tokens[child] == text[at + depth - 1]]
            rows.append((at + depth - 1, depth, tokens[(own or children)[0]], bool(own)))
            if step is not generation.steps[-1]:
                tried, accepted = tried + 1, accepted + bool(own)
            if not own:
                break
            node = own[0]
        at += step.num_committed - step.num_truncated
    columns = (observed.position_N, observed.depth_N, observed.drafted_N, observed.accepted_N)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows
    assert {True, False} == {row[3] for row in rows}
    live = drafter.adaptation.domain("").live  # type: ignore[union-attr]
    assert live.since_swap == tried and 0 < accepted < tried


def test_positions_are_capped_per_answer_and_spread_over_it(draft: Path) -> None:
    [few] = _observe(draft, engine(), num=1, per_answer=4)
    [all_of_them] = _observe(draft, engine(), num=1)
    assert few.num_positions <= 4 < all_of_them.num_positions
    assert few.position_N[-1] > all_of_them.position_N[all_of_them.num_positions // 2]


def test_what_is_judged_keeps_more_of_the_targets_law(draft: Path) -> None:
    """A gain that hides inside the tail bucket is none: held-out answers keep (here) the whole law."""
    for observed in _observe(draft, engine()):
        law = observed.target
        assert law.ids_RK is not None and law.log_tail_R is not None
        assert law.ids_RK.shape[-1] == (64 if is_held_out(observed) else TOP_K)


def test_nothing_is_observed_without_consent(draft: Path) -> None:
    on = engine()
    from methods.adaptive_lora.drafter import build
    from tests.adapt.adapted import options

    for given in ({"adapt": False}, {"adapt": True, "collect": False}):
        drafter = build(options(draft, **given), on.view())
        assert drafter.adaptation is None and not drafter.wants_target and drafter.carries == "nothing"


def _some(draft: Path) -> list[Observed]:
    return _observe(draft, engine())


def test_a_file_gives_back_what_it_was_given_each_context_once(draft: Path, tmp_path: Path) -> None:
    answers = _some(draft)
    rows = RowFile(tmp_path, max_bytes=1 << 20)
    for _ in range(2):
        for answer in answers:
            rows.append(answer)
    found = list(RowFile(tmp_path, max_bytes=1 << 20).read())
    assert rows.warning == "" and len(found) == len(answers)
    for mine, theirs in zip(found, answers, strict=True):
        assert torch.equal(mine.tokens_T, theirs.tokens_T) and mine.num_prompt == theirs.num_prompt
        assert torch.equal(mine.position_N, theirs.position_N) and torch.equal(mine.depth_N, theirs.depth_N)
        assert torch.equal(mine.target.logp_RK, theirs.target.logp_RK) and mine.contexts() == theirs.contexts()
    again = RowFile(tmp_path, max_bytes=1 << 20)
    again.append(answers[0])
    assert len(list(again.read())) == len(answers), "another process does not repeat what the file holds"


def test_a_torn_end_is_cut_off_and_damage_inside_is_named(draft: Path, tmp_path: Path) -> None:
    answers = _some(draft)
    rows = RowFile(tmp_path, max_bytes=1 << 20)
    rows.append(answers[0])
    whole = rows.num_bytes()
    rows.append(answers[1])
    with rows.path.open("r+b") as file:
        file.truncate(rows.num_bytes() - 5)
    assert len(list(rows.read())) == 1
    rows.mend()
    assert rows.num_bytes() == whole
    with rows.path.open("r+b") as file:
        file.seek(whole // 2)
        byte = file.read(1)
        file.seek(whole // 2)
        file.write(bytes([byte[0] ^ 255]))
    with pytest.raises(EnvironmentFailed, match="cannot be read past byte 0"):
        list(rows.read())
    with rows.path.open("r+b") as file:
        file.write(bytes(12))
    kept = rows.num_bytes()
    rows.mend()
    assert rows.num_bytes() == kept, "a damaged head is no torn end: nothing behind it is thrown away"
    rows.purge()
    assert list(rows.read()) == [] and not rows.path.exists()


@pytest.mark.parametrize("fault", ["cap", "full", "forbidden"])
def test_a_disk_that_refuses_stops_collecting_and_nothing_else(
    draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The text is decoded to its end, the warning is told once, the file stays readable."""
    on = engine()
    drafter = learning_drafter(draft, on, store=str(tmp_path / "store"))
    adaptation = drafter.adaptation
    assert adaptation is not None and adaptation.store is not None
    on.reserve(drafter.max_nodes)
    first, *others = requests_for(max_new_tokens=16)
    on.generate(drafter, [first])
    assert adaptation.gather() > 0 and adaptation.warning() == ""
    kept = adaptation.store.rows.num_bytes()
    if fault == "cap":
        adaptation.store.rows._max_bytes = kept + 10
    elif fault == "full":
        monkeypatch.setattr(os, "write", lambda file, data: len(data) // 2)
    else:
        monkeypatch.setattr(os, "open", _refuse)
    result = on.generate(drafter, others)
    assert adaptation.gather() > 0, "it is still learnt from"
    assert "collecting stops" in adaptation.warning() and adaptation.warning() == ""
    monkeypatch.undo()
    assert all(generation.finish_reason for generation in result.generations)
    assert adaptation.store.rows.num_bytes() == kept and len(list(adaptation.store.rows.read())) == 1


def _refuse(*_: object, **__: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_memory_learns_each_context_once_and_never_from_a_held_out_prompt(draft: Path) -> None:
    answers = _some(draft)
    memory = Memory(capacity=2)
    for answer in [*answers, *answers]:
        memory.add(answer)
    assert memory.num_positions == sum(answer.num_positions for answer in answers)
    assert all(is_held_out(answer) for answer in memory.held_out)
    assert not any(is_held_out(answer) for answer in memory.new)
    assert len(memory.held_out) + len(memory.new) == len(answers)


def test_the_reservoir_keeps_a_uniform_sample() -> None:
    """Each of 20 answers stays with the same chance: counts over 400 seeds within five standard errors."""
    answers = [_bare(prompt) for prompt in range(200)]
    answers = [answer for answer in answers if not is_held_out(answer)][:20]
    assert 0 < sum(is_held_out(_bare(prompt)) for prompt in range(200)) < 200 / NUM_SIDES * 1.6
    kept = dict.fromkeys(range(20), 0)
    for seed in range(400):
        memory = Memory(capacity=5, seed=seed)
        for answer in answers:
            memory.add(answer)
            memory.learnt()
        for answer in memory.old:
            kept[next(place for place, each in enumerate(answers) if each.contexts() == answer.contexts())] += 1
    assert all(abs(count - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5 for count in kept.values()), kept


def test_a_step_learns_new_answers_beside_old_ones() -> None:
    answers = [answer for answer in map(_bare, range(60)) if not is_held_out(answer)]
    memory = Memory(capacity=100)
    for answer in answers[:20]:
        memory.add(answer)
    memory.learnt()
    for answer in answers[20:40]:
        memory.add(answer)
    batch = memory.batch(8, replay=0.25)
    old = {answer.prompt_digest() for answer in memory.old}
    assert len(batch) == 8 and sum(answer.prompt_digest() in old for answer in batch) == 2
    memory.learnt()
    assert len(memory.batch(8, replay=0.25)) == 8, "with nothing new the reservoir is learnt from"


def test_a_law_asked_of_a_smaller_vocabulary_loses_the_mass_of_what_that_lacks() -> None:
    """The tail stays what it was: of tokens the draft may well know."""
    law = Law(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[9, 1]], dtype=torch.int32), torch.tensor([0.25]).log())
    found = shared_law(law, 8)
    assert found.ids_RK is not None and found.log_tail_R is not None and found.log_lost_R is not None
    torch.testing.assert_close(found.log_tail_R.exp(), torch.tensor([0.25]))
    torch.testing.assert_close(found.log_lost_R.exp(), torch.tensor([0.5]))
    torch.testing.assert_close(found.logp_RK.exp(), torch.tensor([[0.0, 0.25]]))
    assert shared_law(law, 10).log_lost_R is None


def _bare(prompt: int) -> Observed:
    """An answer of one position to the prompt (prompt,)."""
    one = torch.zeros(1)
    law = Law(one[:, None].log().clamp(min=-1.0), torch.zeros(1, 1, dtype=torch.int32), one - 1)
    return Observed(
        tokens_T=torch.tensor([prompt, 3, 4], dtype=torch.int32),
        num_prompt=1,
        position_N=torch.tensor([2], dtype=torch.int32),
        depth_N=torch.tensor([1], dtype=torch.uint8),
        drafted_N=torch.tensor([4], dtype=torch.int32),
        overlap_N=one,
        target=law,
    )


@pytest.mark.parametrize("whose", ["draft", "target"])
def test_a_position_without_a_law_is_neither_learnt_from_nor_kept(draft: Path, tmp_path: Path, whose: str) -> None:
    """A model in half precision may overflow: one such weight would spoil every round that the answer is drawn into."""
    on = engine()
    drafter = learning_drafter(draft, on, store=str(tmp_path))
    on.reserve(drafter.max_nodes)
    adaptation = drafter.adaptation
    assert adaptation is not None and adaptation.collector is not None
    on.generate(drafter, requests_for(max_new_tokens=16)[:2])
    spoilt, _ = sorted([*adaptation.collector._done, *adaptation.collector._live], key=lambda each: each.row)
    num = sum(step[1].shape[0] for step in spoilt.steps)
    first, target_nV, draft_nV, _ = spoilt.steps[1]
    with torch.inference_mode():
        (target_nV if whose == "target" else draft_nV[0]).view(-1)[0] = float("nan")
    adaptation.gather()
    [one, other] = sorted(adaptation.last, key=lambda each: each.row)
    assert one.num_positions == num - 1 and first not in one.position_N.tolist() and other.num_positions > 1
    for each in adaptation.store.rows.read():  # type: ignore[union-attr]
        assert bool(each.overlap_N.isfinite().all()) and first not in (each.position_N.tolist() if each.row else [])
    gone = replace(one, overlap_N=torch.full_like(one.overlap_N, float("nan")))
    assert with_laws(gone).num_positions == 0 and with_laws(other) is other
