"""Where a number comes from: code, versions, machine, environment, hashes of files; one JSON-able record. No torch.

The record is data for a manifest, not a check: what a machine does not tell is None, never guessed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from specbench import paths
from specbench.errors import EnvironmentFailed

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "safetensors", "duckdb", "plotly")
"""Whose versions can change a number or the page."""
QUANTISERS = ("torchao", "bitsandbytes", "gptqmodel")
"""Who may round and multiply a target's weights; needed by quantised targets only."""

_DECODING = ("engine", "lm", "quantisation.py", "sampling.py", "tree.py")
"""Rooms and modules of the package, relative to it."""
_VARIABLES = re.compile(
    r"(OMP|MKL|OPENBLAS|CUDA|CUBLAS|NVIDIA|HF|TORCH|PYTORCH|TRITON|TOKENIZERS|TRANSFORMERS|SPECBENCH)_"
)
_SECRET = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|AUTH", re.IGNORECASE)
_URL_SECRET = re.compile(r"(?<=//)[^/@\s]+@")
_REDACTED = "(redacted)"
_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_CHUNK_BYTES = 1 << 20


class Revision(NamedTuple):
    """The commit the program runs from."""

    sha: str
    is_dirty: bool
    """Tracked files differ from the commit, or untracked ones lie in the package."""


def collect(command: Sequence[str] = ()) -> dict[str, Any]:
    """Everything but the run's own options. command: as typed, default sys.argv."""
    revision = git_revision()
    return {
        "git": None if revision is None else {"sha": revision.sha, "dirty": revision.is_dirty},
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "governor": governor(),
            "load_average": load_average(),
            "gpus": gpu_names(),
        },
        "environment": environment(os.environ),
        "command": [_redacted_text(word) for word in (command or sys.argv)],
    }


def git_revision(folder: Path = paths.PACKAGE) -> Revision | None:
    """The commit of the checkout that holds `folder`; None for an installed copy, or without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        # A package inside somebody else's checkout (a venv in a repository) is not that repository's code.
        if not git("ls-files", "--", str(folder)):
            return None
        return Revision(git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(folder.parent))))
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def decoding_hash() -> str:
    """sha256 over names and contents of the sources that a token depends on: which specbench wrote an answer, said by a
    changed working tree and an installed copy as well as by a commit."""
    files = [path for name in _DECODING for path in sorted((paths.PACKAGE / name).rglob("*.py"))]
    files += [paths.PACKAGE / name for name in _DECODING if name.endswith(".py")]
    listing = "".join(
        f"{file.relative_to(paths.PACKAGE).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
        for file in files
    )
    return hashlib.sha256(listing.encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """specbench, Python, PACKAGES and QUANTISERS as installed, without importing them; None for what is not."""
    from specbench import __version__

    found: dict[str, str | None] = {"specbench": __version__, "python": platform.python_version()}
    return found | {name: version_of(name) for name in (*PACKAGES, *QUANTISERS)}


def version_of(package: str) -> str | None:
    """As installed, without importing it; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def governor() -> str | None:
    """The frequency governor of the first core (`performance`, `powersave`, ...); None where there is none to read."""
    try:
        return _GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        return None


def load_average() -> float | None:
    """Over the last minute; None where the system keeps none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def gpu_names() -> list[str]:
    """Names of the CUDA devices, if torch is loaded already (importing it here would cost 2 s)."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def device_name(kind: str, index: int | None) -> str:
    """What a device is called: the GPU's own name, the processor's otherwise. kind: 'cpu', 'cuda' or 'mps'."""
    if kind == "cuda":
        names = gpu_names()
        assert names, "a CUDA device in use has a name"
        return names[index or 0]
    return cpu_model()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a number, sorted; secrets by name or inside URLs are redacted."""
    return {
        name: _REDACTED if _SECRET.search(name) else _redacted_text(value)
        for name, value in sorted(variables.items())
        if _VARIABLES.match(name)
    }


def hash_file(path: Path) -> str:
    """sha256 of a file, remembered by path, size and modification time. Raises EnvironmentFailed naming it."""
    try:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        note = paths.cache_dir() / "hashes" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        known = _remembered(note, key)
        if known is not None:
            return known
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise EnvironmentFailed(f"cannot read {path}: {error.strerror}", where=str(path)) from error
    _remember(note, key, digest.hexdigest())
    return digest.hexdigest()


def hash_weights(folder: Path) -> str:
    """One sha256 over the names and contents of a folder's *.safetensors. Raises EnvironmentFailed when it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EnvironmentFailed(
            f"no *.safetensors in {folder}", where=str(folder), try_="save the model with save_pretrained(FOLDER)"
        )
    listing = "".join(f"{file.name} {hash_file(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _remembered(note: Path, key: str) -> str | None:
    try:
        body = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(body["sha256"]) if isinstance(body, dict) and body.get("key") == key else None


def _remember(note: Path, key: str, digest: str) -> None:
    part = note.with_suffix(f".{os.getpid()}.part")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"key": key, "sha256": digest}), encoding="utf-8")
        part.replace(note)
    except OSError:
        # The hash is right without being remembered; the next run reads the file again.
        return


def _redacted_text(text: str) -> str:
    return _URL_SECRET.sub(f"{_REDACTED}@", text)
