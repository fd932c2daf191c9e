"""Packing loses nothing but what it counts, and nothing of one document stands in another."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.data.counts import Counts
from specbench.data.documents import Documents
from specbench.data.packing import PackedDataset
from specbench.errors import UsageError

Text = tuple[tuple[int, bool], ...]
"""(id, learnt) of each token."""

texts = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=14).map(tuple), min_size=1, max_size=24
)


def documents_of(parts: list[Text]) -> Documents:
    lengths = [len(part) for part in parts]
    tokens = [token for part in parts for token, _ in part]
    return Documents(
        name="crafted",
        tokens_N=np.array(tokens, dtype=np.int32),
        learn_N=np.array([flag for part in parts for _, flag in part], dtype=np.bool_),
        start_of=np.cumsum([0, *lengths]).astype(np.int64),
        prompt_length_of=np.array([min(2, length) for length in lengths], dtype=np.int64),
        answer_length_of=np.array([max(length - 2, 0) for length in lengths], dtype=np.int64),
        counts=Counts(num_read=len(parts), num_kept=len(parts)),
        fingerprint="crafted",
        source="crafted",
    )


def texts_in(packed: PackedDataset) -> list[Text]:
    """What stands in the rows, read back from the tensors alone."""
    batch = packed.batch(range(len(packed)))
    found: list[Text] = []
    for tokens, document, learn in zip(
        batch.tokens_BT.tolist(), batch.document_BT.tolist(), batch.learn_BT.tolist(), strict=True
    ):
        used = [number for number in document if number >= 0]
        assert document == used + [-1] * (len(document) - len(used)), "padding stands at the end"
        assert used == sorted(used) and sorted(set(used)) == list(range(max(used) + 1)), "ascending from 0"
        assert not any(flag for flag, number in zip(learn, document, strict=True) if number < 0)
        for number in range(max(used) + 1):
            places = [place for place, other in enumerate(document) if other == number]
            found.append(tuple((tokens[place], learn[place]) for place in places))
    return found


@settings(max_examples=60, deadline=None)
@given(parts=texts, num_tokens=st.integers(2, 16), seed=st.integers(0, 3))
def test_every_document_stands_whole_in_one_row_or_is_counted(parts: list[Text], num_tokens: int, seed: int) -> None:
    pieces = [part[at : at + num_tokens] for part in parts for at in range(0, len(part), num_tokens)]
    learnable = [piece for piece in pieces if any(flag for _, flag in piece)]
    documents = documents_of(parts)
    if not learnable:
        with pytest.raises(UsageError, match="nothing to learn"):
            documents.pack(num_tokens, seed=seed)
        return
    packed = documents.pack(num_tokens, seed=seed)
    assert Counter(texts_in(packed)) == Counter(learnable)
    assert packed.num_left_out == len(pieces) - len(learnable)
    assert packed.num_cut == sum(len(part) > num_tokens for part in parts)
    assert 0 < packed.fill <= 1


@settings(max_examples=30, deadline=None)
@given(parts=texts, seed=st.integers(0, 3))
def test_label_counts_are_those_of_the_packed_rows(parts: list[Text], seed: int) -> None:
    documents = documents_of([(*part, (1, True)) for part in parts])
    packed = documents.pack(8, seed=seed)
    counted = Counter(token for text in texts_in(packed) for token, flag in text if flag)
    assert packed.label_counts(12).tolist() == [counted[token] for token in range(12)]


def some_rows(number: int = 40) -> PackedDataset:
    return documents_of([((n % 10, True), (1, True), (2, True)) for n in range(number)]).pack(3, seed=5)


def test_an_epochs_order_is_a_function_of_seed_and_epoch() -> None:
    packed = some_rows()
    assert packed.order(3).tolist() == some_rows().order(3).tolist()
    assert packed.order(3).tolist() != packed.order(4).tolist()
    assert sorted(packed.order(3).tolist()) == list(range(40))


def test_the_order_is_the_same_on_every_version_of_numpy() -> None:
    """A resumed run continues where it was, whatever was installed meanwhile: these numbers may never change."""
    assert some_rows(8).order(0).tolist() == [6, 7, 5, 2, 4, 3, 1, 0]


def test_processes_share_an_epoch_in_equal_parts_without_overlap() -> None:
    packed = some_rows(41)
    shares = [packed.order(0, rank=rank, world_size=3).tolist() for rank in range(3)]
    assert [len(share) for share in shares] == [13, 13, 13]
    assert len({row for share in shares for row in share}) == 39


def test_fewer_rows_than_processes_is_an_error() -> None:
    with pytest.raises(UsageError, match="too few for 64 processes"):
        some_rows().order(0, rank=0, world_size=64)


def test_first_fit_fills_rows() -> None:
    """Halves and quarters fit each other: 16 documents of 8 and 32 of 4 tokens fill 32 rows of 8, of which none is half
    empty but by bad luck of one."""
    parts: list[Text] = [((1, True),) * 8] * 16 + [((2, True),) * 4] * 32
    packed = documents_of(parts).pack(8, seed=0)
    assert len(packed) == 32
    assert packed.fill == 1.0


def test_a_prompt_is_never_on_both_sides_of_a_split() -> None:
    parts: list[Text] = [((n // 3, False), (7, False), (n % 3, True)) for n in range(30)]
    documents = documents_of(parts)
    train, held_out = documents.split(5, seed=0)
    assert len(held_out) in (5, 6) and len(train) + len(held_out) == 30
    assert not {text.prompt for text in train} & {text.prompt for text in held_out}
    assert [text.ids for text in documents.split(5, seed=0).held_out] == [text.ids for text in held_out]
    assert train.counts.num_kept == len(train) and train.counts.num_tokens == 3 * len(train)


def test_holding_out_everything_is_an_error() -> None:
    with pytest.raises(UsageError, match="none to train on"):
        documents_of([((1, True),) * 3] * 4).split(1, seed=0)


def test_a_share_can_be_held_out() -> None:
    documents = documents_of([((n // 10, False), (n % 10, False), (2, True)) for n in range(40)])
    assert len(documents.split(0.25, seed=1).held_out) == 10
