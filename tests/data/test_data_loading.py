"""From a file to documents: columns, counts, the cache, and what is wrong said with its place."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench.data import load_documents, load_prompts, parse_columns
from specbench.data.contamination import known_questions, normalised
from specbench.data.documents import Documents
from specbench.data.kept import path_of
from specbench.data.places import locate
from specbench.data.rendering import Renderer
from specbench.errors import EnvironmentFailed, UsageError
from specbench.training.evaluate import prompts_of

from .conftest import MakeTokenizer, WriteRows, turn


def load(path: Path | str, tokenizer: Any, **options: Any) -> Documents:
    return load_documents(str(path), **{"tokenizer": tokenizer, "max_len": 64, "seed": 0, **options})


def texts(documents: Documents, tokenizer: Any) -> list[tuple[str, str]]:
    return [(tokenizer.decode(text.prompt), tokenizer.decode(text.answer)) for text in documents]


PAIR = {"prompt": "2+2?", "response": "4"}
ASKED, ANSWERED = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", "4<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"messages": [turn("user", "2+2?"), turn("assistant", "4")]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_common_columns_are_found(write_rows: WriteRows, make_tokenizer: MakeTokenizer, row: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    documents = load(write_rows("rows.jsonl", [row]), tokenizer)
    assert texts(documents, tokenizer) == [(ASKED, ANSWERED)]
    assert documents[0].learn == (False,) * documents[0].prompt_length + (True,) * 2 + (False,)


def test_columns_are_named_and_joined(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    path = write_rows("rows.jsonl", [{"task": "Add", "data": "2", "result": "4"}])
    tokenizer = make_tokenizer()
    [(prompt, answer)] = texts(load(path, tokenizer, columns="prompt=task+data,response=result"), tokenizer)
    assert "Add\n2<|im_end|>" in prompt and answer == ANSWERED


def test_wrong_columns_list_the_existing_ones(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    path = write_rows("rows.jsonl", [{"task": "Add", "result": "4"}])
    with pytest.raises(UsageError, match=r"no column 'tasks'; did you mean 'task'\? known: result, task"):
        load(path, make_tokenizer(), columns="prompt=tasks,response=result")
    with pytest.raises(UsageError, match="the first row has: 'task', 'result'"):
        load(path, make_tokenizer())


@pytest.mark.parametrize("text", ["prompt", "prompt=", "prompt=a,prompt=b", "text=a,messages=b", "response=a"])
def test_an_unreadable_mapping_shows_the_spelling(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_columns(text)
    assert "--columns prompt=" in caught.value.try_


def test_a_malformed_line_is_named_with_file_and_line(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR) + "\n\n{broken\n")
    with pytest.raises(UsageError, match="malformed JSON") as caught:
        load(path, make_tokenizer())
    assert caught.value.where == f"{path}:3"


def test_an_empty_file_is_an_error(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(UsageError, match="holds no row"):
        load(path, make_tokenizer())


def test_a_cut_off_gzip_is_named(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PAIR).encode() * 500)[:-20])
    with pytest.raises(UsageError, match="not a whole gzip file"):
        load(path, make_tokenizer())


def test_json_lists_gzip_and_parquet_hold_the_same_rows(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.json").write_text(json.dumps([PAIR]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    parquet.write_table(pyarrow.Table.from_pylist([PAIR]), tmp_path / "c.parquet")
    tokenizer = make_tokenizer()
    for name in ("a.json", "b.jsonl.gz", "c.parquet"):
        assert texts(load(tmp_path / name, tokenizer), tokenizer) == [(ASKED, ANSWERED)], name


def test_plain_text_is_learnt_whole(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one line\n\nanother\n")
    documents = load(path, make_tokenizer())
    assert [len(text.answer) for text in documents] == [8, 7]
    assert documents.counts.num_masked == 0


def test_all_text_learns_prompts_too(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    documents = load(write_rows("rows.jsonl", [PAIR]), make_tokenizer(), assistant_only=False)
    assert all(documents[0].learn)
    assert documents[0].prompt_length == len(documents[0].ids) - 3


def test_what_is_left_out_is_counted_under_its_reason(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    talks = [
        [turn("assistant", "Welcome"), turn("user", "2+2?"), turn("assistant", "4"), turn("user", "bye")],
        [turn("user", "a"), turn("user", "b"), turn("assistant", "c")],
        [turn("user", "a"), turn("tool", "b")],
        [turn("user", "a")],
        [turn("user", "a"), turn("assistant", "\ud800")],
        [turn("user", "a"), turn("assistant", " ")],
        [turn("user", "x" * 99), turn("assistant", "c")],
        [turn("user", "2+2?"), turn("assistant", "4")],
        [turn("user", "a"), turn("assistant", "b" * 99)],
    ]
    tokenizer = make_tokenizer()
    documents = load(write_rows("rows.jsonl", [{"messages": talk} for talk in talks]), tokenizer)
    counts = documents.counts
    assert texts(documents, tokenizer)[0] == (ASKED, ANSWERED)
    assert counts.unusable == {
        "the same speaker twice in a row": 1,
        "a turn by 'tool'": 1,
        "no question with an answer": 1,
        "text that is not valid Unicode": 1,
        "an empty turn": 1,
    }
    assert (counts.num_read, counts.num_kept, counts.num_repeated) == (9, 2, 1)
    assert (counts.num_nothing_to_learn, counts.num_truncated) == (1, 1)
    assert len(documents[1].ids) == 64


def test_nothing_left_says_why(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "x" * 99, "response": "y"}])
    with pytest.raises(
        UsageError, match=r"nothing of rows\.jsonl is left to learn: 1 have no answer inside the length"
    ):
        load(path, make_tokenizer())


def test_rows_that_a_suite_asks_are_left_out_and_counted(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    """The planted one differs in case, spacing and punctuation from the demo suite's question."""
    planted = "write a Python function, that  returns the LARGEST number in a list of integers"
    rows = [PAIR, {"prompt": planted, "response": "max"}, {"prompt": planted + " squared", "response": "no"}]
    counts = load(write_rows("rows.jsonl", rows), make_tokenizer(), max_len=200).counts
    assert counts.num_contaminated == {"demo": 1}
    assert counts.num_kept == 2
    # The others need files that are not on this disk, which is said and not passed over.
    assert "gsm8k" in counts.unread_suites
    assert any("not compared with" in line for line in counts.lines())


