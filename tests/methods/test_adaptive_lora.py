"""adaptive_lora: without an adapter it is the draft model, and no swap, wherever it falls, changes a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import NoDrafter, requests_for

from methods.adaptive_lora.drafter import AdaptiveDrafter, AdaptiveTreeDrafter, build
from methods.draft_model.drafter import build as build_draft_model
from methods.hybrid.drafter import build as build_hybrid
from specbench import registry
from specbench.adapt import adapter as files
from specbench.adapt.adaptation import InUse
from specbench.adapt.adapter import Adapter, Lineage
from specbench.adapt.domains import domain_of
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.versions import AdapterStore
from specbench.conformance.targets import chi_square_p, enumerated_law, marginal, table_target
from specbench.engine.answer import Generation
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import UsageError
from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_tree import TreeDrafter
from specbench.lm.load import load_lm
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request
from specbench.sampling import Sampling, sequence_key
from tests.adapt.adapted import engine, learning_drafter, noisy_weights, options, save_draft

SHAPE = LoraShape(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_draft(tmp_path_factory.mktemp("draft"))


class _Swapping(AdaptiveDrafter):
    """Swaps adapters behind every commit, in mid-sequence: three of them in turn, one of them none."""

    def prepare(self) -> None:
        layers = self.adaptation.layers
        self.choices = [InUse(number=n, weights=noisy_weights(layers, seed=n)) for n in (1, 2)] + [InUse()]
        self.num_swaps = 0

    def commit(self, commit: Commit) -> None:
        super().commit(commit)
        self.adaptation.swap("", self.choices[self.num_swaps % 3])
        self.num_swaps += 1


class _SwappingTree(_Swapping, AdaptiveTreeDrafter):
    """The same over a tree."""


TREE = {"beam_width": 3, "max_nodes": 6}


def _swapping(draft: Path, on: Engine, **given: int) -> _Swapping:
    drafter = learning_drafter(draft, on, adapt=True, **given)
    drafter.__class__ = _SwappingTree if isinstance(drafter, AdaptiveTreeDrafter) else _Swapping
    assert isinstance(drafter, _Swapping)
    drafter.prepare()
    on.reserve(drafter.max_nodes)
    return drafter


def _answers(on: Engine) -> tuple[Generation, ...]:
    return on.generate(NoDrafter(), requests_for(max_new_tokens=20)).generations


@pytest.mark.parametrize(("shape", "kind"), [({}, ChainDrafter), (TREE, TreeDrafter)], ids=["chain", "tree"])
def test_without_an_adapter_it_is_the_draft_model(draft: Path, shape: dict[str, int], kind: type) -> None:
    """The same drafts accepted step by step, by the same class; learning that has not begun changes nothing either."""
    for temperature in (0.0, 1.0):
        on = engine(temperature=temperature)
        given = {"model": str(draft), "num_tokens": 3, **shape}
        theirs = build_draft_model(registry.check_options(registry.card("draft_model"), given), on.view())
        ours = build(options(draft, **shape), on.view())
        assert type(ours) is type(theirs) is kind and ours.adaptation is None
        found = [
            on.generate(drafter, requests_for(max_new_tokens=20)).generations
            for drafter in (theirs, ours, learning_drafter(draft, on, **shape))
        ]
        accepted = [[[step.num_accepted for step in g.steps] for g in generations] for generations in found]
        assert accepted[0] == accepted[1] == accepted[2]


@pytest.mark.parametrize("given", [{}, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_swap_in_mid_sequence_changes_no_token(draft: Path, temperature: float, given: dict[str, int]) -> None:
    """Greedy and coupled, float64, alone and in a ragged batch: seeded autoregression, whatever is drafted with."""
    on = engine(temperature=temperature)
    wanted = _answers(on)
    drafter = _swapping(draft, on, **given)
    for rows in (range(4), [0], [2]):
        found = on.generate(drafter, [requests_for(max_new_tokens=20)[row] for row in rows]).generations
        assert [each.tokens for each in found] == [wanted[row].tokens for row in rows]
    assert drafter.num_swaps > 10 and drafter.adaptation.swaps >= drafter.num_swaps


@pytest.mark.parametrize("given", [{}, TREE], ids=["chain", "tree"])
def test_after_a_swap_a_draft_is_that_of_the_new_weights_alone(draft: Path, given: dict[str, int]) -> None:
    """Keys and values of the old weights are gone: the drafts in mid-sequence are those of a drafter that has read the
    whole text with the new ones."""
    on = engine()
    drafter = learning_drafter(draft, on, **given)
    on.reserve(drafter.max_nodes)
    weights = noisy_weights(drafter.adaptation.layers)  # type: ignore[union-attr]
    other = learning_drafter(draft, on, **given)
    other.adaptation.swap("", InUse(number=1, weights=weights))  # type: ignore[union-attr]
    learns = drafter.adaptation
    assert learns is not None
    watched: list[DraftTree] = []
    request = requests_for(max_new_tokens=30)[0]
    told = _Told(drafter, at=3, do=lambda: learns.swap("", InUse(number=1, weights=weights)), seen=watched)
    [found] = on.generate(told, [request]).generations
    text = [*request.prompt, *found.tokens]
    # What a fresh drafter drafts behind the text as it stood at that step.
    at = len(request.prompt) + 1 + sum(step.num_committed for step in found.steps[:3])
    fresh: list[DraftTree] = []
    again = Request(key=request.key, prompt=tuple(text[: at - 1]), max_new_tokens=len(text) - at + 1)
    on.generate(_Told(other, at=99, do=lambda: None, seen=fresh), [again])
    assert watched[3].tokens_BN.tolist() == fresh[0].tokens_BN.tolist()
    assert watched[3].tokens_BN.tolist() != watched[2].tokens_BN.tolist()


class _Told(Drafter):
    """Passes every call on, keeps the drafts, and does something before draft number `at`."""

    def __init__(self, inner: Drafter, *, at: int, do: Callable[[], None], seen: list[DraftTree]) -> None:
        self._inner, self._at, self._do, self._seen = inner, at, do, seen
        self.max_nodes, self.wants_target = inner.max_nodes, inner.wants_target

    def begin(self, requests: list[Request]) -> None:  # type: ignore[override]
        self._inner.begin(requests)

    def prefill(self, row: int, tokens_T: torch.Tensor, hidden_TKD: torch.Tensor | None, offset: int) -> None:
        self._inner.prefill(row, tokens_T, hidden_TKD, offset)

    def start(self, len_B: list[int], root_B: torch.Tensor) -> None:
        self._inner.start(len_B, root_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        if len(self._seen) == self._at:
            self._do()
        tree = self._inner.draft(noise)
        self._seen.append(tree)
        return tree

    def commit(self, commit: Commit) -> None:
        self._inner.commit(commit)

    def keep(self, rows: list[int]) -> None:
        self._inner.keep(rows)


def test_rejection_keeps_the_targets_law_across_swaps(tmp_path: Path) -> None:
    """900 answers of three tokens from a vocabulary of four, adapters swapped behind every step: chi-square."""
    from specbench.conformance.targets import save_draft_of

    lm, prompt = table_target(), (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
    save_draft_of(lm, tmp_path)
    answers: list[tuple[int, ...]] = []
    for group in range(3):
        on = Engine(lm, sampling=Sampling(temperature=1.0), rule="rejection", max_batch=300, max_len=20, max_nodes=4)
        drafter = _swapping(tmp_path, on)
        requests = [
            Request(
                key=sequence_key(seed=0, question_id=str(group * 300 + row), turn=0), prompt=prompt, max_new_tokens=4
            )
            for row in range(300)
        ]
        answers += [each.tokens[:3] for each in on.generate(drafter, requests).generations]
    law = enumerated_law(lm.logits_VV, Sampling(temperature=1.0), length=3, first=prompt[-1])
    p_values = [chi_square_p(answers, law)]
    p_values += [chi_square_p([(answer[place],) for answer in answers], marginal(law, place)) for place in (1, 2)]
    assert min(p_values) * len(p_values) > 1e-3


def _saved(draft: Path, folder: Path, *, base_hash: str | None = None, shape: LoraShape = SHAPE, seed: int = 1) -> Path:
    lm = load_lm(str(draft), device=torch.device("cpu"), dtype=torch.float64)
    weights = noisy_weights(LoraLayers(lm.model, shape), seed=seed)
    lineage = Lineage(base="tiny", base_hash=base_hash or lm.weights_hash)
    files.save(folder, Adapter(shape=shape, weights=weights, lineage=lineage))
    return folder


def test_a_named_adapter_is_drafted_with_and_may_be_captured(draft: Path, tmp_path: Path) -> None:
    """Its steps as graphs accept what single steps accept, and not what the bare draft model accepts."""
    folder = _saved(draft, tmp_path / "one")
    on = engine()
    wanted = _answers(on)
    found = {}
    for name, given, graphs in (("bare", {}, None), ("alone", {"adapter": str(folder)}, None),
                                ("graphs", {"adapter": str(folder)}, RecordedGraphs())):  # fmt: skip
        run = Engine(on.lm, sampling=on.sampling, max_batch=4, max_len=110, max_nodes=8, graphs=graphs)
        drafter = build(options(draft, **given), run.view())
        assert drafter.capturable and drafter.adaptation is None
        generations = run.generate(drafter, requests_for(max_new_tokens=20)).generations
        assert [each.tokens for each in generations] == [each.tokens for each in wanted]
        found[name] = [[s.num_committed - s.num_truncated for s in each.steps] for each in generations]
        if given:
            assert "+" in drafter.weights_hash and any("adapter" in note for note in drafter.notes)
    assert found["alone"] == found["graphs"] != found["bare"]


def test_an_adapter_of_another_draft_model_is_refused(draft: Path, tmp_path: Path) -> None:
    folder = _saved(draft, tmp_path / "one", base_hash="c" * 64)
    with pytest.raises(UsageError, match="belongs to the draft model"):
        build(options(draft, adapter=str(folder)), engine().view())


def test_a_store_is_drafted_with_by_its_active_version(draft: Path, tmp_path: Path) -> None:
    _saved(draft, tmp_path / "versions" / "0001")
    store = AdapterStore(tmp_path)
    plain = build(options(draft, store=str(tmp_path)), engine().view())
    assert plain.notes == ()
    store.activate(1)
    assert "drafts with adapter version 1" in build(options(draft, store=str(tmp_path)), engine().view()).notes


def test_nothing_learns_on_from_a_folder_that_is_no_version(draft: Path, tmp_path: Path) -> None:
    """Number 0 means the base everywhere: rounds would be judged against it, and a rollback would go there."""
    folder = _saved(draft, tmp_path / "one")
    with pytest.raises(UsageError, match="no version of a store"):
        build(options(draft, adapter=str(folder), adapt=True), engine().view())


def test_each_domain_begins_with_its_own_active_version(draft: Path, tmp_path: Path) -> None:
    _saved(draft, tmp_path / "versions" / "0001")
    AdapterStore(tmp_path).activate(1, "math")
    chosen = options(draft, store=str(tmp_path), adapt=True, domains="category")
    adaptation = build(chosen, engine().view()).adaptation
    assert adaptation is not None
    assert (adaptation.domain("math").in_use.number, adaptation.domain("").in_use.number) == (1, 0)


def test_a_domain_that_was_put_back_begins_with_the_draft_model_itself(draft: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        _saved(draft, tmp_path / "versions" / f"000{number}", seed=number)
    store = AdapterStore(tmp_path)
    store.activate(1)
    store.activate(2, "math")
    assert store.rollback("math") == 1, "what it drafted with before it had one of its own"
    store.activate(0, "math")
    adaptation = build(options(draft, store=str(tmp_path), adapt=True, domains="category"), engine().view()).adaptation
    assert adaptation is not None
    assert [adaptation.domain(name).in_use.number for name in ("", "math", "code")] == [1, 0, 1]
    assert adaptation.domain("math").in_use.weights is None


@pytest.mark.parametrize(("by", "given"), [("category", {}), ("system", {}), ("category", TREE)], ids=str)
def test_fixed_adapters_of_domains_draft_each_its_own(
    draft: Path, tmp_path: Path, by: str, given: dict[str, int]
) -> None:
    """As many tokens are accepted as under that adapter alone, domain by domain, back and forth."""
    names = {kind: domain_of(by, category=kind, system=f"You help with {kind}.") for kind in ("math", "code", "prose")}
    assert len(set(names.values())) == 3 and "You" not in "".join(names.values())
    for number in (1, 2):
        _saved(draft, tmp_path / "versions" / f"000{number}", seed=number)
    store = AdapterStore(tmp_path)
    store.activate(1, names["math"])
    store.activate(2, names["code"])
    on = engine()
    wanted = _answers(on)

    def drafted(drafter: Drafter, domain: str) -> list[list[int]]:
        system = f"You help with {domain}." if domain else ""
        requests = [replace(each, domain=domain, system=system) for each in requests_for(max_new_tokens=20)]
        generations = on.generate(drafter, requests).generations
        assert [each.tokens for each in generations] == [each.tokens for each in wanted]
        return [[step.num_accepted for step in each.steps] for each in generations]

    alone = {
        "math": drafted(build(options(draft, adapter=str(store.path(1)), **given), on.view()), ""),
        "code": drafted(build(options(draft, adapter=str(store.path(2)), **given), on.view()), ""),
        "prose": drafted(build(options(draft, **given), on.view()), ""),
    }
    drafter = build(options(draft, store=str(tmp_path), domains=by, **given), on.view())
    assert isinstance(drafter, TreeDrafter) == bool(given)
    for name in ("math", "prose", "code", "math"):
        assert drafted(drafter, name) == alone[name]
    assert alone["math"] != alone["prose"] != alone["code"]
    with pytest.raises(UsageError, match=r"are of domains \(.*, .*\), and none is of all prompts") as caught:
        build(options(draft, store=str(tmp_path)), on.view())
    assert all(names[kind] in caught.value.what for kind in ("math", "code")) and f"domains={by}" in caught.value.try_


def test_adapters_of_domains_must_have_one_shape_and_all_of_them_name_the_drafter(draft: Path, tmp_path: Path) -> None:
    """A matrix under another's alpha would be scaled wrongly; a resumed run must begin with the same adapters."""
    _saved(draft, tmp_path / "versions" / "0001", seed=1)
    _saved(draft, tmp_path / "versions" / "0002", seed=2)
    _saved(draft, tmp_path / "versions" / "0003", seed=3, shape=replace(SHAPE, alpha=16.0))
    store = AdapterStore(tmp_path)
    store.activate(1)
    given = {"store": str(tmp_path), "domains": "category"}
    hashes = []
    for adapt in (False, True):
        for number in (1, 2):
            store.activate(number, "math")
            hashes.append(build(options(draft, adapt=adapt, **given), engine().view()).weights_hash)
        store.activate(3, "math")
        with pytest.raises(UsageError, match="different shapes: version 3 for math has rank 4, alpha 16"):
            build(options(draft, adapt=adapt, **given), engine().view())
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]


