"""Every method found keeps every promise, from the one public body; methods broken on purpose do not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
import transformers

from specbench import registry
from specbench.conformance import check_method
from specbench.conformance.broken import BrokenPromise
from specbench.conformance.targets import ARCHITECTURES, chi_square_p, enumerated_law, random_target, table_target
from specbench.conformance.watch import HostTree, PlainDrafter, inspect_tree
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.method import Request
from specbench.sampling import Sampling
from specbench.tree import DraftTree, chain, from_lists
from tests.helpers import CPU

METHODS = [entry.name for entry in registry.cards() if entry.card is not None and "weights" not in entry.card.requires]
PROMISES = {
    "builds",
    "greedy text",
    "seeded text",
    "seeded text, all processors",
    "stops",
    "forgets",
    "recovers",
    "batches",
    "prefill chunks",
    "captured steps",
    "follows",
    "rejection law",
}


def _failed(name: str, **kwargs: object) -> dict[str, str]:
    findings = check_method(name, **kwargs)  # type: ignore[arg-type]
    return {finding.name: finding.what for finding in findings if finding.state != "ok"}


def test_every_method_in_the_tree_is_found_and_readable() -> None:
    broken = {entry.name: entry.error for entry in registry.cards() if entry.card is None}
    assert broken == {}
    assert {"autoregressive", "prompt_lookup", "draft_model", "oracle", "suffix", "hybrid"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_every_promise(name: str) -> None:
    findings = check_method(name)
    assert [finding for finding in findings if finding.state != "ok"] == []
    assert {finding.name for finding in findings} == PROMISES


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prompt_lookup", {"continuations": 3, "num_tokens": 4}),
        ("draft_model", {"draft": "sampled"}),
        ("draft_model", {"draft": "greedy", "num_tokens": 1}),
        ("draft_model", {"adaptive": True}),
        ("draft_model", {"beam_width": 3, "max_nodes": 7}),
        ("draft_model", {"beam_width": 3, "branch": 2, "num_tokens": 3, "draft": "greedy"}),
        ("adaptive_lora", {"adapt": True}),
        ("adaptive_lora", {"adapt": True, "beam_width": 3, "max_nodes": 6}),
        ("oracle", {"rate": 0.5, "depth": 7}),
        ("oracle", {"rate": 1.0}),
        ("suffix", {"shape": "tree", "max_spec_offset": 3.0, "max_requests": 2}),
        ("hybrid", {"inner": "draft_model", "threshold": 1.5, "draft_model.draft": "sampled"}),
        ("hybrid", {"inner": "draft_model", "threshold": 1.5, "draft_model.beam_width": 2}),
        ("hybrid", {"inner": "prompt_lookup", "shape": "tree", "prompt_lookup.continuations": 3}),
    ],
    ids=str,
)
def test_other_options_keep_the_promises_too(name: str, options: dict[str, object]) -> None:
    assert _failed(name, options=options, quick=True) == {}


# --- a method in somebody else's package ---------------------------------------------------------------------------

_ECHO = '''
    from specbench.method import Drafter
    from specbench.tree import from_lists

    class Echo(Drafter):
        """Proposes that the last tokens are said again."""

        def __init__(self, options, target):
            self.max_nodes = options["num_tokens"]
            self._device = target.device

        def begin(self, requests):
            self._texts = [list(request.prompt) for request in requests]

        def start(self, len_B, root_B):
            for text, token in zip(self._texts, root_B.tolist()):
                text.append(token)

        def draft(self, noise):
            tokens = [text[-self.max_nodes :] for text in self._texts]
            return from_lists(tokens, [list(range(-1, len(row) - 1)) for row in tokens], device=self._device)

        def commit(self, commit):
            for text, tokens in zip(self._texts, commit.tokens):
                text += tokens

        def keep(self, rows):
            self._texts = [self._texts[row] for row in rows]

    def build(options, target, inner=None):
        return Echo(options, target)
'''
_ECHO_CARD = """
    name: echo
    title: Echo
    paper: ""
    kind: chain
    summary: Says the last tokens again.
    options:
      num_tokens: {type: int, default: 3, minimum: 1, help: Tokens drafted per step.}
