"""Answers written by a target: exact ids, nothing twice, resumable, told apart from those of other settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from specbench.data import Documents, Prompt, load_documents, load_prompts, writing
from specbench.data.generating import GenerateRequest, generate, parse_device_groups
from specbench.data.job import Folder, How
from specbench.data.responses import Response, append, make_room, merged, read_responses
from specbench.data.worker import work
from specbench.data.writing import EngineWriter, write_responses
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.sampling import Sampling
from tests.helpers import has_ended

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lm() -> CachedLM:
    """The embedded target."""
    torch.set_num_threads(1)
    return load_lm("demo", device=CPU, dtype=torch.float32)


def demo_prompts(number: int) -> tuple[Prompt, ...]:
    return load_prompts("demo", seed=0, limit=number).prompts


def write(lm: CachedLM, prompts: tuple[Prompt, ...], **options: Any) -> Documents:
    settings = {"sampling": Sampling(), "max_new_tokens": 12, "seed": 0, "max_len": 256, "batch_size": 2} | options
    return write_responses(lm, prompts, **settings)


def pairs(documents: Documents) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    return {(text.prompt, text.answer) for text in documents}


def response(number: int, *, answer: tuple[int, ...] = (5, 5, 5), reason: str = "length") -> Response:
    return Response(
        prompt_id=f"{number:04d}",
        messages=({"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "…"}),
        prompt_ids=(number,),
        answer_ids=answer,
        finish_reason=reason,
        rendering="key",
    )


# --- the library ------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_the_target_alone(lm: CachedLM) -> None:
    """Against transformers' own generate, ids for ids; only answers are learnt."""
    prompts = demo_prompts(3)
    documents = write(lm, prompts)
    assert len(documents) == 3
    reference = load_lm("demo", device=CPU, dtype=torch.float32).model
    reference.set_attn_implementation("eager")
    for text in documents:
        ids = torch.tensor([text.prompt])
        with torch.inference_mode():
            expected = reference.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert text.answer == tuple(expected[0, ids.shape[1] :].tolist())
        assert text.learn == (False,) * text.prompt_length + (True,) * text.answer_length


