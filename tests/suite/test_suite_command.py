"""`specbench suites`: what it prints, where, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specbench.cli.suites import app
from specbench.errors import EnvironmentFailed, UsageError

runner = CliRunner()


def invoke(*arguments: str) -> tuple[str, str]:
    """(stdout, stderr) of `specbench suites ARGUMENTS`."""
    result = runner.invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)
    return result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [(), ("ls",)])
def test_the_list_names_counts_hashes_and_origins(arguments: tuple[str, ...]) -> None:
    out, err = invoke(*arguments)
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "36" in lines["demo"] and "demo.yaml" in lines["demo"]
    assert "1319" in lines["gsm8k"] and "openai/gsm8k (downloaded at first use)" in lines["gsm8k"]
    assert "missing: spec_bench/question.jsonl" in lines["spec_bench"]
    assert "curl" in err and "curl" not in out


def test_the_list_as_json(write_jsonl: Any, tmp_path: Path) -> None:
    write_jsonl("gsm8k/test.jsonl", [{"question": "2+2?", "answer": "#### 4"}])
    out, err = invoke("--json", "--data", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(out)}
    assert len(rows) == 7
    assert rows["gsm8k"] | {"hash": "", "title": ""} == {
        "name": "gsm8k",
        "title": "",
        "licence": "MIT",
        "num_questions": 1,
        "hash": "",
        "state": "local",
        "where": str(tmp_path / "gsm8k" / "test.jsonl"),
        "help": "",
    }
    assert err == ""


def test_options_before_the_command_are_refused_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="after the command"):
        invoke("--data", str(tmp_path), "ls")


@pytest.fixture
def target(tmp_path: Path, make_tokenizer: Any) -> str:
    folder = tmp_path / "target"
    template = "<s> {% for m in messages %}user : {{ m['content'] }} {% endfor %}bot :"
    make_tokenizer(chat_template=template).save_pretrained(folder)
    return str(folder)


def test_show_prints_the_rendered_prompts(write_jsonl: Any, target: str) -> None:
    rows = [{"turns": [f"hi {i}", "bye then"], "reference": "hello"} for i in range(5)]
    path = write_jsonl("mine.jsonl", rows)
    out, _ = invoke("show", str(path), "--limit", "2", "--target", target)
    assert out.count("<s> user : hi") == 2
    assert out.count("turn 2, after the answer:\n   bye then") == 2
    assert "2 of 5 questions" in out
    assert out.count("reference:\n   hello") == 2


def test_show_as_json_has_prompt_and_length(write_jsonl: Any, target: str) -> None:
    path = write_jsonl("mine.jsonl", [{"prompt": "hi"}])
    out, err = invoke("show", str(path), "--target", target, "--json")
    answer = json.loads(out)
    assert answer["questions"][0]["prompt"] == "<s> user : hi bot :"
    assert answer["questions"][0]["num_prompt_tokens"] == 6
    assert "all 1 questions" in err
    plain = json.loads(invoke("show", str(path), "--target", target, "--template", "plain", "--json")[0])
    assert plain["questions"][0]["prompt"] == "hi"


def test_hostile_text_reaches_no_terminal(write_jsonl: Any, target: str) -> None:
    path = write_jsonl("mine.jsonl", [{"prompt": "\x1b[2J[bold]hi[/bold]\x07\u202e", "category": "\x1b]0;x\x07"}])
    out, _ = invoke("show", str(path), "--target", target)
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert "\\x1b[2J[bold]hi[/bold]\\x07" in out


def test_a_target_without_tokenizer_says_what_to_give(write_jsonl: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EnvironmentFailed, match="no tokenizer for target"):
        invoke("show", str(write_jsonl("mine.jsonl", [{"prompt": "hi"}])), "--target", str(tmp_path / "empty"))


def test_fetch_of_inline_questions_says_there_is_nothing_to_do() -> None:
    out, err = invoke("fetch", "demo")
    assert "36 questions" in out
    assert "needs no download" in err


def test_listing_and_loading_load_no_torch_and_no_transformers() -> None:
    """`suites` promises an answer at once; torch alone is 2 s."""
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from specbench.cli.suites import app\n"
        "from specbench.suite import load_suite\n"
        "load_suite('demo')\n"
        "result = CliRunner().invoke(app, ['ls'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'duckdb', 'textual'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