def test_symbols_count_and_punctuation_does_not() -> None:
    assert normalised(" What's 2+2 ?") == normalised("WHAT'S  2+2")
    assert normalised("2+2") != normalised("2 2")


def test_shared_alpaca_holds_questions_of_the_alpaca_suite(shared: Path, demo_tokenizer: Any) -> None:
    """The folder's README counts 25 of EAGLE's 80 questions in it."""
    prompts = load_prompts("alpaca", seed=0, data_dirs=[shared, shared / "suites"])
    assert prompts.counts.num_contaminated["alpaca_eagle"] == 25
    assert not known_questions([shared / "suites"]).unread


def test_the_second_time_is_read_from_the_cache(
    write_rows: WriteRows, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows("rows.jsonl", [PAIR, {"prompt": "3+3?", "response": "6"}])
    tokenizer = make_tokenizer()
    first = load(path, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("specbench.data.rendering.Renderer.conversation", lambda *_: pytest.fail("rendered again"))
        again = load(path, tokenizer)
    assert list(again) == list(first)
    assert again.counts == first.counts
    assert load(path, tokenizer, max_len=40).fingerprint != first.fingerprint
    assert load(path, tokenizer, limit=1).counts.num_read == 1
    path.write_text(json.dumps(PAIR))
    assert len(load(path, tokenizer)) == 1


def test_a_damaged_cache_is_made_again(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    path = write_rows("rows.jsonl", [PAIR])
    first = load(path, make_tokenizer())
    path_of(first.fingerprint).write_bytes(b"not safetensors")
    assert list(load(path, make_tokenizer())) == list(first)
    assert path_of(first.fingerprint).stat().st_size > 100


def test_a_smaller_limit_is_contained_in_a_larger_one(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    path = write_rows("rows.jsonl", [{"prompt": f"{n}?", "response": f"{n}"} for n in range(30)])
    few, many = (set(load(path, make_tokenizer(), limit=limit)) for limit in (5, 12))
    assert len(few) == 5 and few < many


def test_ids_that_a_target_wrote_are_taken_as_they_are(write_rows: WriteRows, make_tokenizer: MakeTokenizer) -> None:
    from specbench.data.rendering import Renderer

    tokenizer = make_tokenizer()
    row = {
        "messages": [turn("user", "2+2?"), turn("assistant", "4")],
        "prompt_ids": [5, 6, 7],
        "answer_ids": [8, 9],
        "rendering": Renderer.of(tokenizer).key,
    }
    assert load(write_rows("exact.jsonl", [row]), tokenizer)[0].ids == (5, 6, 7, 8, 9)
    # Of another tokenizer or template they mean nothing: the text is rendered.
    other = load(write_rows("other.jsonl", [row | {"rendering": "0" * 16}]), tokenizer)
    assert texts(other, tokenizer) == [(ASKED, ANSWERED)]


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'alpaca'"):
        locate("alpaka")
    with pytest.raises(UsageError, match="there is no file"):
        locate("nowhere.jsonl")


def test_a_hub_set_without_network_says_what_would_help() -> None:
    with pytest.raises(EnvironmentFailed, match="the network is not to be used") as caught:
        load_prompts("someone/something:config:split", seed=0)
    assert "someone/something:config:split@main" in caught.value.where


def test_a_downloaded_set_is_held_to_its_first_hash(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a stand-in that hands out one row; everything behind it is real."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*place: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((*place, options["split"], options["revision"]))
        return [PAIR]

    monkeypatch.setattr("specbench.suite.hub._datasets_loader", lambda: load_dataset)
    monkeypatch.setattr("specbench.suite.hub._find_revision", lambda _: "c" * 40)
    tokenizer = make_tokenizer()
    first = load("someone/something:config:part", tokenizer)
    assert texts(first, tokenizer) == [(ASKED, ANSWERED)]
    assert asked == [("someone/something", "config", "part", "c" * 40)]
    assert list(load("someone/something:config:part", tokenizer, offline=True)) == list(first)
    assert len(asked) == 1
    [kept] = (Path(os.environ["SPECBENCH_CACHE"]) / "suites").glob("*.jsonl")
    kept.write_text(json.dumps({"prompt": "3+3?", "response": "7"}) + "\n")
    with pytest.raises(EnvironmentFailed, match="is not what was downloaded"):
        load("someone/something:config:part", tokenizer)


def test_prompts_alone_cannot_be_learnt_from(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(UsageError, match="prompts without answers") as caught:
        load("demo", make_tokenizer())
    assert "specbench data generate" in caught.value.try_


def test_the_demo_prompts_are_many_clean_and_small() -> None:
    """What ships: a few thousand questions, none of a suite, the held-out ones apart."""
    from specbench.paths import DEMO

    train, held_out = (load_prompts("demo", seed=0, part=part) for part in ("train", "held_out"))
    assert len(train.prompts) == 2650 and len(held_out.prompts) == 270
    assert not {each.prompt_id for each in train.prompts} & {each.prompt_id for each in held_out.prompts}
    assert train.counts.num_contaminated == {} == held_out.counts.num_contaminated
    assert (DEMO / "prompts.jsonl.gz").stat().st_size <= 200_000
    assert len(load_prompts("demo", seed=0, part="held_out", limit=10).prompts) == 10


def test_the_demo_prompts_are_no_suites_questions(shared: Path) -> None:
    suites = [shared / "suites"]
    assert not known_questions(suites).unread
    for part in ("train", "held_out"):
        assert load_prompts("demo", seed=0, part=part, data_dirs=suites).counts.num_contaminated == {}


def test_documents_say_which_of_their_prompts_a_run_would_ask_with(write_rows: WriteRows, demo_tokenizer: Any) -> None:
    """Kept, taken and split; simulated are those alone."""
    rows = [{"prompt": f"question {n}", "response": "  lead" if n % 3 == 0 else "hello"} for n in range(9)]
    file = write_rows("rows.jsonl", rows)
    for _ in range(2):
        found = load_documents(str(file), tokenizer=demo_tokenizer, max_len=64, seed=0)
        assert [document.is_asked for document in found] == [n % 3 != 0 for n in range(9)]
    assert [document.is_asked for document in found.take([3, 4])] == [False, True]
    simulated = prompts_of(found, num=9, lm=SimpleNamespace(context_length=None), max_new_tokens=4)  # type: ignore[arg-type]
    asked = [tuple(Renderer.of(demo_tokenizer).prompt([turn("user", f"question {n}")])) for n in range(9) if n % 3]
    assert list(simulated) == asked
