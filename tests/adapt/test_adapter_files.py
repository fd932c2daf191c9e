"""Adapter files and stores: PEFT's layout, one base, versions that are never lost, damage that is named."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import plain_logits, tiny_lm, tiny_model, tokens_of
from safetensors.torch import load_file, save_file

from specbench.adapt import adapter as files
from specbench.adapt.adapter import Adapter, Lineage
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.versions import AdapterStore
from specbench.errors import EnvironmentFailed, UsageError
from tests.adapt.adapted import noisy_weights

SHAPE = LoraShape(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
BASE = "a" * 64


def _adapter(*, base_hash: str = BASE, seed: int = 1) -> Adapter:
    layers = LoraLayers(tiny_lm(dtype=torch.float32).model, SHAPE)
    lineage = Lineage(base="tiny", base_hash=base_hash, num_positions=7, figures={"before": 0.5, "after": 0.6})
    return Adapter(shape=SHAPE, weights=noisy_weights(layers, seed=seed), lineage=lineage)


def test_what_is_saved_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    made = _adapter()
    files.save(tmp_path / "one", made)
    found = files.load(tmp_path / "one", base_hash=BASE)
    assert found.shape == SHAPE and found.lineage == made.lineage and len(found.weights_hash) == 64
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in made.weights.items())


def test_an_adapter_of_another_base_is_refused_by_hash(tmp_path: Path) -> None:
    files.save(tmp_path / "one", _adapter())
    with pytest.raises(UsageError, match="belongs to the draft model tiny "):
        files.load(tmp_path / "one", base_hash="b" * 64)


@pytest.mark.parametrize("damage", ["weights", "config", "lineage"])
def test_a_damaged_adapter_is_an_error_with_its_file(tmp_path: Path, damage: str) -> None:
    files.save(tmp_path / "one", _adapter())
    name = {"weights": files.WEIGHTS, "config": files.CONFIG, "lineage": files.LINEAGE}[damage]
    path = tmp_path / "one" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(EnvironmentFailed) as failed:
        files.load(tmp_path / "one", base_hash=BASE)
    assert name in str(failed.value.where)


def test_peft_loads_what_we_write_and_computes_the_same(tmp_path: Path) -> None:
    """The independent oracle: PEFT itself over the same base."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    folder, text = tmp_path / "base", tokens_of(3, 12)
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    ours = tiny_lm(dtype=torch.float32)
    layers = LoraLayers(ours.model, SHAPE)
    layers.attach()
    made = _adapter()
    layers.set(made.weights)
    files.save(tmp_path / "adapter", made)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([text])).logits[0]
    torch.testing.assert_close(plain_logits(ours, text), logits, rtol=1e-4, atol=1e-3)


def test_the_reference_layout_is_read_with_scale_as_alpha(tmp_path: Path) -> None:
    made = _adapter()
    renamed = {
        name.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b"): tensor
        for name, tensor in made.weights.items()
    }
    save_file(renamed, tmp_path / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 4, "scale": 8.0, "dropout": 0.0}}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    found = files.import_foreign(tmp_path, base="tiny", base_hash=BASE)
    assert found.shape == SHAPE and found.lineage.source == "reference"
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in made.weights.items())
    transposed = {name: tensor.T.contiguous() for name, tensor in renamed.items()}
    save_file(transposed, tmp_path / "adapters.safetensors")
    with pytest.raises(UsageError, match="MLX-LM's own layout"):
        files.import_foreign(tmp_path, base="tiny", base_hash=BASE)


def test_a_peft_adapter_without_lineage_is_imported_not_guessed(tmp_path: Path) -> None:
    files.save(tmp_path / "one", _adapter())
    (tmp_path / "one" / files.LINEAGE).unlink()
    with pytest.raises(UsageError, match="does not say which weights"):
        files.load(tmp_path / "one", base_hash=BASE)
    assert files.import_foreign(tmp_path / "one", base="tiny", base_hash=BASE).shape.rank == 4
    config = json.loads((tmp_path / "one" / files.CONFIG).read_text())
    (tmp_path / "one" / files.CONFIG).write_text(json.dumps({**config, "use_rslora": True}))
    assert files.import_foreign(tmp_path / "one", base="tiny", base_hash=BASE).shape.alpha == 16.0
    for name in ("alpha_pattern", "rank_pattern"):
        (tmp_path / "one" / files.CONFIG).write_text(json.dumps({**config, name: {"q_proj": 32}}))
        with pytest.raises(UsageError, match=f"ranks or scales of their own .{name}"):
            files.import_foreign(tmp_path / "one", base="tiny", base_hash=BASE)