"""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())


def test_a_method_of_another_installed_package_is_found_and_keeps_the_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip would install it: a package, its metadata, an entry point in the group specbench.methods. Nothing else
    is said."""
    _write(tmp_path / "echo_method" / "__init__.py", "")
    _write(tmp_path / "echo_method" / "drafter.py", _ECHO)
    _write(tmp_path / "echo_method" / "method.yaml", _ECHO_CARD)
    info = tmp_path / "echo_method-0.1.dist-info"
    _write(info / "METADATA", "Metadata-Version: 2.1\nName: echo-method\nVersion: 0.1\n")
    _write(info / "entry_points.txt", "[specbench.methods]\necho = echo_method\n")
    with pytest.raises(UsageError, match="unknown method 'echo'"):
        check_method("echo")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.entry("echo").source == "echo-method"
    assert _failed("echo") == {}
    assert _failed("echo", options={"num_tokens": 6}, quick=True) == {}


# --- methods that break a promise ----------------------------------------------------------------------------------

_BROKEN = '''
    import torch
    from specbench.method import Drafter
    from specbench.sampling import top_children
    from specbench.tree import DraftTree, chain, from_lists

    class Broken(Drafter):
        """Like an echo of two tokens, but for one fault."""

        def __init__(self, fault, target):
            self._fault = fault
            self._target = target
            self.max_nodes = 2
            self.branches = fault != "secret tree"
            self._learnt = 0
            self._ahead = 0
            self._table = torch.nn.Embedding(target.vocab_size, 1, dtype=torch.float64)
            self._cache = torch.zeros(1, dtype=torch.float64)
            self.carries = "stream" if fault.startswith("snapshot") else "nothing"

        def begin(self, requests):
            self._texts = [list(request.prompt) for request in requests]
            self._prompts = []
            if self._fault != "leaks" and self.carries == "nothing":
                self._learnt = 0

        def prefill(self, row, tokens, hidden, offset):
            self._prompts.append(tokens.shape[0])
            if self._fault == "keeps nan":
                self._cache += 0 * self._table(tokens).sum().detach()

        def start(self, len_B, root_B):
            for text, token in zip(self._texts, root_B.tolist()):
                text.append(token)

        def draft(self, noise):
            fault, size = self._fault, self._target.vocab_size
            rows = len(self._texts)
            if fault == "raises":
                raise RuntimeError("no idea")
            if fault == "dishonest" and noise is not None:
                law = torch.tensor([0.7, 0.1, 0.1, 0.1] if size == 4 else [1 / size] * size, dtype=torch.float64).log()
                tokens = torch.zeros(rows, 1, dtype=torch.long)
                return chain(tokens, logq_BMV=law.expand(rows, 2, size))
            tokens = [text[-2:] for text in self._texts]
            parents = [[-1, 0]] * rows
            if fault in ("leaks", "snapshot forgets nothing"):
                tokens = [[(token + self._learnt) % size for token in row] for row in tokens]
            if fault == "chunks":
                tokens = [[(token + len(self._prompts)) % size for token in row] for row in tokens]
            if self._cache.isnan().any():
                tokens = [[0, 0] for _ in tokens]
            if fault == "too many":
                tokens, parents = [row + [1] for row in tokens], [[-1, 0, 1]] * rows
            if fault == "lost":
                tokens = [[(token + self._ahead) % size for token in row] for row in tokens]
            if fault == "vocabulary":
                tokens = [[size, size] for _ in tokens]
            if fault == "secret tree":
                tokens, parents = [[5 % size, 6 % size] for _ in tokens], [[-1, -1]] * rows
            if fault == "twins":
                tokens, parents = [[5 % size] * 2 for _ in tokens], [[-1, -1]] * rows
            tree = from_lists(tokens, parents, device=self._target.device)
            if fault == "child first":
                return DraftTree(tokens_BN=tree.tokens_BN, parents_BN=torch.tensor([[1, -1]] * rows), max_depth=2)
            if fault == "shallow":
                return DraftTree(tokens_BN=tree.tokens_BN, parents_BN=torch.tensor([[-1, 0]] * rows), max_depth=1)
            if fault == "half a law" and noise is not None:
                return chain(tree.tokens_BN, logq_BMV=torch.full((rows, 3, size), -9.0))
            return tree

        def commit(self, commit):
            self._learnt += 1
            for text, tokens in zip(self._texts, commit.tokens):
                text += tokens

        def follow(self, commit, is_own):
            self._ahead += 1
            self.commit(commit)

        def keep(self, rows):
            if self._fault == "keeps all":
                return
            if self._fault == "keeps the first":
                rows = list(range(len(rows)))
            self._texts = [self._texts[row] for row in rows]

        def snapshot(self):
            return self._learnt

        def restore(self, snapshot):
            if self._fault == "snapshot":
                self._learnt = snapshot

    def build(options, target, inner=None):
        return Broken(options["fault"], target)
'''
_BROKEN_CARD = """
    name: broken
    title: Broken
    paper: ""
    kind: tree
    summary: Breaks one promise.
    options:
      fault: {type: str, default: none, help: Which.}
"""


