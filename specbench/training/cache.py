"""`--cache-states`: the target's states (and laws) of every row on disk, so that later epochs run without the target.

Shards of rows as safetensors under the cache folder, named by what they depend on: target, documents, taps, laws. A
killed caching goes on with the shard it stood at. Planned first: bytes and time are said, a full disk is refused.

R rows of a shard, T tokens a row, K taps, D hidden size, k entries of a law.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.packed import continuations_of
from specbench.quantisation import NONE
from specbench.recipe import Features
from specbench.store.files import cannot_write
from specbench.training.features import Online
from specbench.training.teachers import TopTeacher, WholeTeacher, top_laws

_SHARD_BYTES = 256 << 20
_MARGIN = 1.02
"""Bytes wanted on the disk over bytes of tensors: headers and file system."""


def _unless_plain(quantisation: str) -> list[str]:
    """What is added to a cache's key: nothing for plain weights, whose caches are older than this entry."""
    return [] if quantisation == NONE else [quantisation]


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What caching would cost."""

    folder: Path
    num_bytes: int
    missing_bytes: int
    """What is not there yet from an earlier, equal training."""
    free_bytes: int
    rows_per_shard: int
    seconds: float
    """Estimated from one row, for one process."""

    @property
    def fits(self) -> bool:
        """The disk has room for what is not there yet."""
        return self.missing_bytes * _MARGIN <= self.free_bytes


class StateCache:
    """A FeatureSource over files."""

    def __init__(self, online: Online, *, top_k: int, identity: str) -> None:
        """identity: hash of documents and packing. Raises UsageError for `seq` with laws, which would be F times the
        bytes."""
        needs = online.needs
        if needs.learn == "seq" and needs.objective.needs_teacher:
            raise UsageError(
                "--cache-states keeps no laws of continuations",
                where="--cache-states",
                try_="--learn seq --loss ce, or without --cache-states",
            )
        self._online = online
        self._top_k = min(top_k, online.lm.vocab_size) if needs.objective.needs_teacher else 0
        self._recorded = needs.taps if self._top_k else needs.recorded
        key = json.dumps(
            [online.lm.weights_hash, str(online.lm.dtype), identity, self._recorded, self._top_k,
             needs.learn == "seq" and needs.depth, online.rows.length, *_unless_plain(online.lm.quantisation)]
        )  # fmt: skip
        name = f"{Path(online.lm.name).name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.folder = paths.cache_dir() / "states" / name

    # --- planning --------------------------------------------------------------------------------------------------

    @cached_property
    def _row_bytes(self) -> int:
        lm, needs, length = self._online.lm, self._online.needs, self._online.rows.length
        width = int(lm.lm_head.weight.shape[1])  # type: ignore[index]
        of_state = len(self._recorded) * width * torch.empty((), dtype=lm.dtype).element_size()
        of_law = self._top_k * 8 + 4 if self._top_k else 0
        of_continuation = 4 * (needs.depth + 1) if needs.learn == "seq" else 0
        return length * (of_state + of_law + of_continuation)

    @property
    def rows_per_shard(self) -> int:
        """Rows of one file."""
        return max(1, _SHARD_BYTES // self._row_bytes)

    @property
    def num_shards(self) -> int:
        """Files of the whole cache."""
        return -(-len(self._online.rows) // self.rows_per_shard)

    def plan(self) -> CachePlan:
        """Bytes and time, measured on the first row."""
        rows = len(self._online.rows)
        there = sum(self._rows_of(shard) for shard in range(self.num_shards) if self._file(shard).exists())
        began = time.perf_counter()
        self._features([0])
        seconds = time.perf_counter() - began
        existing = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return CachePlan(
            folder=self.folder,
            num_bytes=rows * self._row_bytes,
            missing_bytes=(rows - there) * self._row_bytes,
            free_bytes=shutil.disk_usage(existing).free,
            rows_per_shard=self.rows_per_shard,
            seconds=(rows - there) * seconds,
        )

    def check_room(self, plan: CachePlan) -> None:
        """Raises EnvironmentFailed where the disk lacks room."""
        if not plan.fits:
            raise EnvironmentFailed(
                f"the states of {len(self._online.rows)} rows need {plan.missing_bytes / 1e9:.1f} GB, "
                f"but the disk has {plan.free_bytes / 1e9:.1f} GB free",
                where=str(self.folder),
                try_="without --cache-states (the target then reads every row again), fewer --documents, "
                "or SPECBENCH_CACHE on another disk",
            )

    # --- writing ---------------------------------------------------------------------------------------------------

    def fill(self, *, process: int, num_processes: int) -> None:
        """Write the shards of this process that are missing. Raises EnvironmentFailed where the disk refuses."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for shard in range(process, self.num_shards, num_processes):
                if self._file(shard).exists():
                    continue
                first = shard * self.rows_per_shard
                parts = [self._features([first + at]) for at in range(self._rows_of(shard))]
                state = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                part_file = self._file(shard).with_suffix(f".{os.getpid()}.part")
                try:
                    save_file(state, part_file)
                    part_file.replace(self._file(shard))
                finally:
                    part_file.unlink(missing_ok=True)
        except SafetensorError as error:
            raise EnvironmentFailed(f"cannot write the states: {error}", where=str(self.folder)) from error
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def _rows_of(self, shard: int) -> int:
        return min(self.rows_per_shard, len(self._online.rows) - shard * self.rows_per_shard)

    def _features(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What is kept of one row, on the CPU, at full length."""
        made = self._online.make(rows)
        kept: dict[str, Tensor] = {"states": made.states_BTKD}
        if isinstance(made.teacher, WholeTeacher):
            num_rows, num_tokens = made.tokens_BT.shape
            final_SD = made.teacher.states_SD
            if self._top_k:
                law = top_laws(self._online.lm, final_SD, self._top_k)
                assert law.ids_RK is not None and law.log_tail_R is not None
                kept["logp"] = law.logp_RK.float().view(num_rows, num_tokens, -1)
                kept["ids"] = law.ids_RK.int().view(num_rows, num_tokens, -1)
                kept["tail"] = law.log_tail_R.float().view(num_rows, num_tokens)
            elif len(self._recorded) > made.states_BTKD.shape[2]:
                final = final_SD.view(num_rows, num_tokens, 1, -1)
                kept["states"] = torch.cat([made.states_BTKD, final], dim=2)
        if made.continuations is not None:
            kept["continuations"] = made.continuations.tokens_BTF.int()
        return {name: _padded(tensor, self._online.rows.length).cpu() for name, tensor in kept.items()}

    # --- reading ---------------------------------------------------------------------------------------------------

    def make(self, rows: Sequence[int | None]) -> Features:
        """Features from the files; the target's decoder is not run."""
        needs, lm = self._online.needs, self._online.lm
        packed = self._online.rows.batch(rows, lm.device, trim=False)
        read = [self._read(0 if row is None else row) for row in rows]
        kept: dict[str, Tensor] = {name: torch.cat([part[name] for part in read]).to(lm.device) for name in read[0]}
        states = kept["states"]
        teacher: Any = None
        if "logp" in kept:
            teacher = TopTeacher(kept["logp"].flatten(0, 1), kept["ids"].flatten(0, 1), kept["tail"].flatten())
        elif needs.objective.needs_teacher:
            teacher = WholeTeacher(lm, states[:, :, self._recorded.index("final")].flatten(0, 1))
        continuations = continuations_of(lm, kept["continuations"].long()) if "continuations" in kept else None
        return Features(
            tokens_BT=packed.tokens_BT,
            document_BT=packed.document_BT,
            learn_BT=packed.learn_BT,
            states_BTKD=states[:, :, : len(needs.taps)],
            teacher=teacher,
            continuations=continuations,
        )

    def _read(self, row: int) -> dict[str, Tensor]:
        shard, at = divmod(row, self.rows_per_shard)
        file = self._file(shard)
        try:
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_slice(name)[at : at + 1] for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise EnvironmentFailed(
                f"the cached states cannot be read: {error}", where=str(file), try_="delete the folder and train again"
            ) from error


def _padded(tensor: Tensor, length: int) -> Tensor:
    """(1, t, ...) -> (1, length, ...), zeros behind."""
    if tensor.shape[1] == length:
        return tensor.contiguous()
    rest = tensor.new_zeros(1, length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, rest], dim=1)
