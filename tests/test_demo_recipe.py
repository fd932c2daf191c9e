"""The recipe of the embedded model: what is held out, what the loss is on, attention written out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from specbench import paths
from specbench.demo.recipe.evaluation import agreement, cut, distinct_4grams, pick
from specbench.demo.recipe.examples import Example, gpteacher_example, gsm8k_example, split
from specbench.demo.recipe.models import draft_config, language_loss, load, matmul_attention, new_model, save
from specbench.demo.recipe.rows import Row, batches, collate
from specbench.demo.recipe.settings import Settings
from specbench.demo.recipe.training import Stepper, distillation_loss, schedule


def _rows(count: int) -> list[Row]:
    rng = random.Random(3)
    made = []
    for number in range(count):
        length, start = rng.randint(8, 30), rng.randint(2, 6)
        made.append(Row("gsm8k", tuple(rng.randrange(4096) for _ in range(length)), start, length - 1 - number % 2))
    return made


def test_the_shipped_drafters_stay_below_four_megabytes_together() -> None:
    files = [file for file in (paths.DEMO / "drafters").rglob("*") if file.is_file()]
    assert {"ctc", "lstm", "redrafter"} <= {file.parent.name for file in files}
    assert sum(file.stat().st_size for file in files) < 4_000_000


def test_the_held_out_part_never_depends_on_the_order_of_the_examples() -> None:
    examples = [Example("gsm8k", f"question {i}", "answer") for i in range(400)]
    train, held = split(examples)
    _, backwards = split(reversed(examples))
    assert 2 <= len(held) <= 20 and len(train) + len(held) == 400
    assert {e.prompt for e in held} == {e.prompt for e in backwards}


def test_calculator_notes_and_inputs_that_say_nothing_are_no_text_of_an_example() -> None:
    assert gsm8k_example({"question": " How many? ", "answer": "48/2=<<48/2=24>>24"}).answer == "48/2=24"
    silent = {"instruction": "Write a poem.", "input": "N/A", "output": "Roses"}
    assert gpteacher_example("roleplay", silent).prompt == "Write a poem."
    assert gpteacher_example("roleplay", silent | {"input": "On tea."}).prompt == "Write a poem.\nOn tea."


def test_the_loss_weighs_prompts_little_answers_fully_and_padding_not_at_all() -> None:
    batch = collate([Row("gsm8k", (5, 6, 7, 8, 9), 2, 4), Row("gsm8k", (1, 2, 3), 1, 3)], 0.2)
    assert batch.weights.tolist() == [
        pytest.approx([0.0, 0.2, 1.0, 1.0]),  # nothing comes before the first token; the fifth is after the stop id
        pytest.approx([0.0, 1.0, 1.0, -1.0]),
    ]
    assert batch.tokens == 7


def test_every_row_is_in_exactly_one_batch_and_no_batch_is_wider_than_it_may_be() -> None:
    rows = _rows(40)
    made = batches(rows, Settings(batch_tokens=100), random.Random(0))
    assert sum(len(batch.ids) for batch in made) == 40
    assert all(batch.ids.numel() <= 100 for batch in made)


def test_attention_written_out_is_the_fused_kernels() -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 9, 8, dtype=torch.float64).unbind(0)
    made, _ = matmul_attention(None, query, key, value, None)
    spread = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
    )
    torch.testing.assert_close(made, spread.transpose(1, 2))


def test_a_model_is_its_own_best_draft_and_its_loss_falls_along_the_schedule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = new_model(draft_config()), new_model(draft_config())
    rows = _rows(6)
    batch = collate(rows, 0.2)
    assert distillation_loss(model, model, batch, overlap=1.0).item() == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(other, model, batch, overlap=1.0).item() > 0.01
    stepper = Stepper("draft", model, Settings(), 12)
    before = language_loss(model, batch).item()
    while not stepper.over:
        stepper.take(language_loss(model, batch), batch.tokens)
    assert stepper.step == 12
    assert language_loss(model, batch).item() < 0.8 * before
    save(model, tmp_path)
    same = agreement(load(tmp_path), load(tmp_path), rows, [list(row.ids[row.start : row.stop]) for row in rows])
    assert same["greedy_agreement"] == 1.0 and same["overlap"] == pytest.approx(1.0, abs=1e-5)
    assert schedule(0, 10, 0.0) == pytest.approx(0.1) and schedule(50, 10, 1.0) == pytest.approx(0.01)


def test_answers_end_with_their_stop_id_and_repetition_is_counted() -> None:
    assert cut([8, 9, 3, 0, 0]) == [8, 9, 3] and cut([8, 9]) == [8, 9]
    assert distinct_4grams([1, 2, 3, 4, 5]) == 1.0 and distinct_4grams([1] * 7) == 0.25 and distinct_4grams([1]) == 0.0
    rows = [Row(kind, (1, 2), 1, 2) for kind in ("gsm8k", "gsm8k", "roleplay", "codegen", "codegen")]
    assert [row.kind for row in pick(rows, 5)] == ["gsm8k", "roleplay", "codegen"]
