"""`specbench train --recipe FILE`: data -> train -> export -> bench in one file, each stage skippable and resumable.

    name: demo-redrafter
    method: redrafter
    target: demo
    data: {dataset: demo, max_new_tokens: 96}          # specbench data generate
    train: {max_steps: 300, set: {rnn: true}}          # specbench train, on what `data` wrote
    export: {layout: apple}                            # specbench weights export
    bench: {suite: demo, limit: 8}                     # specbench run

A stage's keys are the options of its command; an unknown one is refused before the first stage begins. Under `set` a
key is the recipe's method's own, or METHOD.OPTION. A `template` of `train`, or else of `data`, is that of all stages
that say none. A stage that is left out does not exist; what was done is not done again, and a stage that was cut off
goes on where it stood. One whose options were edited meanwhile begins anew: nothing is lost, the run that was cut off
stays and can be resumed by its id. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.store.files import write_whole
from specbench.store.journal import run_state

Stage = Literal["data", "train", "export", "bench"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Value = str | int | float | bool | list[str | int | float] | dict[str, str | int | float | bool]
Options = dict[str, Value]
FLAGS = frozenset(
    ("assistant_only", "cache_states", "dry_run", "held_out", "json", "offline", "trust_remote_code"),
)
"""Options of the stages' commands that take no value."""
NEGATABLE = frozenset(("assistant_only",))
"""Those that can be typed as `--no-…`; the others are off where they are left out."""
REPEATED = frozenset(("data", "grid", "methods_dir", "report_to", "set", "stop", "variant"))
"""Those that are typed once per value; lists of the others are joined by commas."""
_RESUMABLE = ("lost", "interrupted", "failed")


class RecipeFile(BaseModel):
    """The file, checked but for the options of its stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of the folder its stages work in."""
    method: str
    target: str = "demo"
    methods_dir: list[str] = []
    data: Options | None = None
    train: Options = {}
    export: Options | None = None
    bench: Options | None = None


