"""`specbench results` and `leaderboard`: what the store holds, on the terminal, as JSON and as files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.events import Event, GenerationFailed, GenerationFinished
from tests.store.synthetic import make_manifest, run_events, write_run, write_synthetic


@pytest.fixture
def results(tmp_path: Path, specbench: Callable[..., Any]) -> str:
    """A results folder with two ingested runs of the same plan."""
    for number, name in enumerate(("run-a", "run-b")):
        write_synthetic(tmp_path / "r" / "runs" / name, run_id=name, seed=number)
    ran = specbench("results", "ingest", "--store", str(tmp_path / "r"))
    assert ran.code == 0, ran.err
    return str(tmp_path / "r")


def test_an_empty_folder_lists_nothing_and_says_how_to_fill_it(specbench: Callable[..., Any], tmp_path: Path) -> None:
    ran = specbench("results", "ls", "--store", str(tmp_path))
    assert ran.code == 0 and ran.out == "" and "specbench run demo" in ran.err
    assert json.loads(specbench("results", "ls", "--store", str(tmp_path), "--json").out) == []


def test_ls_lists_runs_with_their_ids(specbench: Callable[..., Any], results: str) -> None:
    assert "run-a" in specbench("results", "--store", results).out
    found = json.loads(specbench("results", "ls", "--store", results, "--json").out)
    assert {run["run_id"] for run in found} == {"run-a", "run-b"}
    assert all(run["state"] == "finished" for run in found)


def test_ls_names_what_can_be_continued(specbench: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run-a"
    write_synthetic(folder, run_id="run-a", seed=0)
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(lines[:-1]))  # without its last word, as after `kill -9`
    ran = specbench("results", "ls", "--store", str(tmp_path))
    assert "lost" in ran.out and "run-a" in ran.err
    assert f"specbench run --resume RUN --store {tmp_path}" in ran.err


def test_ls_says_that_imported_rows_are_there(specbench: Callable[..., Any], results: str, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    words = ("--format", "answers", "--method", "draft_model", "-o", str(answers), "--store", results)
    assert specbench("results", "export", "run-a", *words).code == 0
    assert "imported" not in specbench("results", "ls", "--store", results).err
    other = str(tmp_path / "other")
    words = ("--suite", "mt_bench", "--method", "theirs", "--target", "t", "--store", other)
    assert specbench("results", "import", str(answers), *words).code == 0
    ran = specbench("results", "ls", "--store", other)
    assert "theirs on mt_bench (t)" in ran.err and "specbench leaderboard" in ran.err


def test_options_before_the_command_are_refused_not_dropped(specbench: Callable[..., Any], results: str) -> None:
    ran = specbench("results", "--store", results, "ls")
    assert ran.code == 2 and "after the command" in ran.err


def test_show_prints_the_table_or_the_object(specbench: Callable[..., Any], results: str) -> None:
    assert "draft_model" in specbench("results", "show", "run-a", "--store", results).out
    assert json.loads(specbench("results", "show", "run-a", "--store", results, "--json").out)["run_id"] == "run-a"


def test_an_unknown_run_names_the_known_ones(specbench: Callable[..., Any], results: str) -> None:
    ran = specbench("results", "show", "run-z", "--store", results)
    assert ran.code == 2 and "run-a" in ran.err


def test_without_a_store_show_says_what_to_do(specbench: Callable[..., Any], tmp_path: Path) -> None:
    ran = specbench("results", "show", "run-a", "--store", str(tmp_path))
    assert ran.code == 3 and "specbench" in ran.err


def test_compare_pairs_the_runs(specbench: Callable[..., Any], results: str) -> None:
    ran = specbench("results", "compare", "run-a", "run-b", "--store", results)
    assert ran.code == 0, ran.err
    assert "draft_model" in ran.out and "baseline of run-b" in ran.err
    assert "4 questions in common" in ran.out
    found = json.loads(specbench("results", "compare", "run-a", "run-b", "--store", results, "--json").out)
    assert found["run_ids"] == ["run-a", "run-b"]


@pytest.mark.parametrize("kind", ["json", "csv", "markdown"])
def test_export_writes_one_file(specbench: Callable[..., Any], results: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    ran = specbench("results", "export", "run-a", "--format", kind, "-o", str(out), "--store", results)
    assert ran.code == 0 and ran.out.strip() == str(out) and "tree" in out.read_text()


@pytest.fixture
def imported(specbench: Callable[..., Any], results: str, tmp_path: Path) -> Callable[..., str]:
    """What is printed where a method's exported answers are imported again."""
    out = str(tmp_path / "answers.jsonl")
    words = ("--format", "answers", "--method", "draft_model", "-o", out, "--store", results)
    assert specbench("results", "export", "run-a", *words).code == 0
    words = ("--suite", "demo", "--method", "theirs", "--target", "tiny", "--store", results)
    return lambda *more: str(specbench("results", "import", out, *words, *more).out)


