"""`specbench data`: its words, its JSON, its exit codes, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specbench.cli.entry import main

from .conftest import WriteRows


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", *args])
    output = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, output.out, output.err


def test_the_list_names_every_set_with_licence_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert {"demo", "sharegpt", "alpaca", "ultrachat", "magicoder", "wikitext", "gsm8k"} <= set(rows)
    assert rows["demo"]["state"] == "shipped"
    assert rows["ultrachat"]["where"] == "HuggingFaceH4/ultrachat_200k::train_sft@main"


def test_a_data_folder_is_searched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "text" / "alpaca" / "alpaca_subset.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    code, out, err = run(capsys, "--data", str(tmp_path))
    assert code == 0 and str(file) in out.replace("\n", "")
    assert "a subset of Alpaca's 52,002 rows" in err


def test_show_marks_what_is_learnt(capsys: pytest.CaptureFixture[str], write_rows: WriteRows) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "2+2?", "response": "4\x1b[31m"}])
    code, out, _ = run(capsys, "show", str(path))
    assert code == 0
    assert "⟦4\\x1b[31m<|end|>⟧" in out
    assert "1 of 1 rows kept" in out


def test_show_as_json_is_one_object(capsys: pytest.CaptureFixture[str], write_rows: WriteRows) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "2+2?", "response": "4"}])
    code, out, _ = run(capsys, "show", str(path), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["counts"]["num_kept"] == 1
    assert sum(facts["documents"][0]["learn"]) == 2


def test_errors_carry_their_exit_code(capsys: pytest.CaptureFixture[str], write_rows: WriteRows) -> None:
    path = write_rows("rows.jsonl", [{"a": "2+2?"}])
    code, _, err = run(capsys, "show", str(path))
    assert code == 2 and "'a'" in err and "--columns" in err
    code, out, _ = run(capsys, "show", "ultrachat", "--json")
    assert code == 3 and json.loads(out)["exit_code"] == 3
    code, _, err = run(capsys, "generate", "--out", str(path.parent / "out"), "--backend", "vlm")
    assert code == 2 and "specbench or vllm" in err


def test_generate_reports_what_it_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--limit", "2", "--max-new-tokens", "4", "--out", str(tmp_path / "out"), "--json"]
    code, out, err = run(capsys, "generate", *options)
    facts = json.loads(out)
    assert code == 0 and facts["statistics"]["num_rows"] == 2
    assert Path(facts["file"]).is_file() and "2 of 2 answers" in err


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbench.cli import data

    out = tmp_path / "out"
    options = ["generate", "--limit", "2", "--batch-size", "1", "--max-new-tokens", "4", "--out", str(out)]

    class Impatient:
        def __call__(self, num_done: int, num_wanted: int, num_tokens: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(data, "_Progress", Impatient)
        code, _, err = run(capsys, *options)
        assert code == 130 and "before there was a result" not in err
        assert f"interrupted; 1 finished answer is kept in {out}. The same command goes on\n" in err
    code, _, err = run(capsys, *options)
    assert code == 0 and "1 answer was there already" in err


def test_ctrl_c_before_the_first_answer_promises_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbench.data import generating

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generating, "load_prompts", stopped)
    code, _, err = run(capsys, "generate", "--out", str(tmp_path / "out"))
    assert code == 130 and err == "interrupted before there was a result\n"


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from specbench.cli.entry import main\n"
        "try: main(['data', 'ls', '--json'])\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
