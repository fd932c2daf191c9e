"""Is this machine fit to measure on? What is there, what that means for a number, what to do about it.

`examine` looks, the front end prints. Nothing is measured or changed here; torch is loaded (2 s) for the devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from specbench import paths, provenance, registry
from specbench.errors import SpecbenchError
from specbench.findings import Finding
from specbench.suite import survey

_GIB = 1 << 30
_LEAST_MEMORY_BYTES = 2 * _GIB
_LEAST_DISK_BYTES = _GIB
_BUSY_LOAD = 0.5
"""Foreign load per core above which timings drift."""


def examine(
    *, store: Path | None = None, data: Sequence[Path] = (), methods_dirs: Sequence[Path] = ()
) -> list[Finding]:
    """Every check, in reading order; none raises, a check that cannot be made is a finding."""
    return [
        *_software(),
        *_devices(),
        _load(),
        _governor(),
        _memory(),
        *_embedded_models(),
        *_methods(methods_dirs),
        *_suites(data),
        *_store(store),
    ]


def _ok(name: str, what: str) -> Finding:
    return Finding(name=name, state="ok", what=what)


def _software() -> Iterator[Finding]:
    found = provenance.versions()
    yield _ok("specbench", f"{found['specbench']} on Python {found['python']}")
    absent = [name for name in provenance.PACKAGES if found[name] is None]
    if absent:
        yield Finding(
            name="packages",
            state="failed",
            what=f"missing: {', '.join(absent)}",
            consequence="commands that need them fail",
            remedy="pip install -c constraints.txt -e .  (or: pip install --force-reinstall specbench)",
        )
    else:
        yield _ok("packages", ", ".join(f"{name} {found[name]}" for name in provenance.PACKAGES))
    revision = provenance.git_revision()
    if revision is not None and revision.is_dirty:
        yield Finding(
            name="code",
            state="warning",
            what=f"commit {revision.sha[:12]} with changes that are not committed",
            consequence="runs are marked dirty: nobody else can repeat them",
            remedy="git commit, before a run that is to be published",
        )
    elif revision is not None:
        yield _ok("code", f"commit {revision.sha[:12]}")


def _devices() -> Iterator[Finding]:
    yield _ok("cpu", f"{provenance.cpu_model()}, {psutil.cpu_count(logical=False) or '?'} cores")
    try:
        import torch
    except ImportError as error:
        yield Finding(
            name="torch",
            state="failed",
            what=f"cannot be imported: {error}",
            consequence="nothing can be run; results and the page can be read",
            remedy="pip install -c constraints.txt torch",
        )
        return
    if torch.cuda.is_available():
        for index, name in enumerate(provenance.gpu_names()):
            free, total = torch.cuda.mem_get_info(index)
            yield _ok(f"cuda:{index}", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            name="cuda",
            state="warning",
            what=f"an NVIDIA driver is here, torch {torch.__version__} does not see it",
            consequence="--device auto means cpu",
            remedy="install the CUDA build of the same torch version",
        )
    elif torch.backends.mps.is_available():
        yield _ok("mps", "available")
    else:
        yield _ok("cuda", "no GPU: --device auto means cpu")
    yield _threads(torch.get_num_threads())


def _threads(threads: int) -> Finding:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = f"torch takes {threads} of {cores} cores ({usable} usable)"
    if threads > min(cores, usable):
        return Finding(
            name="threads",
            state="warning",
            what=what,
            consequence="threads wait for each other; times are long and uneven",
            remedy=f"specbench run … --threads {min(cores, usable)}",
        )
    return _ok("threads", what)


def _load() -> Finding:
    load = provenance.load_average()
    cores = os.cpu_count() or 1
    if load is None:
        return _ok("load", "this system keeps no load average")
    what = f"{load:.2f} over the last minute on {cores} logical cores"
    if load > _BUSY_LOAD * cores:
        return Finding(
            name="load",
            state="warning",
            what=what,
            consequence="others use the cores too: wide intervals, maybe no rank",
            remedy="wait, or --threads 1 and more --repeats",
        )
    return _ok("load", what)


def _governor() -> Finding:
    governor = provenance.governor()
    if governor in (None, "performance"):
        return _ok("governor", governor or "not told here (a virtual machine, or no Linux)")
    return Finding(
        name="governor",
        state="warning",
        what=f"{governor}",
        consequence="the clock moves with the load: the first questions are slower",
        remedy="sudo cpupower frequency-set -g performance",
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    what = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < _LEAST_MEMORY_BYTES:
        return Finding(
            name="memory",
            state="warning",
            what=what,
            consequence="a larger target may not fit, and swapping ruins every time",
            remedy="close something, or a smaller --target, --batch-size or --dtype bfloat16",
        )
    return _ok("memory", what)


def _embedded_models() -> Iterator[Finding]:
    for name, folder in paths.DEMO_MODELS.items():
        if any(folder.glob("*.safetensors")):
            yield _ok(name, f"weights in {folder}")
        else:
            yield Finding(
                name=name,
                state="failed",
                what=f"no weights in {folder}",
                consequence=f"--target {name} does not work",
                remedy="install specbench again: its wheel holds them",
            )


def _methods(methods_dirs: Sequence[Path]) -> Iterator[Finding]:
    try:
        found = registry.cards(methods_dirs=methods_dirs)
    except SpecbenchError as error:
        yield Finding(name="methods", state="failed", what=error.what, remedy=error.try_)
        return
    for entry in found:
        if entry.error:
            yield Finding(
                name="methods",
                state="warning",
                what=f"{entry.name} ({entry.source}): {entry.error}",
                consequence="it cannot be run",
                remedy="mend its method.yaml, or remove it",
            )
    names = ", ".join(entry.name for entry in found if entry.card is not None)
    if names:
        yield _ok("methods", names)
    else:
        yield Finding(name="methods", state="failed", what="none found", consequence="nothing can be run")


def _suites(data: Sequence[Path]) -> Iterator[Finding]:
    try:
        found = survey(data)
    except SpecbenchError as error:
        yield Finding(
            name="suites",
            state="failed",
            what=f"{error.what} ({error.where})",
            consequence="no suite is found, so nothing can be run",
            remedy=error.try_ or f"mend {error.where}",
        )
        return
    here = [status.name for status in found if status.state in ("inline", "local", "downloaded")]
    online = [status.name for status in found if status.state == "hub"]
    if here:
        yield _ok("suites", f"here: {', '.join(here)}")
    if online:
        yield Finding(
            name="suites",
            state="warning",
            what=f"to be downloaded at first use: {', '.join(online)}",
            consequence="they need the network",
            remedy="specbench suites fetch NAME, or --data DIR / SPECBENCH_DATA with the files",
        )
    for status in found:
        if status.state in ("missing", "unreadable"):
            yield Finding(
                name="suites",
                state="warning",
                what=f"{status.name}: {status.where}",
                consequence="it cannot be run",
                remedy=status.help,
            )


def _store(store: Path | None) -> Iterator[Finding]:
    folder, file = paths.results_dir(store).absolute(), paths.store_file(store).absolute()
    anchor = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(anchor, os.W_OK):
        yield Finding(
            name="results",
            state="failed",
            what=f"no permission to write {anchor}",
            consequence="no run can be kept",
            remedy="--store PATH, or SPECBENCH_RESULTS",
        )
        return
    free = shutil.disk_usage(anchor).free
    if free < _LEAST_DISK_BYTES:
        yield Finding(
            name="results",
            state="warning",
            what=f"{free / _GIB:.2f} GiB free on the disk of {folder}",
            consequence="a long run may fill it; what was written stays usable",
            remedy="make room, or --store PATH on another disk",
        )
    else:
        yield _ok("results", f"{folder}, {free / _GIB:.0f} GiB free")
    yield _store_file(file)
    yield _viewer(folder)


def _viewer(results: Path) -> Finding:
    from specbench.store.viewer_cost import MOST, read_viewer_cost  # the store's room, only where there is a folder

    try:
        cost = read_viewer_cost(results)
    except SpecbenchError as error:
        return Finding(name="viewer", state="warning", what=error.what, remedy=error.try_)
    if cost is None:
        return _ok("viewer", "what `specbench tui` costs a run was not measured here (specbench doctor --viewer)")
    if cost.is_small:
        return _ok("viewer", cost.words())
    return Finding(
        name="viewer",
        state="warning",
        what=cost.words(),
        consequence=f"a watched run may be more than {MOST:.0%} slower: its speed-ups hold, its tokens a second do not",
        remedy="measure with nothing else running (specbench doctor --viewer), or do not watch what is published",
    )


def _store_file(file: Path) -> Finding:
    if not file.exists():
        return _ok("store", f"{file} is made by the first run")
    # 70 ms of DuckDB, only where there is a store to look at.
    from specbench.store.db import open_store

    try:
        with open_store(file, read_only=True, timeout_s=1.0) as connection:
            [(num_runs,)] = connection.execute("SELECT count(*) FROM runs").fetchall()
    except SpecbenchError as error:
        return Finding(name="store", state="warning", what=error.what, remedy=error.try_)
    return _ok("store", f"{file}, {num_runs} run{'' if num_runs == 1 else 's'}")