def test_a_store_keeps_versions_and_goes_back_step_by_step(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    with store.writing():
        assert (store.active(), store.numbers()) == (0, [])
        assert [store.add(_adapter(seed=seed)) for seed in (1, 2)] == [1, 2]
        store.activate(1)
        store.activate(2)
        store.activate(1, "maths")
        assert (store.active(), store.active("maths")) == (2, 1)
        assert [store.rollback(), store.rollback()] == [1, 0]
        with pytest.raises(UsageError, match="nothing to roll back to"):
            store.rollback()
        with pytest.raises(UsageError, match="no adapter version 9"):
            store.activate(9)
        with pytest.raises(UsageError, match="this store's adapters belong to"):
            store.add(_adapter(base_hash="b" * 64))
    assert store.load(2, base_hash=BASE).lineage.created


def test_a_version_whose_weights_are_damaged_hinders_no_other(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(_adapter())
    (store.path(1) / files.WEIGHTS).write_bytes(b"")
    assert store.add(_adapter(seed=2)) == 2 and store.load(2).weights
    with pytest.raises(UsageError, match="this store's adapters belong to"):
        store.add(_adapter(base_hash="b" * 64))


def test_activating_the_active_version_again_leaves_the_way_back_as_it_was(tmp_path: Path) -> None:
    """A roll-back that reports success drafts with another version than before."""
    store = AdapterStore(tmp_path)
    with store.writing():
        for _ in range(2):
            store.add(_adapter())
        for _ in range(2):
            store.activate(1)
            store.activate(1, "maths")
        assert store.history() == {"": [0, 1], "maths": [1]}
        assert store.rollback() == 0 == store.active()
        store.activate(2, "maths")
        assert store.rollback("maths") == 1
        with pytest.raises(UsageError, match="nothing to roll back to"):
            store.rollback("maths")
        # As stores were written before.
        (tmp_path / "active.json").write_text('{"": [0, 1, 2, 2, 2], "maths": [2, 2]}')
        assert store.rollback() == 1 and store.history()[""] == [0, 1]
        with pytest.raises(UsageError, match="nothing to roll back to"):
            store.rollback("maths")


def test_a_damaged_pointer_is_named_and_activate_mends_it(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(_adapter())
    (tmp_path / "active.json").write_text("[")
    with pytest.raises(EnvironmentFailed, match=r"active\.json cannot be read"):
        store.active()
    store.activate(1)
    assert store.active() == 1


def test_two_processes_do_not_adapt_one_store(tmp_path: Path) -> None:
    """The second is told who does; a process that died holds nothing."""
    code = (
        "import sys, pathlib; from specbench.adapt.versions import AdapterStore\n"
        f"with AdapterStore(pathlib.Path({str(tmp_path)!r})).writing():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {other.pid} on .* is adapting here"):
        AdapterStore(tmp_path).writing().__enter__()
    other.kill()
    other.communicate()
    with AdapterStore(tmp_path).writing():
        pass


def test_no_part_of_an_adapter_is_left_where_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailed, match=r"cannot write .*one: Not a directory"):
        files.save(tmp_path / "file" / "one", _adapter())
    files.save(tmp_path / "one", _adapter())
    with pytest.raises(EnvironmentFailed, match="exists already"):
        files.save(tmp_path / "one", _adapter())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "one"]
    assert load_file(tmp_path / "one" / files.WEIGHTS)


def test_a_full_disk_and_a_forbidden_folder_are_named_as_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store, its list of versions and an adapter's files word it with the shared sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailed, match=r"cannot write .*: (Not a directory|File exists)") as refused:
        AdapterStore(tmp_path / "file").writing().__enter__()
    assert "--store DIR" in refused.value.try_

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EnvironmentFailed, match=r"disk is full: .*active\.json"):
        AdapterStore(tmp_path).activate(0)
    with pytest.raises(EnvironmentFailed, match=r"disk is full: .*one"):
        files.save(tmp_path / "one", _adapter())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
