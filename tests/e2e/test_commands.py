"""The commands a user types, verbatim, from an empty folder, on the embedded target."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import environment

QUICK = ("--max-new-tokens", "12", "--repeats", "1", "--threads", "1")


def test_run_suites_mtbench_yaml_works_from_any_folder_and_says_what_it_took(specbench, shared, tmp_path):
    done = specbench("run", "suites/mtbench.yaml", "--data", str(shared / "suites"), "--limit", "2", *QUICK)
    assert done.code == 0, done.err
    first = done.err.splitlines()[0]
    assert "specbench run suites/mtbench.yaml" in first and "--target demo" in first
    taken = first.partition("--methods ")[2].split()[0].split(",")
    assert taken[0] == "autoregressive" and {"draft_model", "oracle", "prompt_lookup"} <= set(taken)
    assert "draft_model" in done.out and "mtbench · 2 questions" in done.out
    assert (tmp_path / "home" / "results" / "specbench.duckdb").exists()


def test_a_run_is_listed_shown_compared_exported_and_drawn(inside, tmp_path):
    home = tmp_path / "home"
    done = inside("run", "demo", "--limit", "3", "--methods", "draft_model,prompt_lookup,oracle", *QUICK, "--json")
    assert done.code == 0, done.err
    summary = done.json()
    assert summary["schema"] == 1 and summary["target"] == "demo" and summary["suite"] == "demo"
    rows = {row["method"]: row for row in summary["rows"]}
    assert {"autoregressive", "autoregressive#2", "draft_model", "prompt_lookup", "oracle"} <= set(rows)
    for row in rows.values():
        assert row["lossless"] and row["equality"]["bug"] == 0 and row["num_questions"] == 3
    run_id = summary["run_id"]
    listed = inside("results", "ls", "--json").json()
    assert listed[0]["run_id"] == run_id
    assert inside("results", "show", run_id, "--json").json()["rows"][0]["method"] == "autoregressive"
    assert "draft_model" in inside("results", "show", run_id).out
    answers = home / "answers.jsonl"
    exported = inside("results", "export", run_id, "--format", "answers", "--method", "draft_model", "-o", str(answers))
    assert exported.code == 0, exported.err
    assert len(answers.read_text().splitlines()) == 3
    drawn = inside("leaderboard", "-o", "board.html")
    assert drawn.code == 0 and (home / "board.html").stat().st_size < 2_500_000
    again = inside("run", "demo", "--limit", "3", "--methods", "draft_model", *QUICK, "--json").json()["run_id"]
    compared = inside("results", "compare", run_id, again)
    assert compared.code == 0 and "draft_model" in compared.out


def test_resume_needs_the_run_id_only_and_a_finished_run_measures_nothing_more(inside, tmp_path):
    run_id = inside("run", "demo", "--limit", "1", *QUICK, "--methods", "prompt_lookup", "--json").json()["run_id"]
    journal = tmp_path / "home" / "results" / "runs" / run_id / "events.jsonl"
    before = journal.read_text().count('"e":"generation_finished"')
    done = inside("run", "--resume", run_id, "--json")
    assert done.code == 0, done.err
    assert done.json()["run_id"] == run_id
    assert journal.read_text().count('"e":"generation_finished"') == before


def test_generate_answers_the_same_with_every_method(inside):
    texts = set()
    for method in ("autoregressive", "prompt_lookup", "draft_model"):
        done = inside("generate", "What is 3 plus 4?", "--method", method, "--max-new-tokens", "24", "--threads", "1")
        assert done.code == 0, done.err
        texts.add(done.out)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "demo", "--methods", "prompt_lokup"), 2, "prompt_lookup"),
        (("run", "demoo"), 2, "demo"),
        (("run", "demo", "--set", "prompt_lookup.num_token=3"), 2, "num_tokens"),
        (("run", "demo", "--tempratur", "1"), 2, "--temperature"),
        (("run", "demo", "--device", "cuda"), 3, "CUDA"),
        (("run", "demo", "--target", "./nowhere"), 3, "nowhere"),
        (("run", "spec_bench"), 3, "spec_bench/question.jsonl"),
        (("run", "demo", "--rule", "typical"), 2, "temperature"),
        (("run", "--resume", "nothing"), 2, "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_arguments_say_what_where_and_what_to_type(inside, words, code, said):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = inside(*words)
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_bad_suites_name_the_file_and_the_line(inside, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "fine"}\n{"prompt": \n')
    done = inside("run", str(broken))
    assert done.code == 2 and "broken.jsonl:2" in done.err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = inside("run", str(empty))
    assert done.code == 2 and "empty.jsonl" in done.err


def test_pickled_and_damaged_weights_are_refused(inside, tmp_path):
    from specbench import paths

    pickled, damaged = tmp_path / "pickled", tmp_path / "damaged"
    for folder in (pickled, damaged):
        shutil.copytree(paths.DEMO_MODELS["demo"], folder)
        (folder / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = inside("run", "demo", "--target", str(pickled), "--methods", "prompt_lookup")
    assert done.code == 3 and "pickled" in done.err and "safetensors" in done.err
    whole = (paths.DEMO_MODELS["demo"] / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    done = inside("run", "demo", "--target", str(damaged), "--methods", "prompt_lookup")
    assert done.code == 3 and "cannot be read" in done.err and "Traceback" not in done.err


def test_a_draft_model_of_another_vocabulary_is_refused_with_the_difference(inside, shared):
    other = shared / "models" / "stories260k-llama"
    done = inside(
        "run", "demo", "--methods", "draft_model", "--set", f"draft_model.model={other}", "--limit", "1", *QUICK
    )
    assert done.code == 2, done.err
    assert "vocabular" in done.err


def test_ctrl_c_keeps_the_finished_answers_and_exits_130(tmp_path):
    store = tmp_path / "results"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "specbench", "run", "demo", "--methods", "prompt_lookup", "--limit", "6"),
            *("--max-new-tokens", "48", "--threads", "1", "--store", str(store)),
        ],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background inherits "SIGINT is ignored", and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        journals = list((store / "runs").glob("*/events.jsonl"))
        if journals and journals[0].read_text().count('"e":"generation_finished"') >= 3:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume" in err and "Traceback" not in err
    [journal] = list((store / "runs").glob("*/events.jsonl"))
    last = json.loads(journal.read_text().splitlines()[-1])
    assert (last["e"], last["state"]) == ("run_finished", "interrupted")


@pytest.mark.tmux
def test_the_table_fits_a_real_terminal(tmp_path):
    """As the run prints it in a narrow one, and as it is shown again in one of 80 columns."""
    name = f"specbench-test-{os.getpid()}"
    tmux = lambda *words: subprocess.run(["tmux", *words], capture_output=True, text=True, check=True).stdout  # noqa: E731
    program = f"PYTHONPATH={Path(__file__).resolve().parents[2]} {sys.executable} -m specbench"
    command = (
        f"cd {tmp_path} && {program} run demo --methods prompt_lookup,draft_model --limit 2 --store results "
        f"{' '.join(QUICK)}; "
        f"echo done-$?; read line; {program} results show --store results $(ls results/runs); echo shown-$?; sleep 60"
    )

    def wait_for(words):
        screen, deadline = "", time.monotonic() + 120
        while time.monotonic() < deadline and words not in screen:
            time.sleep(0.2)
            screen = tmux("capture-pane", "-p", "-S", "-200", "-t", name)
        return screen

    tmux("new-session", "-d", "-s", name, "-x", "48", "-y", "20", command)
    try:
        screens = {48: wait_for("done-")}
        tmux("resize-window", "-t", name, "-x", "80", "-y", "24")
        tmux("send-keys", "-t", name, "Enter")
        screens[80] = wait_for("shown-").partition("done-0")[2]
    finally:
        subprocess.run(["tmux", "kill-session", "-t", name], check=False)
    assert "done-0" in screens[48] and "shown-0" in screens[80], screens
    for columns, screen in screens.items():
        assert "prompt_lookup" in screen and "speed-up" in screen, screen
        assert max(len(line.rstrip()) for line in screen.splitlines()) <= columns
