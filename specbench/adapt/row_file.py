"""Observed answers on disk: one append-only file, capped, each answer a length, a checksum and a safetensors blob.

A killed writer leaves at most one torn answer, at the end; it is cut off by the next. Nothing here runs code from the
file: lengths are checked against it, and safetensors holds tensors alone. It holds prompts and answers in full:
`purge` deletes it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from specbench.adapt.observed import Observed
from specbench.errors import EnvironmentFailed, cannot_write
from specbench.losses import Law

FILE = "observed.rows"
_HEAD = struct.Struct("<4sII")
_MAGIC = b"SBO2"
_OLD_MAGIC = b"SBO1"
"""Answers of before held the draft's law, too, and not the version that drafted them."""


class RowFile:
    """The file of one adapter store. `append` never raises for a disk that refuses: it warns once and stops, because
    decoding must go on."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.path = folder / FILE
        self._max_bytes = max_bytes
        self._known: set[bytes] | None = None
        """Contexts in the file; None until the first answer is kept."""
        self.warning = ""
        """Why nothing more is kept; empty while it is."""

    def append(self, observed: Observed) -> None:
        """Keep what is new of one answer. Past the cap, and after the disk has refused once, nothing is."""
        if self.warning:
            return
        if self._known is None:
            try:
                self._known = {context for each in self.read() for context in each.contexts()}
            except EnvironmentFailed as error:
                self.warning = f"collecting stops, decoding goes on: {error.what} ({self.path})"
                return
        contexts = observed.contexts()
        new = [place for place, context in enumerate(contexts) if context not in self._known]
        if not new:
            return
        if len(new) < len(contexts):
            observed = observed.only(torch.tensor(new))
        self._known.update(contexts[place] for place in new)
        blob = _to_bytes(observed)
        record = _HEAD.pack(_MAGIC, len(blob), zlib.crc32(blob)) + blob
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                before = os.fstat(file).st_size
                if before + len(record) > self._max_bytes:
                    self.warning = f"collecting stops: {self.path} has reached its cap of {self._max_bytes} bytes"
                    return
                if os.write(file, record) != len(record):
                    os.ftruncate(file, before)
                    raise OSError(28, "No space left on device")
            finally:
                os.close(file)
        except OSError as error:
            self.warning = f"collecting stops, decoding goes on: {cannot_write(self.path, error).what}"

    def read(self) -> Iterator[Observed]:
        """Every whole answer, oldest first. Raises EnvironmentFailed where the file is damaged before its end."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            size, place = os.fstat(file.fileno()).st_size, 0
            while place + _HEAD.size <= size:
                magic, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
                end = place + _HEAD.size + length
                if magic not in (_MAGIC, _OLD_MAGIC):
                    raise _damaged(self.path, place)
                if end > size:
                    return  # torn by a crash
                blob = file.read(length)
                if zlib.crc32(blob) != checksum:
                    raise _damaged(self.path, place)
                try:
                    yield _from_bytes(blob)
                except (SafetensorError, KeyError, ValueError) as error:
                    raise _damaged(self.path, place) from error
                place = end

    def mend(self) -> None:
        """Cut a torn answer off the end, so that the next one is found."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            size, place = os.fstat(file.fileno()).st_size, 0
            while place + _HEAD.size <= size:
                magic, length, _ = _HEAD.unpack(file.read(_HEAD.size))
                if magic not in (_MAGIC, _OLD_MAGIC):
                    return  # damaged, not torn: `read` names it, and what stands behind it is kept
                if place + _HEAD.size + length > size:
                    break
                place += _HEAD.size + length
                file.seek(place)
            file.truncate(place)

    def num_bytes(self) -> int:
        """Size on disk; 0 where there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def purge(self) -> int:
        """Delete everything that was observed -> bytes freed."""
        freed = self.num_bytes()
        self._known = None
        self.path.unlink(missing_ok=True)
        return freed


def _damaged(path: Path, place: int) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"observed answers cannot be read past byte {place}",
        where=str(path),
        try_="specbench adapt purge deletes them; adapters stay",
    )


def _to_bytes(observed: Observed) -> bytes:
    tensors = {
        "tokens": observed.tokens_T.to(torch.int32),
        "num_prompt": torch.tensor([observed.num_prompt], dtype=torch.int64),
        "position": observed.position_N.to(torch.int32),
        "depth": observed.depth_N.to(torch.uint8),
        "drafted": observed.drafted_N.to(torch.int32),
        "overlap": observed.overlap_N.float(),
        "domain": torch.tensor(list(observed.domain.encode()), dtype=torch.uint8),
        "version": torch.tensor([observed.version], dtype=torch.int64),
    }
    law = observed.target
    assert law.ids_RK is not None and law.log_tail_R is not None
    tensors["p.log"] = law.logp_RK.float()
    tensors["p.ids"] = law.ids_RK.to(torch.int32)
    tensors["p.tail"] = law.log_tail_R.float()
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _from_bytes(blob: bytes) -> Observed:
    found = load(blob)
    law = Law(found["p.log"], found["p.ids"], found["p.tail"])
    num, num_tokens = found["position"].shape[0], found["tokens"].shape[0]
    if num and not 0 < int(found["position"].min()) <= int(found["position"].max()) < num_tokens:
        raise ValueError("a position outside the text")
    if law.logp_RK.shape[0] != num or found["drafted"].shape != found["position"].shape:
        raise ValueError("laws of another length")
    return Observed(
        tokens_T=found["tokens"],
        num_prompt=int(found["num_prompt"][0]),
        position_N=found["position"],
        depth_N=found["depth"],
        drafted_N=found["drafted"],
        overlap_N=found["overlap"],
        target=law,
        version=int(found["version"][0]) if "version" in found else 0,
        domain=bytes(found["domain"].tolist()).decode("utf-8", errors="replace"),
    )