def read_recipe(file: Path) -> RecipeFile:
    """Raises UsageError naming the key that is wrong, EnvironmentFailed for a file that cannot be read."""
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
        return RecipeFile.model_validate(body)
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFailed(f"the recipe cannot be read: {error}", where=str(file)) from error
    except yaml.YAMLError as error:
        raise UsageError(f"the recipe is not YAML: {' '.join(str(error).split())}", where=str(file)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the recipe"
        known = did_you_mean(key, RecipeFile.model_fields)
        raise UsageError(f"{key}: {first['msg']}", where=str(file), try_=known) from error


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One stage as a command."""

    stage: Stage
    argv: tuple[str, ...]
    """Words after `specbench`."""
    resume: tuple[str, ...] | None
    """The command that continues it, where an earlier attempt with the same options was cut off."""
    is_done: bool
    note: str = ""
    """Said to the user: an attempt with other options was cut off and stays as it is."""


def newest_run(store: Path | None, file: str, is_ours: Callable[[dict[str, Any]], bool]) -> Path | None:
    """Folder of the newest run whose `file` (train.json, manifest.json) is ours."""
    for path in sorted(paths.run_dir(store, "").glob(f"*/{file}"), reverse=True):
        try:
            if is_ours(json.loads(path.read_text(encoding="utf-8"))):
                return path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def is_resumable(folder: Path) -> bool:
    """The run was begun and did not end well."""
    try:
        return run_state(folder) in _RESUMABLE
    except EnvironmentFailed:
        return False


def cut_off(store: Path | None, file: str, is_ours: Callable[[dict[str, Any]], bool]) -> str | None:
    """Id of the newest run that is ours, where it did not finish."""
    folder = newest_run(store, file, is_ours)
    return None if folder is None or not is_resumable(folder) else folder.name


class Kitchen:
    """The folder of a recipe: what its stages made and which are done."""

    def __init__(self, recipe: RecipeFile, *, store: Path | None) -> None:
        self.recipe = recipe
        self._store = store
        self.folder = (paths.results_dir(store) / "recipes" / recipe.name).resolve()
        self._done = self._read()

    @property
    def drafter(self) -> Path:
        """What `train` makes."""
        return self.folder / "drafter"

    def plan(self, *, skip: Sequence[str] = ()) -> list[Planned]:
        """The stages in order. Raises UsageError for an unknown stage, and where the recipe changed under a stage that
        is done."""
        for name in skip:
            if name not in STAGES:
                raise UsageError(f"{name!r} is not a stage", where="--skip", try_=did_you_mean(name, STAGES))
        found = []
        for stage in STAGES:
            if getattr(self.recipe, stage) is None or stage in skip:
                continue
            argv = self._argv(stage)
            was = self._done.get(stage)
            if was is not None and was != list(argv):
                raise UsageError(
                    f"stage {stage!r} of recipe {self.recipe.name!r} was done with other options",
                    where=str(self.folder),
                    try_=f"another `name:`, or delete the folder; it was: specbench {' '.join(was)}",
                )
            resume, note = (None, "") if was is not None else self._resume(stage, argv)
            found.append(Planned(stage=stage, argv=argv, resume=resume, is_done=was is not None, note=note))
        return found

    def carry_out(self, planned: Sequence[Planned], run: Callable[[Sequence[str]], int]) -> int:
        """Every stage that is not done, in order; stops with the first exit code that is not 0."""
        for each in planned:
            if each.is_done:
                continue
            code = run(each.resume or each.argv)
            if code != 0:
                return code
            self._done[each.stage] = list(each.argv)
            self._write()
        return 0

    # --- stages as commands ----------------------------------------------------------------------------------------

    def _argv(self, stage: Stage) -> tuple[str, ...]:
        recipe = self.recipe
        options: Options = dict(getattr(recipe, stage) or {})
        shared = [word for folder in recipe.methods_dir for word in ("--methods-dir", folder)]
        store = [] if self._store is None else ["--store", str(self._store)]
        weights = f"{recipe.method}.weights={self.drafter}"
        # What the target answered in is learnt in and measured in.
        template = recipe.train.get("template", (recipe.data or {}).get("template"))
        if template is not None and stage != "export":
            options.setdefault("template", template)
        if stage == "data":
            where = ["--target", recipe.target, "--out", str(self.folder / "responses")]
            return ("data", "generate", *where, *words_of(options, recipe.method))
        if stage == "train":
            if recipe.data is not None:
                options.setdefault("dataset", str(self.folder / "responses"))
            where = ["--method", recipe.method, "--target", recipe.target, "--out", str(self.drafter)]
            return ("train", *where, *words_of(options, recipe.method), *shared, *store)
        if stage == "export":
            where = [str(self.drafter), "--out", str(self.folder / "exported")]
            return ("weights", "export", *where, *words_of(options, recipe.method), *shared)
        suite = str(options.pop("suite", "demo"))
        options.setdefault("methods", ["autoregressive", recipe.method])
        where = [suite, "--target", recipe.target, "--set", weights]
        return ("run", *where, *words_of(options, recipe.method), *shared, *store)

    def _resume(self, stage: Stage, argv: tuple[str, ...]) -> tuple[tuple[str, ...] | None, str]:
        """The command that goes on, and what to say. `data generate` goes on in its own folder, and refuses other
        options itself; trainings and runs keep the command line they were begun with."""
        if stage == "train":
            file, verb = "train.json", "train"
        elif stage == "bench":
            file, verb = "manifest.json", "run"
        else:
            return None, ""
        store = () if self._store is None else ("--store", str(self._store))
        begun = ["specbench", *argv]
        found = cut_off(self._store, file, lambda body: list(body["command"]) == begun)
        if found is not None:
            return (verb, "--resume", found, *store), ""
        wanted = [self.recipe.method, "weights", str(self.drafter)]

        def is_ours(body: dict[str, Any]) -> bool:
            if stage == "train":
                return bool(body["request"]["out"] == str(self.drafter))
            return wanted in body["provenance"]["request"]["settings"]

        other = cut_off(self._store, file, is_ours)
        if other is None:
            return None, ""
        line = " ".join(("specbench", verb, "--resume", other, *store))
        return None, (
            f"{stage} begins anew: {other} was cut off, but begun with other options than the recipe's; "
            f"it stays as it is, and `{line}` would go on with those"
        )

    # --- what is done ----------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, list[str]]:
        try:
            found: dict[str, list[str]] = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise EnvironmentFailed(f"done.json cannot be read: {error}", where=str(self.folder)) from error

    def _write(self) -> None:
        write_whole(self.folder / "done.json", json.dumps(self._done, indent=1))


def words_of(options: Options, method: str) -> list[str]:
    """Options as a command's words: `{max_steps: 3, set: {depth: 2, draft_model.num_tokens: 4}}` ->
    `--max-steps 3 --set METHOD.depth=2 --set draft_model.num_tokens=4`."""
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            for key, each in value.items():
                whose = key if "." in key else f"{method}.{key}"
                words += [option, f"{whose}={_spelt(each)}"]
        elif isinstance(value, bool) and name in FLAGS:
            words += [option] if value else [f"--no-{option[2:]}"] if name in NEGATABLE else []
        elif isinstance(value, bool):
            # YAML reads on and off as booleans.
            words += [option, "on" if value else "off"]
        elif isinstance(value, list) and name in REPEATED:
            words += [word for each in value for word in (option, _spelt(each))]
        elif isinstance(value, list):
            words += [option, ",".join(_spelt(each) for each in value)]
        else:
            words += [option, _spelt(value)]
    return words


def _spelt(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
