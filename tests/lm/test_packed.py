"""The frozen target over packed texts, held against plain full forwards of each document alone."""

from __future__ import annotations

import pytest
import torch

from specbench.errors import UsageError
from specbench.lm import attention
from specbench.lm.packed import continue_all, head_logits, packed_states, positions_of
from specbench.recipe import Features, windows
from tests.helpers import FAMILIES, VOCAB, plain_logits, tiny_lm, tokens_of

DOCUMENTS = torch.tensor([[0] * 11 + [1] * 9 + [-1] * 2, [0] * 3 + [1] * 4 + [2] * 15])


def _tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, VOCAB, DOCUMENTS.shape, generator=generator)


def test_positions_start_anew_with_every_document() -> None:
    document = torch.tensor([[0, 0, 1, 1, 1, -1]])
    assert positions_of(document).tolist() == [[0, 1, 0, 1, 2, 0]]


@pytest.mark.parametrize("name", [attention.PLAIN, attention.SDPA])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_gets_the_logits_it_gets_alone(family: str, name: str) -> None:
    """Nothing leaks from one document into the next, in any family, past sliding windows too."""
    lm = tiny_lm(family, attention_name=name)
    tokens_BT = _tokens()
    states = packed_states(lm, tokens_BT, DOCUMENTS, ("final",))
    for row, documents in enumerate(DOCUMENTS.tolist()):
        for document in sorted({d for d in documents if d >= 0}):
            places = [place for place, d in enumerate(documents) if d == document]
            alone = plain_logits(lm, tokens_BT[row, places].tolist())
            torch.testing.assert_close(head_logits(lm, states[row, places, 0]), alone, atol=1e-6, rtol=1e-6)


def test_tapped_layers_come_in_the_order_asked_for_and_the_last_taps_are_put_back() -> None:
    lm = tiny_lm("llama")
    lm.tap(("final",))
    both = packed_states(lm, _tokens(), DOCUMENTS, (1, "final"))
    final = packed_states(lm, _tokens(), DOCUMENTS, ("final",))
    assert both.shape[2] == 2
    torch.testing.assert_close(both[:, :, 1:], final)
    assert not torch.equal(both[:, :, 0], both[:, :, 1])
    lm.allocate(max_batch=1, max_len=8, max_nodes=0)
    lm.begin(1)
    hidden = lm.prefill(0, torch.tensor([1, 2]))[1]
    assert hidden is not None and hidden.shape[1] == 1


def test_states_may_take_part_in_a_gradient() -> None:
    """Inference tensors may not: a drafter that reads them could not be trained."""
    states = packed_states(tiny_lm("llama"), _tokens(), DOCUMENTS, ("final",))
    weight = torch.ones(states.shape[-1], dtype=states.dtype, requires_grad=True)
    (states * weight).sum().backward()
    assert weight.grad is not None and not states.requires_grad


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_continuations_are_what_the_target_would_write_after_every_prefix(family: str) -> None:
    """An anchor's continuation is greedy decoding from its own document's prefix, token for token."""
    lm = tiny_lm(family)
    tokens_BT = _tokens()
    continued, states = continue_all(lm, tokens_BT, DOCUMENTS, length=3)
    for row, place, start in ((0, 4, 0), (0, 10, 0), (0, 15, 11), (1, 2, 0), (1, 21, 7)):
        ids = tokens_BT[row, start : place + 1].tolist()
        for column in range(3):
            ids.append(int(plain_logits(lm, ids)[-1].argmax()))
            expected = plain_logits(lm, ids)[-1]
            torch.testing.assert_close(
                head_logits(lm, states[row, place, column][None])[0], expected, atol=1e-6, rtol=1e-6
            )
        assert continued.tokens_BTF[row, place].tolist() == ids[-3:]


def test_continuations_end_with_the_first_token_that_ends_an_answer() -> None:
    """What the target would write behind its own end is no label, and a root that is the end drafts nothing."""
    lm = tiny_lm("llama")
    tokens_BT = _tokens()
    every = continue_all(lm, tokens_BT, DOCUMENTS, length=4)[0].tokens_BTF
    stops = [int(every[0, 4, 1]), int(every[1, 2, 0])]
    lm.model.generation_config.eos_token_id = stops
    continued, states = continue_all(lm, tokens_BT, DOCUMENTS, length=4)
    assert torch.equal(continued.tokens_BTF, every) and continued.valid_BTF is not None
    for row, place in ((row, place) for row in range(2) for place in range(DOCUMENTS.shape[1])):
        written = every[row, place].tolist()
        expected = [not any(token in stops for token in written[:column]) for column in range(4)]
        assert continued.valid_BTF[row, place].tolist() == expected
    found = windows(
        Features(
            tokens_BT=tokens_BT,
            document_BT=DOCUMENTS,
            learn_BT=DOCUMENTS >= 0,
            states_BTKD=states[:, :, :1],
            continuations=continued,
        ),
        depth=3,
    )
    at = {int(anchor): valid.tolist() for anchor, valid in zip(found.anchor_A, found.valid_AF, strict=True)}
    assert at[4] == continued.valid_BTF[0, 4].tolist() and not at[4][2]
    assert DOCUMENTS.shape[1] + 2 not in at, "its root ends the answer"
    assert all(valid[0] and valid[1] for valid in at.values())


def test_a_text_longer_than_the_context_is_refused() -> None:
    lm = tiny_lm("llama")
    tokens = torch.tensor([tokens_of(1, 200)])
    with pytest.raises(UsageError, match="200 tokens"):
        packed_states(lm, tokens, torch.zeros_like(tokens), ("final",))