def test_hybrid_wraps_an_adapter_as_it_is_and_refuses_one_that_learns(draft: Path) -> None:
    """The target's verdicts would not reach it, while its row said that it learns."""
    on, given = engine(), registry.check_options(registry.card("hybrid"), {})
    with pytest.raises(UsageError, match="learns between answers") as caught:
        build_hybrid(given, on.view(), learning_drafter(draft, on))
    assert caught.value.where == "hybrid.inner" and "--set adaptive_lora.adapt=false" in caught.value.try_
    assert build_hybrid(given, on.view(), build(options(draft), on.view())).notes == ()


def test_a_temperature_under_a_loss_that_compares_no_laws_is_refused(draft: Path) -> None:
    with pytest.raises(UsageError, match="loss=ce compares none"):
        learning_drafter(draft, engine(), loss="ce", learn_temperature=0.5)


def test_what_was_learnt_is_forgotten_at_a_restore(draft: Path) -> None:
    on = engine()
    drafter = learning_drafter(draft, on)
    on.reserve(drafter.max_nodes)
    adaptation = drafter.adaptation
    assert adaptation is not None
    snapshot, before = drafter.snapshot(), adaptation.layers.weights()
    first = on.generate(drafter, requests_for(max_new_tokens=12)).generations
    adaptation.gather()
    adaptation.swap("", InUse(number=1, weights=noisy_weights(adaptation.layers)))
    on.generate(drafter, requests_for(max_new_tokens=12))
    drafter.restore(snapshot)
    assert adaptation.gather() == 0 and adaptation.domain("").memory.num_positions == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in adaptation.layers.weights().items())
    again = on.generate(drafter, requests_for(max_new_tokens=12)).generations
    assert [[s.num_accepted for s in g.steps] for g in again] == [[s.num_accepted for s in g.steps] for g in first]
