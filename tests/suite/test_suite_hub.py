"""Hub datasets, with `datasets` really reading local files of the same columns; nothing here touches the network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.suite import fetch_suite, hub, load_suite, survey
from specbench.suite.hub import hash_book
from specbench.suite.schema import HubDataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Stands in for `datasets.load_dataset`: reads FILE as JSON, whatever is asked for, and keeps what was asked."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, path: str, name: str | None, *, split: str, revision: str | None = None, data_files: str | None = None
    ) -> Any:
        from datasets import load_dataset

        self.calls.append({"path": path, "name": name, "split": split, "revision": revision, "data_files": data_files})
        cache = self.file.parent / f"arrow-{len(self.calls)}"
        return load_dataset("json", data_files=str(self.file), split="train", cache_dir=str(cache))


def commit(_: HubDataset) -> str:
    return COMMIT


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is downloaded: the loaders are this file's own.
    monkeypatch.delenv("HF_HUB_OFFLINE")


ROWS: dict[str, list[dict[str, Any]]] = {
    "mtbench": [
        {"prompt": ["a", "b"], "prompt_id": 99, "category": "writing", "reference": []},
        {"prompt": ["c", "d"], "prompt_id": 98, "category": "math", "reference": ["1", "2"]},
    ],
    "gsm8k": [{"question": "2+2?", "answer": "It is <<2+2=4>>4\n#### 4"}],
    "alpaca": [{"instruction": "Hi?", "output": "Hello.", "generator": "text_davinci_003", "dataset": "koala"}],
    "humaneval": [
        {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "1", "test": "t", "entry_point": "f"}
    ],
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_hubs_columns_become_questions(name: str, write_jsonl: Any) -> None:
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS[name]))
    suite = load_suite(name, load_dataset=hub, find_revision=commit)
    first = suite.questions[0]
    got = (first.question_id, first.category, first.turns)
    assert (
        got
        == {
            "mtbench": ("81", "writing", ("a", "b")),
            "gsm8k": ("0", "math", ("2+2?",)),
            "alpaca": ("0", "koala", ("Hi?",)),
            "humaneval": ("HumanEval/0", "code", ("Complete the following Python function.\n\ndef f():",)),
        }[name]
    )
    assert suite.source.endswith(f"@{COMMIT}")


def test_a_dataset_is_asked_for_by_config_split_and_commit(write_jsonl: Any) -> None:
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS["gsm8k"]))
    load_suite("gsm8k", load_dataset=hub, find_revision=commit)
    assert hub.calls == [
        {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": COMMIT, "data_files": None}
    ]


def test_a_repository_with_a_script_is_read_by_its_json_file(write_jsonl: Any) -> None:
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS["alpaca"]))
    load_suite("alpaca", load_dataset=hub, find_revision=commit)
    file = f"hf://datasets/tatsu-lab/alpaca_eval@{COMMIT}/alpaca_eval.json"
    assert hub.calls == [{"path": "json", "name": None, "split": "train", "revision": None, "data_files": file}]


def test_local_and_hub_rows_of_one_text_have_one_hash(write_jsonl: Any, tmp_path: Path) -> None:
    write_jsonl(
        "mt_bench/question.jsonl",
        [
            {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
            {"question_id": 82, "category": "math", "turns": ["c", "d"], "reference": ["1", "2"]},
        ],
    )
    local = load_suite("mtbench", data_dirs=[tmp_path])
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS["mtbench"]))
    assert local.content_hash == load_suite("mtbench", load_dataset=hub, find_revision=commit).content_hash


def test_one_download_serves_later_runs_offline(write_jsonl: Any) -> None:
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS["gsm8k"]))
    first = load_suite("gsm8k", load_dataset=hub, find_revision=commit)
    again = load_suite("gsm8k", offline=True)
    assert len(hub.calls) == 1
    assert (again.content_hash, again.source) == (first.content_hash, first.source)
    status = next(status for status in survey() if status.name == "gsm8k")
    assert (status.state, status.content_hash) == ("downloaded", first.content_hash)


def test_a_changed_dataset_is_refused_naming_both_hashes(write_jsonl: Any) -> None:
    """The first download's hash is the promise that two runs asked the same questions."""
    fetch_suite("gsm8k", load_dataset=LocalHub(write_jsonl("rows.jsonl", ROWS["gsm8k"])), find_revision=commit)
    (entry,) = json.loads(hash_book().read_text()).values()
    changed = LocalHub(write_jsonl("other.jsonl", [{"question": "3+3?", "answer": "#### 6"}]))
    with pytest.raises(EnvironmentFailed, match="found sha256") as caught:
        fetch_suite("gsm8k", load_dataset=changed, find_revision=commit)
    assert entry["sha256"] in caught.value.what
    assert str(hash_book()) in caught.value.try_
    # The refused rows replaced nothing.
    assert load_suite("gsm8k", offline=True).questions[0].turns == ("2+2?",)


