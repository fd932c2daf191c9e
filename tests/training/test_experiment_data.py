"""What a target wrote for an experiment is kept, and taken again only where the same would be written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from training.small import METHODS, Quiet, make_documents

from specbench.data import examples
from specbench.data.contamination import KnownQuestions, normalised
from specbench.data.documents import Documents
from specbench.errors import UsageError
from specbench.training import experiment_data
from specbench.training.experiment_file import ExperimentFile
from specbench.training.experiment_plan import Machine, Reading, make_plan


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(10, 34)))
    return file


class Reader:
    """Documents of an experiment on the target's own answers, and how often they had to be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
        self.made: list[str] = []
        self._store = store
        real = experiment_data.read_documents

        def watch(request: Any, *rest: Any) -> Documents:
            self.made.append(request.target)
            return real(request, *rest)

        monkeypatch.setattr(experiment_data, "read_documents", watch)

    def __call__(self, target: Path, prompts: Path, **train: Any) -> Documents:
        axes = {"dataset": f"self:{prompts}", "max_length": 64, "response_tokens": 6, "eval_documents": 2, **train}
        body = {"name": "own", "method": "shallow", "target": str(target), "train": axes, "budget": {"max_steps": 1}}
        machine = Machine(store=self._store, methods_dirs=(METHODS,), device="cpu", threads=1)
        plan = make_plan(ExperimentFile.model_validate(body), machine)
        return experiment_data.Library(Quiet()).corpus(plan.trainings[0]).train


@pytest.mark.parametrize(("num", "parts"), [(3, (1, 1, 1)), (7, (5, 1, 1)), (24, (20, 2, 2))])
def test_every_part_of_a_small_data_set_has_a_document(num: int, parts: tuple[int, int, int]) -> None:
    reading = _reading(held_out=2)
    found = experiment_data.cut(make_documents(num), reading)
    assert found.learn is not None and found.choose is not None
    assert (len(found.learn), len(found.choose), len(found.evaluate)) == parts
    with pytest.raises(UsageError, match="has 2 documents, and at least 3 are needed"):
        experiment_data.cut(make_documents(2), reading)


def _reading(*, held_out: int) -> Reading:
    return Reading(
        dataset="memory", columns=None, max_length=48, limit=None, held_out=held_out, learns=True, response_tokens=6,
        response_temperature=0.0,
    )  # fmt: skip


def test_kept_answers_are_taken_for_the_same_prompts_in_the_same_form_alone(
    target: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reader(monkeypatch, tmp_path)
    first = read(target, prompts)
    assert (read(target, prompts).tokens_N == first.tokens_N).all() and len(read.made) == 1
    # The same weights that are asked in other words.
    politer = Path(shutil.copytree(target, tmp_path / "politer"))
    template = (politer / "chat_template.jinja").read_text()
    assert "<|user|>\n" in template
    (politer / "chat_template.jinja").write_text(template.replace("<|user|>\n", "<|user|>\nPlease: "))
    assert len(read(politer, prompts).tokens_N) > len(first.tokens_N) and len(read.made) == 2
    read(target, prompts, template="plain")
    assert len(read.made) == 3
    # Other questions in a file that looks as it did.
    was = prompts.stat()
    prompts.write_text(prompts.read_text().replace("What is 33 + 33?", "What is 88 + 88?"))
    os.utime(prompts, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert prompts.stat().st_size == was.st_size
    read(target, prompts)
    assert len(read.made) == 4
    # A suite that was fetched since asks one of them.
    known = KnownQuestions(suite_of={normalised("What is 12 + 12?"): "sums"}, unread={})
    monkeypatch.setattr(examples, "known_questions", lambda *_, **__: known)
    fewer = read(target, prompts)
    assert len(read.made) == 5 and len(fewer) < len(first)
    read(target, prompts)
    assert len(read.made) == 5