def test_exported_answers_can_be_imported_and_are_external(imported: Callable[..., str]) -> None:
    row = json.loads(imported("--json"))
    assert row["ranked"] is False and row["num_questions"] == 4


def test_tokens_per_step_of_an_imported_file_are_not_called_by_the_name_of_the_acceptance_length(
    imported: Callable[..., str],
) -> None:
    """They count the prefill's token, which belongs to no step."""
    shown = imported()
    assert "tokens/step" in shown and "τ" not in shown


def test_an_import_is_forgotten_by_its_id(
    specbench: Callable[..., Any], results: str, imported: Callable[..., str]
) -> None:
    import_id = json.loads(imported("--json"))["import_id"]
    assert import_id in specbench("results", "ls", "--store", results).err
    remove = ("results", "import", "--remove", import_id, "--store", results)
    assert specbench(*remove, "--method", "theirs").code == 2
    assert specbench(*remove).code == 0
    assert "imported" not in specbench("results", "ls", "--store", results).err
    ran = specbench(*remove)
    assert ran.code == 2 and import_id in ran.err


def test_an_import_says_which_of_its_words_are_missing(specbench: Callable[..., Any], results: str) -> None:
    ran = specbench("results", "import", "a.jsonl", "--method", "theirs", "--store", results)
    assert ran.code == 2 and "not given: --suite, --target" in ran.err


def test_rows_that_a_table_does_not_rank_are_marked_in_the_list_and_in_a_comparison(
    specbench: Callable[..., Any], tmp_path: Path
) -> None:
    store = str(tmp_path / "r")
    methods = [each.model_copy(update={"is_ranked": each.label != "tree"}) for each in make_manifest().methods]
    for seed, name in enumerate(("run-a", "run-b")):
        folder = tmp_path / "r" / "runs" / name
        write_synthetic(folder, run_id=name, seed=seed, num_questions=12, methods=tuple(methods))
    assert specbench("results", "ingest", "--store", store).code == 0
    listed = specbench("results", "ls", "--store", store).out
    assert len(re.findall(r"tree \d\.\d\d× \(not ranked\)", listed)) == listed.count("not ranked") == 2
    as_json = json.loads(specbench("results", "ls", "--store", store, "--json").out)
    assert {each["unranked"]["tree"] for each in as_json} == {"not ranked: a control, not a competitor"}
    ran = specbench("results", "compare", "run-a", "run-b", "--store", store)
    assert [line.split()[1] for line in ran.out.splitlines() if line.endswith("not ranked")][:2] == ["tree", "tree"]
    assert "run-a: tree is not ranked: a control, not a competitor" in ran.err


@pytest.mark.parametrize(
    ("method", "shown"), [("", "all failed"), ("tree", r"draft_model \d\.\d\d×, slow \d\.\d\d×, tree failed")]
)
def test_the_list_says_what_failed_whole(
    specbench: Callable[..., Any], tmp_path: Path, method: str, shown: str
) -> None:
    """Its place was empty, as that of a run of the baseline alone is."""

    def failing(event: Event) -> Event:
        if not isinstance(event, GenerationFinished) or method not in ("", event.method):
            return event
        names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
        return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")

    manifest = make_manifest(num_questions=4)
    write_run(tmp_path / "r" / "runs" / "run-a", manifest, (failing(event) for event in run_events(manifest)))
    where = ("--store", str(tmp_path / "r"))
    assert specbench("results", "ingest", *where).code == 0
    assert re.search(shown, specbench("results", "ls", *where).out)
    [entry] = json.loads(specbench("results", "ls", *where, "--json").out)
    labels = [each.label for each in manifest.methods]
    assert entry["failed"] == (labels if not method else [method])
    assert bool(entry["num_answers"]) is bool(method)


