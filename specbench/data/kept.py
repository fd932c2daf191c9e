"""Tokenised datasets kept on disk under a hash of everything they depend on. safetensors: no code is run by reading.

A file that is damaged, or cannot be written, costs time and nothing else; it is said in the documents' notes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from specbench import paths
from specbench.data.counts import Counts
from specbench.data.documents import Documents

FORMAT = 2
"""Part of every fingerprint: goes up when the same rows would become other tokens."""


def path_of(fingerprint: str) -> Path:
    """Where the dataset of this fingerprint is kept."""
    return paths.cache_dir() / "data" / f"{fingerprint[:32]}.safetensors"


def find(fingerprint: str) -> Documents | None:
    """The kept dataset; None when it was never made, or when its file cannot be read."""
    path = path_of(fingerprint)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["documents"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        if about.pop("fingerprint") != fingerprint:
            return None
        about["counts"] = Counts(**about["counts"])
        about["notes"] = tuple(about["notes"])
        return Documents(fingerprint=fingerprint, **about, **arrays)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def keep(documents: Documents) -> Documents:
    """Write it atomically -> the same documents, with a note where that failed."""
    path = path_of(documents.fingerprint)
    facts = {field.name: getattr(documents, field.name) for field in dataclasses.fields(documents)}
    arrays = {name: np.ascontiguousarray(value) for name, value in facts.items() if isinstance(value, np.ndarray)}
    about = {name: value for name, value in facts.items() if name not in arrays}
    about["counts"] = documents.counts.as_dict()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, part, metadata={"documents": json.dumps(about)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        note = f"the tokenised dataset cannot be kept for the next time: {error}"
        return dataclasses.replace(documents, notes=(*documents.notes, note))
    return documents