_NEEDS_MORE = ("keeps the first", "dishonest")
"""Faults that one architecture or a third of the draws may miss."""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    _write(tmp_path / "broken" / "method.yaml", _BROKEN_CARD)
    _write(tmp_path / "broken" / "drafter.py", _BROKEN)
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "promise", "what"),
    [
        ("child first", "greedy text", "node 0 has parent 1: parents must come first"),
        ("too many", "greedy text", "3 nodes where max_nodes says 2"),
        ("vocabulary", "greedy text", "proposes id 48, the vocabulary has 48"),
        ("twins", "greedy text", "token 5 stands twice below node -1"),
        ("secret tree", "greedy text", "a tree, and its `branches` says that it drafts chains alone"),
        ("shallow", "greedy text", "node 1 at depth 2 where max_depth says 1"),
        ("raises", "greedy text", "RuntimeError: no idea"),
        ("leaks", "forgets", "drafts differently after others"),
        ("snapshot forgets nothing", "forgets", "restore(snapshot) forgets too little"),
        ("keeps nan", "recovers", "after a question whose numbers were NaN"),
        ("keeps all", "greedy text", "live rows"),
        ("keeps the first", "batches", "in a batch and"),
        ("chunks", "prefill chunks", "size of the prefill's chunks"),
        ("lost", "follows", "after tokens it did not draft"),
        ("dishonest", "rejection law", "under the target's law"),
        ("half a law", "seeded text", "the recorded law of slot 0 sums to"),
    ],
)
def test_a_method_that_breaks_a_promise_is_caught(broken: Path, fault: str, promise: str, what: str) -> None:
    failed = _failed("broken", options={"fault": fault}, methods_dirs=[broken], quick=fault not in _NEEDS_MORE)
    assert promise in failed, failed
    assert what in failed[promise]


@pytest.mark.parametrize("fault", ["none", "snapshot"])
def test_the_same_method_without_its_fault_keeps_them_all(broken: Path, fault: str) -> None:
    """So that the faults above are what is caught."""
    assert _failed("broken", options={"fault": fault}, methods_dirs=[broken], quick=True) == {}


def test_a_wrong_or_missing_option_is_refused_before_anything_is_built(broken: Path) -> None:
    with pytest.raises(UsageError, match="unknown option 'falt'") as caught:
        check_method("broken", options={"falt": "x"}, methods_dirs=[broken])
    assert "did you mean 'fault'" in caught.value.try_
    with pytest.raises(UsageError, match="unknown method 'promt_lookup'") as caught:
        check_method("promt_lookup")
    assert "prompt_lookup" in caught.value.try_