def test_an_export_of_answers_says_what_it_wrote_of_failed_turns(specbench: Callable[..., Any], tmp_path: Path) -> None:
    def failing(event: Event) -> Event:
        if not isinstance(event, GenerationFinished) or (event.method, event.turn) != ("tree", 0):
            return event
        names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
        return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")

    manifest = make_manifest(num_questions=1, num_turns=2, repeats=1)
    folder = tmp_path / "r" / "runs" / "run-a"
    write_run(folder, manifest, (failing(event) for event in run_events(manifest)))
    where = ("--store", str(tmp_path / "r"))
    assert specbench("results", "ingest", *where).code == 0
    for method, number in (("tree", 1), ("draft_model", 0)):
        out = str(tmp_path / f"{method}.jsonl")
        ran = specbench("results", "export", "run-a", "--format", "answers", "--method", method, "-o", out, *where)
        assert ran.code == 0 and ("1 turn of tree failed" in ran.err) is bool(number)


def test_answers_without_a_method_are_refused(specbench: Callable[..., Any], results: str, tmp_path: Path) -> None:
    words = ("--format", "answers", "-o", str(tmp_path / "x"), "--store", results)
    assert specbench("results", "export", "run-a", *words).code == 2


def test_export_into_a_folder_that_is_none_is_an_environment_error(
    specbench: Callable[..., Any], results: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "x.md")
    ran = specbench("results", "export", "run-a", "--format", "markdown", "-o", out, "--store", results)
    assert ran.code == 3 and out in ran.err


def test_ingest_rebuilds_a_deleted_store(specbench: Callable[..., Any], results: str) -> None:
    """Counts exactly; sums of seconds may differ in their last digit, being added in another order."""

    def counts() -> list[tuple[Any, ...]]:
        rows = json.loads(specbench("results", "show", "run-a", "--store", results, "--json").out)["rows"]
        return [(row["method"], row["num_new_tokens"], row["num_steps"], row["equality"]) for row in rows]

    before = counts()
    (Path(results) / "specbench.duckdb").unlink()
    assert specbench("results", "ingest", "run-a", "--store", results).code == 0
    assert counts() == before


def test_ingest_without_runs_is_refused(specbench: Callable[..., Any], tmp_path: Path) -> None:
    assert specbench("results", "ingest", "--store", str(tmp_path)).code == 2


def test_leaderboard_writes_the_page(specbench: Callable[..., Any], results: str, tmp_path: Path) -> None:
    out = tmp_path / "board.html"
    ran = specbench("leaderboard", "-o", str(out), "--store", results)
    assert ran.code == 0 and ran.out.strip() == str(out) and "run-a" in out.read_text()
    only = json.loads(specbench("leaderboard", "-o", str(out), "--run", "run-b", "--store", results, "--json").out)
    assert only["num_bytes"] == out.stat().st_size and "run-a" not in out.read_text()


def test_leaderboard_of_a_mistyped_store_does_not_write_an_empty_page_over_a_good_one(
    specbench: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "board.html"
    out.write_text("good")
    ran = specbench("leaderboard", "-o", str(out), "--store", str(tmp_path / "stoer"))
    assert ran.code == 3 and "stoer" in ran.err
    assert out.read_text() == "good"


def test_leaderboard_before_the_first_run_says_so(
    specbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECBENCH_RESULTS", raising=False)
    ran = specbench("leaderboard")
    assert ran.code == 0 and "no run" in ran.err and "No measured run yet" in Path("board.html").read_text()


def test_leaderboard_where_nothing_may_be_written_is_an_environment_error(
    specbench: Callable[..., Any], results: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert specbench("leaderboard", "-o", str(tmp_path / "file" / "b.html"), "--store", results).code == 3