def test_answers_are_written_through_captured_steps_where_a_device_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that goes operator by operator would take five times as long; the ids are the same."""
    prompts, lm = demo_prompts(4), load_lm("demo", device=CPU, dtype=torch.float64)
    plain = write(lm, prompts)
    for path in (Path(os.environ["SPECBENCH_CACHE"]) / "responses").iterdir():
        path.unlink()
    made: list[RecordedGraphs] = []

    def recorded(of: CachedLM) -> RecordedGraphs:
        assert of is lm
        made.append(RecordedGraphs())
        return made[-1]

    monkeypatch.setattr(writing, "graphs_for", recorded)
    assert pairs(write(lm, prompts)) == pairs(plain)
    assert made and made[0]._last is not None, "steps were replayed"


def test_a_second_call_asks_nothing_and_another_seed_asks_again(lm: CachedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = demo_prompts(2)
    first = write(lm, prompts, sampling=Sampling(temperature=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(EngineWriter, "write", lambda *_: pytest.fail("asked again"))
        again = write(lm, prompts, sampling=Sampling(temperature=1.0))
    assert pairs(again) == pairs(first) and again.fingerprint == first.fingerprint
    other = write(lm, prompts, sampling=Sampling(temperature=1.0), seed=1)
    assert pairs(other) != pairs(first)


def test_what_was_written_before_a_kill_is_kept(lm: CachedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = demo_prompts(4)
    whole = write(lm, prompts, batch_size=1, sampling=Sampling(temperature=0.7))
    for path in (Path(os.environ["SPECBENCH_CACHE"]) / "responses").iterdir():
        path.unlink()
    plain = EngineWriter.write
    calls: list[int] = []

    def dying(self: EngineWriter, asks: Any) -> list[Response]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(asks))
        return plain(self, asks)

    with monkeypatch.context() as patch:
        patch.setattr(EngineWriter, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            write(lm, prompts, batch_size=1, sampling=Sampling(temperature=0.7))
    asked: list[int] = []
    monkeypatch.setattr(EngineWriter, "write", lambda self, asks: asked.append(len(asks)) or plain(self, asks))
    assert pairs(write(lm, prompts, batch_size=1, sampling=Sampling(temperature=0.7))) == pairs(whole)
    assert sum(asked) == 2


def test_prompts_that_leave_no_room_are_counted(lm: CachedLM) -> None:
    long = Prompt(prompt_id="long", messages=({"role": "user", "content": "1 " * 600},))
    documents = write(lm, (*demo_prompts(1), long))
    assert documents.counts.unusable == {"prompt and answer exceed the context": 1}
    with pytest.raises(UsageError, match="no prompt leaves room"):
        write(lm, (long,))


# --- the files --------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_no_row_and_the_next_one_begins_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, [response(1), response(2)])
    with path.open("a") as file:
        file.write(response(3).line()[:30])
    assert [row.prompt_id for row in read_responses(path)] == ["0001", "0002"]
    make_room(path)
    append(path, [response(4)])
    assert read_responses(path) == [response(1), response(2), response(4)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(response(1).line() + '{"prompt_id": "x"}\n' + response(2).line())
    with pytest.raises(UsageError) as caught:
        read_responses(path)
    assert caught.value.where == f"{path}:2"


def test_merging_drops_what_was_written_twice_and_says_what_is_left() -> None:
    twin = replace(response(1), prompt_id="0009")
    rows, statistics = merged([response(2, answer=(1, 2, 3, 2, 3), reason="stop_id"), response(1), response(1), twin])
    assert [row.prompt_id for row in rows] == ["0001", "0002"]
    assert (statistics.num_rows, statistics.num_repeated, statistics.num_answer_tokens) == (2, 2, 8)
    assert statistics.mean_length == 4.0 and statistics.share_stopped == 0.5
    # (5,5,5): 1 of 3 tokens, 1 of 2 bigrams; (1,2,3,2,3): 3 of 5, 3 of 4. One answer alone has 4-grams: 2 of 2.
    assert statistics.distinct == {"1": pytest.approx((1 / 3 + 3 / 5) / 2), "2": 0.625, "4": 1.0}


# --- the command's work -----------------------------------------------------------------------------------------------


def request(out: Path, **options: Any) -> GenerateRequest:
    return GenerateRequest(
        **{"target": "demo", "dataset": "demo", "out": out, "limit": 4, "max_new_tokens": 8, "threads": 1} | options
    )


def test_other_settings_do_not_mix_into_a_begun_folder(tmp_path: Path) -> None:
    generate(request(tmp_path / "out", limit=2))
    with pytest.raises(UsageError, match=r"begun with temperature 0\.0, not 0\.5"):
        generate(request(tmp_path / "out", limit=2, temperature=0.5))
    with pytest.raises(UsageError, match="begun with prompts"):
        generate(request(tmp_path / "out", limit=3))


def test_what_was_generated_is_a_dataset_with_exactly_its_ids(tmp_path: Path, demo_tokenizer: Any) -> None:
    done = generate(request(tmp_path / "out"))
    assert done.statistics.num_rows == 4 and done.num_resumed == 0
    documents = load_documents(str(tmp_path / "out"), tokenizer=demo_tokenizer, max_len=512, seed=0)
    rows = read_responses(done.file)
    assert pairs(documents) == {(row.prompt_ids, row.answer_ids) for row in rows}
    again = generate(request(tmp_path / "out"))
    assert again.num_resumed == 4 and read_responses(again.file) == rows


def test_two_commands_in_one_folder_is_an_error(tmp_path: Path) -> None:
    with Folder(tmp_path / "out").locked(), pytest.raises(UsageError, match="another command writes"):
        generate(request(tmp_path / "out"))


def questions(folder: Path, *texts: str) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def test_a_job_that_is_done_but_for_prompts_without_room_is_resumed(tmp_path: Path) -> None:
    settings = {"dataset": questions(tmp_path, "Hello", "1 " * 600), "limit": None}
    first = generate(request(tmp_path / "out", **settings))
    again = generate(request(tmp_path / "out", **settings))
    assert (first.num_too_long, first.statistics.num_rows) == (1, 1)
    assert (again.num_too_long, again.num_resumed, again.statistics) == (1, 1, first.statistics)


def test_a_worker_whose_share_has_no_room_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = request(tmp_path / "out", dataset=questions(tmp_path, "Hello", "1 " * 600), limit=None)
    with monkeypatch.context() as patch:
        patch.setattr("specbench.data.worker.work", lambda *_: 0)
        generate(plan)
    how = How(device="cpu", batch_size=2, threads=1, trust_remote_code=False, num_workers=2, num_devices=1)
    written: list[int] = []
    too_long = [work(Folder(plan.out), number, how, lambda rows, _: written.append(rows)) for number in range(2)]
    assert sorted(too_long) == [0, 1] and written == [1]


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prompt leaves room for 2000 new tokens"):
        generate(request(tmp_path / "out", max_new_tokens=2000))


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_and_is_resumed_to_the_same_answers(tmp_path: Path) -> None:
    """Two worker processes; the parent is killed without warning when something is written, and one goes on alone."""
    settings = {"limit": 12, "max_new_tokens": 48, "batch_size": 1}
    code = (
        "import sys; from pathlib import Path; from specbench.data.generating import GenerateRequest, generate\n"
        f"generate(GenerateRequest(target='demo', dataset='demo', out=Path(sys.argv[1]), processes=2, threads=1, "
        f"**{settings!r}))"
    )
    repository = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "killed")], env={**os.environ, "PYTHONPATH": str(repository)}
    )
    folder = Folder(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while parent.poll() is None and not folder.done() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(parent.pid).children(recursive=True)
    num_before = len(folder.done())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20  # of a loaded machine
    while (left := [worker for worker in workers if not has_ended(worker)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers and not left, "the workers outlived their parent"
    settled = len(folder.done())
    assert 0 < num_before <= settled < 12, "they ended, and not because nothing was left to write"
    resumed = generate(request(tmp_path / "killed", **settings))
    whole = generate(request(tmp_path / "whole", **settings))
    assert resumed.num_resumed == settled
    assert len(folder.done()) == 12, "none is written twice"
    assert read_responses(resumed.file) == read_responses(whole.file)


def test_device_groups_are_read_and_checked(tmp_path: Path) -> None:
    assert parse_device_groups("0,1:2,3") == (("0", "1"), ("2", "3"))
    for text in ("0,0", "0:", "a", "0:1:0"):
        with pytest.raises(UsageError):
            parse_device_groups(text)
    with pytest.raises(UsageError, match="one device a process") as caught:
        generate(request(tmp_path, device_groups=(("0", "1"), ("2", "3"))))
    assert "0:1:2:3" in caught.value.try_


def test_device_groups_count_among_the_devices_this_process_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Started(Exception):
        pass

    def start(*_: Any, env: dict[str, str], **__: Any) -> None:
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        raise Started

    monkeypatch.setattr("specbench.data.generating.subprocess.Popen", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-1f,7")
    for groups in ((("1",), ("0",)), (("2",), ("1",))):
        with pytest.raises(Started):
            generate(request(tmp_path / "out", limit=2, device_groups=groups))
    assert seen == ["GPU-1f", "7"]
    with pytest.raises(UsageError, match=r"device 3, but CUDA_VISIBLE_DEVICES=6,GPU-1f,7: 3 devices are visible"):
        generate(request(tmp_path / "out", limit=2, device_groups=(("0",), ("3",))))


# --- vLLM -------------------------------------------------------------------------------------------------------------


def test_vllm_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="vLLM is not installed") as caught:
        generate(request(tmp_path / "out", backend="vllm"))
    assert "pip install vllm" in caught.value.try_


def test_vllm_is_asked_with_our_ids_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with vLLM's names: the protocol is checked, not vLLM itself, which needs its own machine."""
    seen: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            seen.append(options)

        def generate(self, prompts: list[dict[str, Any]], params: list[Any]) -> list[Any]:
            seen.append((prompts, params))
            # One keeps the stop id apart, one among the ids, the others run to the length.
            ends = [([9, 8], "stop", 3), ([9, 3], "stop", None)] + [([9, 9], "length", None)] * (len(prompts) - 2)
            return [
                types.SimpleNamespace(
                    outputs=[types.SimpleNamespace(token_ids=ids, finish_reason=why, stop_reason=stop)]
                )
                for ids, why, stop in ends
            ]

    module = types.ModuleType("vllm")
    module.__spec__ = types.SimpleNamespace(name="vllm")  # type: ignore[assignment]
    module.LLM, module.SamplingParams = LLM, lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    done = generate(request(tmp_path / "out", backend="vllm", temperature=0.5, dtype="float32"))
    rows = read_responses(done.file)
    options, (prompts, params) = seen
    assert options["tensor_parallel_size"] == 1 and options["dtype"] == "float32"
    assert {tuple(item["prompt_token_ids"]) for item in prompts} == {row.prompt_ids for row in rows}
    assert params[0]["stop_token_ids"] == [3] and params[0]["temperature"] == 0.5 and params[0]["max_tokens"] == 8
    assert len({item["seed"] for item in params}) == 4
    # Two of the four ran to the length with different prompts: both stay.
    assert sorted(row.answer_ids for row in rows) == [(9, 3), (9, 8, 3), (9, 9), (9, 9)]
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["share_stopped"] == 0.5
