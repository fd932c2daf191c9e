"""A drafter's folder is written whole or not at all, and what does not fit is refused with what to do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from specbench import checkpoint, swapping
from specbench.checkpoint import Checkpoint, TrainedOn
from specbench.engine.decode import Engine
from specbench.errors import EnvironmentFailed, UsageError
from specbench.sampling import Sampling
from tests.helpers import tiny_lm

TARGET = TrainedOn(name="tiny-llama", weights_hash="abc", hidden_size=32, vocab_size=64, dtype="float64")


def _made(value: float = 1.0, **changed: object) -> Checkpoint:
    facts = {"method": "mine", "architecture": {"depth": 2}, "target": TARGET, "training": {"steps": 3}, **changed}
    return Checkpoint(state={"a.weight": torch.full((2, 3), value), "b": torch.arange(4)}, **facts)  # type: ignore[arg-type]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "d", _made())
    read = checkpoint.load(tmp_path / "d", method="mine")
    assert (read.architecture, read.target, read.training) == ({"depth": 2}, TARGET, {"steps": 3})
    assert torch.equal(read.state["a.weight"], torch.ones(2, 3)) and read.state["b"].dtype == torch.int64
    assert len(read.weights_hash) == 64


def test_a_save_replaces_the_former_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "d", _made(1.0))
    checkpoint.save(tmp_path / "d", _made(2.0))
    assert float(checkpoint.load(tmp_path / "d", method="mine").state["a.weight"][0, 0]) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_leaves_the_former_save_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "d", _made(1.0))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(EnvironmentFailed, match="No space left") as refused:
        checkpoint.save(tmp_path / "d", _made(2.0))
    assert "--out" in refused.value.try_
    assert float(checkpoint.load(tmp_path / "d", method="mine").state["a.weight"][0, 0]) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_drafter_whose_writer_was_killed_between_two_renames_is_found_again(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    checkpoint.save(tmp_path / "d", _made(1.0))
    (tmp_path / "d").rename(tmp_path / f".d.{gone.pid}.old")
    (tmp_path / f".d.{gone.pid}.part").mkdir()
    (tmp_path / f".d.{os.getpid()}.part").mkdir()
    found = checkpoint.load(checkpoint.resolve(str(tmp_path / "d"), "mine"), method="mine")
    assert float(found.state["a.weight"][0, 0]) == 1.0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".d.{gone.pid}.part", f".d.{os.getpid()}.part", "d"}, "who reads brings back and deletes nothing"
    swapping.put_right(tmp_path / "d")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".d.{os.getpid()}.part", "d"}, "what a living process is writing stays"
    (tmp_path / f".d.{gone.pid}.old").mkdir()
    swapping.put_right(tmp_path / "d")
    assert not (tmp_path / f".d.{gone.pid}.old").exists() and (tmp_path / "d" / "config.json").exists()


def test_what_lies_beside_a_folder_neither_hides_nor_hinders_it(tmp_path: Path) -> None:
    """A link to nowhere, a part that a machine elsewhere may be writing, and a leftover of a process of our number."""
    dead = tmp_path / ".d.999999999.old"
    dead.mkdir()
    (tmp_path / ".#d").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".d.999999998.part").mkdir()
    swapping.put_right(tmp_path / "d", drops=False)
    assert (tmp_path / "d").is_dir() and not dead.exists() and (tmp_path / ".d.999999998.part").is_dir()
    swapping.put_right(tmp_path / "d")
    assert not (tmp_path / ".d.999999998.part").exists()
    ours = tmp_path / f".d.{os.getpid()}.old"
    (ours / "left").mkdir(parents=True)
    part = swapping.part_of(tmp_path / "d")
    part.mkdir()
    (part / "new").touch()
    swapping.swap_in(part, tmp_path / "d")
    assert (tmp_path / "d" / "new").exists() and not ours.exists()


def test_another_methods_drafter_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "d", _made())
    with pytest.raises(UsageError, match="of method 'mine', not 'lstm'"):
        checkpoint.load(tmp_path / "d", method="lstm")


def test_another_programs_folder_is_pointed_to_the_importer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Drafter"]}')
    with pytest.raises(UsageError) as refused:
        checkpoint.load(tmp_path, method="redrafter")
    assert "weights import" in refused.value.try_


@pytest.mark.parametrize("text", ["{", "[]", '{"specbench": 1, "method": "mine"}', '{"specbench": 9}'])
def test_a_damaged_or_newer_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(EnvironmentFailed, match=r"config\.json|newer specbench"):
        checkpoint.load(tmp_path, method="mine")


def test_a_pickle_is_refused_and_torn_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"specbench": 1}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(EnvironmentFailed, match="pickles"):
        checkpoint.read_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(EnvironmentFailed, match="cannot be read"):
        checkpoint.read_tensors(tmp_path)


def test_missing_unknown_and_misshapen_weights_are_listed_together() -> None:
    state = {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    with pytest.raises(UsageError) as refused:
        checkpoint.load_state(nn.Linear(3, 2), state, folder=Path("d"))
    for said in ("missing bias", "unknown extra", "weight is (3, 3), not (2, 3)"):
        assert said in str(refused.value)


def test_a_target_of_another_width_or_vocabulary_is_refused_and_the_training_command_named() -> None:
    view = Engine(tiny_lm("llama"), sampling=Sampling(), max_len=16).view()
    checkpoint.check_fits(_made(), view, folder=Path("d"))
    for wrong, said in ((48, "width 48"), (32, "vocabulary of 99")):
        target = TrainedOn(name="other", weights_hash="", hidden_size=wrong, vocab_size=64 if wrong == 48 else 99)
        with pytest.raises(UsageError, match=said) as refused:
            checkpoint.check_fits(_made(target=target), view, folder=Path("d"))
        assert refused.value.try_ == "specbench train --method mine --target tiny-llama"


def test_no_drafter_at_a_path_and_no_shipped_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no drafter at"):
        checkpoint.resolve(str(tmp_path / "none"), "mine")
    with pytest.raises(EnvironmentFailed, match="is shipped"):
        checkpoint.resolve("demo", "mine")