def test_a_named_target_adds_what_to_expect_of_it() -> None:
    """alpha, c and the speed-up by length, on a real pair; and one line where there is nothing to expect."""
    findings = check_method("draft_model", target="demo", quick=True)
    assert not any(finding.state == "failed" for finding in findings)
    added = {finding.name: finding.what for finding in findings if finding.name not in PROMISES}
    assert 0.3 < float(added["acceptance alpha"].split()[0]) < 1.0
    assert 0.0 < float(added["cost ratio c"].split(":")[0]) < 1.5
    assert "best" in added["speed-up to expect by num_tokens"]
    (none,) = (finding for finding in check_method("oracle", target="demo", quick=True) if finding.name not in PROMISES)
    assert "not asked" in none.what


# --- the inspector and the statistic themselves --------------------------------------------------------------------


def test_a_well_formed_draft_is_read_as_it_stands() -> None:
    tree = from_lists([[4, 5, 6], [7]], [[-1, -1, 0], [-1]], device=CPU)
    rows = inspect_tree(tree, num_rows=2, max_nodes=3, vocab_size=8)
    assert rows == [HostTree(tokens=(4, 5, 6), parents=(-1, -1, 0)), HostTree(tokens=(7,), parents=(-1,))]


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (chain(torch.tensor([[1], [2], [3]])), "for 2 live rows"),
        (chain(torch.tensor([[1.0], [2.0]])), "not int64"),
        (
            DraftTree(
                tokens_BN=torch.tensor([[1, 2]] * 2),
                parents_BN=torch.tensor([[-1, -1]] * 2),
                max_depth=1,
                is_chain=True,
            ),
            "a claimed chain",
        ),
        (
            DraftTree(
                tokens_BN=torch.tensor([[1, 2]] * 2),
                parents_BN=torch.tensor([[-1, 0]] * 2),
                max_depth=2,
                valid_BN=torch.tensor([[False, True]] * 2),
            ),
            "valid below the invalid node",
        ),
        (chain(torch.tensor([[1], [2]]), logq_BMV=torch.zeros(2, 1, 8)), "logq of shape"),
        (DraftTree(tokens_BN=torch.tensor([[1]] * 2), parents_BN=torch.tensor([[-1]] * 2), max_depth=4), "max_depth 4"),
    ],
)
def test_a_malformed_draft_is_named(tree: DraftTree, fault: str) -> None:
    with pytest.raises(BrokenPromise, match=fault):
        inspect_tree(tree, num_rows=2, max_nodes=3, vocab_size=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_checks_targets_take_a_prompt_that_begins_with_id_0_without_a_word(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """A model library's advice on padding, of which there is none, would stand above the findings."""
    said: list[object] = []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning_once", lambda text, *_: said.append(text))
    engine = Engine(random_target(architecture), sampling=Sampling(), max_len=8)
    engine.generate(PlainDrafter(engine.view()), [Request(key=0, prompt=(0, 1, 0), max_new_tokens=3)])
    assert said == []


def test_the_statistic_agrees_with_scipy() -> None:
    from scipy import stats

    law = enumerated_law(table_target().logits_VV, Sampling(temperature=1.0), length=2, first=1)
    assert sum(law.values()) == pytest.approx(1.0)
    answers = [answer for place, answer in enumerate(law) for _ in range(30 + 3 * place)]
    counts = [answers.count(answer) for answer in law]
    expected = [probability * len(answers) for probability in law.values()]
    assert min(expected) >= 5
    assert chi_square_p(answers, law) == pytest.approx(stats.chisquare(counts, expected).pvalue, rel=1e-6)
    assert chi_square_p([(0, 0)], {(0, 0): 0.0, (0, 1): 1.0}) == 0.0