def test_a_tampered_copy_is_refused_naming_both_hashes(write_jsonl: Any) -> None:
    fetch_suite("gsm8k", load_dataset=LocalHub(write_jsonl("rows.jsonl", ROWS["gsm8k"])), find_revision=commit)
    (copy,) = hash_book().parent.glob("*.jsonl")
    copy.write_text(copy.read_text().replace("2+2?", "2+3?"))
    with pytest.raises(EnvironmentFailed, match=r"recorded sha256 \w{64} .* found sha256 \w{64}") as caught:
        load_suite("gsm8k", offline=True)
    assert str(copy) in caught.value.where


def test_fetching_again_checks_and_keeps_the_first_record(write_jsonl: Any) -> None:
    hub = LocalHub(write_jsonl("rows.jsonl", ROWS["gsm8k"]))
    fetch_suite("gsm8k", load_dataset=hub, find_revision=commit)
    before = hash_book().read_text()
    fetch_suite("gsm8k", load_dataset=hub, find_revision=commit)
    assert len(hub.calls) == 2
    assert hash_book().read_text() == before


def test_a_failing_hub_is_an_environment_error_with_a_way_out() -> None:
    def lost(_: HubDataset) -> str:
        raise ConnectionError("no route")

    with pytest.raises(EnvironmentFailed, match=r"could not get openai/gsm8k .* no route") as caught:
        load_suite("gsm8k", find_revision=lost)
    assert "--data DIR" in caught.value.try_


def test_a_damaged_book_is_named(write_jsonl: Any) -> None:
    hash_book().parent.mkdir(parents=True)
    hash_book().write_text("{")
    with pytest.raises(EnvironmentFailed, match="damaged") as caught:
        load_suite("gsm8k", load_dataset=LocalHub(write_jsonl("r.jsonl", ROWS["gsm8k"])), find_revision=commit)
    assert caught.value.where == str(hash_book())


def test_a_cache_folder_that_cannot_be_written_is_named(
    write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("SPECBENCH_CACHE", str(blocker / "cache"))
    with pytest.raises(EnvironmentFailed, match="cannot") as caught:
        load_suite("gsm8k", load_dataset=LocalHub(write_jsonl("r.jsonl", ROWS["gsm8k"])), find_revision=commit)
    assert str(blocker) in caught.value.where


def test_suites_without_a_hub_dataset_name_the_wanted_file() -> None:
    with pytest.raises(EnvironmentFailed, match=r"spec_bench/question\.jsonl is wanted"):
        fetch_suite("spec_bench")
    assert "needs no download" in fetch_suite("demo").notes[0]


def test_fetch_refuses_when_the_network_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailed, match="HF_HUB_OFFLINE"):
        fetch_suite("gsm8k")


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up_in_seconds(tmp_path: Path) -> None:
    """`datasets` by itself retries a dead connection for minutes. And a failed download loads no torch."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        program = (
            "import sys\n"
            "from specbench.errors import EnvironmentFailed\n"
            "from specbench.suite import fetch_suite, hub\n"
            "hub._PROBE_S = 1.5\n"
            "try:\n"
            "    fetch_suite('gsm8k')\n"
            "except EnvironmentFailed as error:\n"
            "    print('torch' in sys.modules, error.what)\n"
        )
        environment = {
            "PATH": "",
            "HOME": str(tmp_path),
            "SPECBENCH_CACHE": str(tmp_path / "cache"),
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "PYTHONPATH": ":".join(entry for entry in sys.path if entry),
        }
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
    assert done.stdout.startswith("False could not get openai/gsm8k")
    assert hub._PROBE_S < 10 and time.monotonic() - started < 30


def test_rows_of_other_types_than_text_are_refused(write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml("name: tiny\ntitle: T\nlicence: MIT\nsources:\n  - hub: {dataset: a/b}\n")
    with pytest.raises(UsageError, match="not text"):
        load_suite(str(path), load_dataset=lambda *_, **__: [{"prompt": "a", "image": object()}], find_revision=commit)
