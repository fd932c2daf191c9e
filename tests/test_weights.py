"""Trained drafters in another program's layout: both ways, refused with the list, and on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specbench import checkpoint, weights
from specbench.checkpoint import Checkpoint, TrainedOn
from specbench.errors import EnvironmentFailed, UsageError
from tests.test_registry import make_method

LAYOUTS = """
from specbench.errors import UsageError
from specbench.layouts import Read, Written


class Other:
    name = "other"
    summary = "Somebody else's names."

    def write(self, architecture, state, *, target):
        return Written(config={"dim": target["hidden_size"], "words": target["vocab_size"]},
                       tensors={f"their.{name}": tensor for name, tensor in state.items()})

    def read(self, config, tensors):
        unknown = [name for name in tensors if not name.startswith("their.")]
        if unknown:
            raise UsageError(f"unknown {unknown}")
        return Read(architecture={"depth": 2}, state={n.removeprefix("their."): t for n, t in tensors.items()},
                    hidden_size=config["dim"], vocab_size=config["words"], notes=("emb_norm is not used",))

    def num_tokens(self, architecture, options):
        return options["depth"]

    def serving(self, folder, *, target, num_tokens):
        return f"serve {target} --drafter {folder} --tokens {num_tokens}"


LAYOUTS = {"other": Other()}
"""


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    make_method(tmp_path / "methods", "mine")
    (tmp_path / "methods" / "mine" / "layouts.py").write_text(LAYOUTS)
    return tmp_path / "methods"


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    target = TrainedOn(name="org/target", weights_hash="f" * 64, hidden_size=4, vocab_size=6)
    made = Checkpoint(
        method="mine",
        architecture={"width": 3},
        target=target,
        state={"w": torch.eye(3)},
        training={"steps": 7, "options": {"depth": 2}},
    )
    checkpoint.save(tmp_path / "drafter", made)
    return tmp_path / "drafter"


def test_export_and_import_bring_back_the_same_bits(methods: Path, drafter: Path, tmp_path: Path) -> None:
    made = weights.export_weights(drafter, layout=None, out=tmp_path / "out", methods_dirs=[methods])
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"their.w"}
    assert made.serving == f"serve org/target --drafter {tmp_path / 'out'} --tokens 2"
    back = weights.import_weights(
        tmp_path / "out", method="mine", layout="other", target=None, out=tmp_path / "back", methods_dirs=[methods]
    )
    assert back.notes == ("emb_norm is not used",)
    read = checkpoint.load(tmp_path / "back", method="mine")
    assert torch.equal(read.state["w"], torch.eye(3)) and read.architecture == {"depth": 2}
    assert (read.target.hidden_size, read.target.vocab_size, read.target.name) == (4, 6, "unknown")


def test_a_hub_folder_says_what_it_is_and_how_to_run_it(methods: Path, drafter: Path, tmp_path: Path) -> None:
    weights.export_weights(drafter, layout="specbench", out=tmp_path / "hub", methods_dirs=[methods])
    card = (tmp_path / "hub" / "README.md").read_text()
    for said in ("base_model: org/target", "--set mine.weights=DIR", "steps: 7", '"depth": 2', '"width": 3'):
        assert said in card
    assert checkpoint.load(tmp_path / "hub", method="mine").state.keys() == {"w"}


def test_an_import_for_the_wrong_target_is_refused(methods: Path, drafter: Path, tmp_path: Path) -> None:
    weights.export_weights(drafter, layout="other", out=tmp_path / "out", methods_dirs=[methods])
    with pytest.raises(UsageError, match="width 4, but demo has 256"):
        weights.import_weights(
            tmp_path / "out", method="mine", layout="other", target="demo", out=tmp_path / "x", methods_dirs=[methods]
        )
    assert not (tmp_path / "x").exists()


def test_unknown_keys_unknown_layouts_and_a_full_folder_are_refused(
    methods: Path, drafter: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"dim": 4, "words": 6}')
    save_file({"rnn": torch.ones(1)}, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(UsageError, match="unknown \\['rnn'\\]"):
        weights.import_weights(
            tmp_path / "odd", method="mine", layout=None, target=None, out=tmp_path / "x", methods_dirs=[methods]
        )
    with pytest.raises(UsageError, match="no layout 'othr'") as refused:
        weights.export_weights(drafter, layout="othr", out=tmp_path / "y", methods_dirs=[methods])
    assert "other" in refused.value.try_
    with pytest.raises(UsageError, match="is not empty"):
        weights.export_weights(drafter, layout="other", out=tmp_path / "odd", methods_dirs=[methods])


def test_where_a_method_knows_several_layouts_all_that_would_do_are_named(
    methods: Path, drafter: Path, tmp_path: Path
) -> None:
    """An export told of the other programs' alone; an import proposed specbench's own and then refused it."""
    with (methods / "mine" / "layouts.py").open("a") as file:
        file.write("LAYOUTS['third'] = type('Third', (Other,), {'name': 'third'})()\n")
    given = {"out": tmp_path / "out", "methods_dirs": [methods]}
    for layout in (None, "thrd"):
        with pytest.raises(UsageError) as refused:
            weights.export_weights(drafter, layout=layout, **given)
        assert {"specbench", "other", "third"} <= set(re.findall(r"\w+", f"{refused.value.what} {refused.value.try_}"))
        with pytest.raises(UsageError) as refused:
            weights.import_weights(drafter, method="mine", layout=layout, target=None, **given)
        words = set(re.findall(r"\w+", f"{refused.value.what} {refused.value.try_}"))
        assert {"other", "third"} <= words and "specbench" not in words
    with pytest.raises(UsageError, match="a drafter as it is") as refused:
        weights.import_weights(drafter, method="mine", layout="specbench", target=None, **given)
    assert "--set mine.weights=DIR" in refused.value.try_


def test_the_commands_say_what_they_made_and_what_was_left_out(
    methods: Path,
    drafter: Path,
    tmp_path: Path,
    specbench: Callable[..., Any],
) -> None:
    where = ("--methods-dir", str(methods))
    out = specbench("weights", "export", str(drafter), "-o", str(tmp_path / "out"), *where)
    assert out.code == 0 and "1 tensors in layout other" in out.out and "serve org/target" in out.out
    ran = specbench(
        "weights", "import", str(tmp_path / "out"), "--method", "mine", "-o", str(tmp_path / "b"), "--json", *where
    )
    assert json.loads(ran.out)["num_parameters"] == 9 and "emb_norm" in ran.err
    listed = json.loads(specbench("weights", "layouts", "mine", "--json", *where).out)
    assert [row["name"] for row in listed] == ["specbench", "other"]


def test_a_full_disk_leaves_nothing_of_an_export(
    monkeypatch: pytest.MonkeyPatch, methods: Path, drafter: Path, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: IoError: No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(weights, "save_file", full)
    monkeypatch.setattr(checkpoint, "save_file", lambda *_, **__: full())
    for layout in ("other", "specbench"):
        with pytest.raises(EnvironmentFailed, match="No space left"):
            weights.export_weights(drafter, layout=layout, out=tmp_path / "out", methods_dirs=[methods])
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("layout", ["other", "specbench"])
def test_an_export_whose_push_failed_is_repeated_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch,
    methods: Path,
    drafter: Path,
    tmp_path: Path,
    specbench: Callable[..., Any],
    layout: str,
) -> None:
    class Api:
        def create_repo(self, *_: object, **__: object) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr(weights, "HfApi", Api)
    line = ["weights", "export", str(drafter), "-o", str(tmp_path / "out"), "--methods-dir", str(methods)]
    line += ["--layout", layout, "--push", "me/drafter"]
    failed = specbench(*line)
    assert failed.code == 3 and "then the same command again" in failed.err
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(Api, "upload_folder", lambda *_, **__: None, raising=False)
    assert "pushed to  https://huggingface.co/me/drafter" in specbench(*line).out
    (tmp_path / "out" / "config.json").write_text("{}")
    assert "not what this export makes" in specbench(*line).err


def test_a_push_without_network_says_so(monkeypatch: pytest.MonkeyPatch, drafter: Path) -> None:
    class Api:
        def create_repo(self, *_: object, **__: object) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr(weights, "HfApi", Api)
    with pytest.raises(EnvironmentFailed, match="no route to host"):
        weights.push(drafter, "me/drafter")


def test_a_push_uploads_the_folder(monkeypatch: pytest.MonkeyPatch, drafter: Path) -> None:
    calls: list[dict[str, object]] = []

    class Api:
        def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
            calls.append({"created": repo_id})

        def upload_folder(self, **given: object) -> None:
            calls.append(given)

    monkeypatch.setattr(weights, "HfApi", Api)
    assert weights.push(drafter, "me/drafter") == "https://huggingface.co/me/drafter"
    assert calls[0] == {"created": "me/drafter"} and calls[1]["folder_path"] == str(drafter)
