"""manifest.json: the whole plan of a run and where every part of it came from, written once before the first question.

`bench` writes it; store, report and viewers read it. Together with events.jsonl it is the run; the DuckDB store can be
rebuilt from the two. No torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from specbench.errors import EnvironmentFailed
from specbench.events import SCHEMA
from specbench.paths import check_run_id


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SuiteRecord(_Frozen):
    """Which questions: the hash of the rendered prompts is the suite's identity (measurement 16)."""

    name: str
    hash: str
    """sha256 of the rendered questions, in suite order."""
    source: str
    """Where the rows came from: a file's name, or dataset id@revision."""
    template: str
    """'chat' (the target's own template) or the name of a plain one."""
    num_questions: int
    has_answers: bool
    licence: str = ""


class TargetRecord(_Frozen):
    """Which model, as loaded."""

    name: str
    weights_hash: str
    model_type: str
    num_parameters: int
    dtype: str
    quantisation: str = "none"
    vocab_size: int
    weight_bytes_per_token: int
    """Bytes of weights one decode step really reads at batch 1 (embedding rows not looked up are left out)."""
    cache_bytes_per_token: int
    """Key/value bytes read per cached token and decode step, all layers."""


class DeviceRecord(_Frozen):
    """Where it ran."""

    kind: str
    """'cpu', 'cuda' or 'mps'."""
    name: str
    threads: int
    attention: str
    execution: str = "operators"
    """How steps were run: operators, graphs or `graphs, one per phase`; `, compiled` where the target's forward was,
    `, compiled by layers` where its layers were."""
    copy_bandwidth: float | None = None
    """Bytes/s of a plain copy measured in this run (read + write counted); None where it was not measured."""


class SamplingRecord(_Frozen):
    """The logits processors, the same for every method, the baseline and the drafters' own laws."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


class MethodRecord(_Frozen):
    """One competitor: a method with its options."""

    label: str
    """Unique in the run: `name`, `name[option=value]`, or `autoregressive#2` for the A/A control."""
    name: str
    title: str
    kind: str
    """'baseline', 'chain' or 'tree'."""
    options: dict[str, Any]
    num_parameters: int
    weights_hash: str = ""
    is_control: bool = False
    is_ranked: bool = True
    """False for methods whose card says so (`oracle`): shown, never ranked."""
    num_compiled: int = 0
    """Models of its own that are compiled beside the target; under `--compile auto` a matter of what was faster."""
    notes: tuple[str, ...] = ()


class GroupRecord(_Frozen):
    """One timed generation (or batch of them) of the plan, in the order of execution."""

    group: int
    method: str
    repeat: int
    turn: int
    question_ids: tuple[str, ...]


class QuestionRecord(_Frozen):
    """A question of the plan; prompts are recorded by hash, not text."""

    question_id: str
    category: str
    num_turns: int
    prompt_hash: str


class Manifest(_Frozen):
    """Everything needed to say what a number means, and to resume the run that makes it."""

    schema_version: int = SCHEMA
    run_id: str
    created: str
    command: tuple[str, ...]
    suite: SuiteRecord
    target: TargetRecord
    device: DeviceRecord
    sampling: SamplingRecord
    rule: Literal["coupled", "rejection", "typical"]
    seed: int
    batch_size: int
    repeats: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the target's own stop ids. Not given, as by runs from before it was recorded:
    those of the recorded request."""
    carry: Literal["none", "stream"]
    methods: tuple[MethodRecord, ...]
    questions: tuple[QuestionRecord, ...]
    groups: tuple[GroupRecord, ...]
    provenance: dict[str, Any]
    """Git SHA and dirty flag, versions, CPU/GPU, environment variables that matter (specbench.provenance)."""

    @model_validator(mode="before")
    @classmethod
    def _stop_of_request(cls, body: Any) -> Any:
        if not isinstance(body, dict) or "stop" in body or not isinstance(body.get("provenance"), dict):
            return body
        request = body["provenance"].get("request")
        return body | {"stop": (request.get("stop") if isinstance(request, dict) else None) or ()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Atomically: a reader sees the whole file or none."""
    part = folder / "manifest.json.part"
    part.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    part.replace(folder / "manifest.json")


def read_manifest(folder: Path) -> Manifest:
    """Raises EnvironmentFailed naming the file when it is missing, damaged, newer than this program or another
    folder's."""
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("schema_version", 0) > SCHEMA:
            raise EnvironmentFailed(
                f"the run was written by a newer specbench (schema {raw['schema_version']}, this one reads {SCHEMA})",
                where=str(path),
                try_="pip install --upgrade specbench",
            )
        manifest = Manifest.model_validate(raw)
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"no run here: {path} is missing", try_="specbench results ls") from error
    except OSError as error:
        raise EnvironmentFailed(f"manifest.json cannot be read: {error.strerror}", where=str(path)) from error
    # Bytes that are no text, text that is no JSON, JSON that is no manifest; a version that is no number.
    except (ValueError, TypeError) as error:
        raise EnvironmentFailed(f"manifest.json is damaged: {error}", where=str(path)) from error
    check_run_id(manifest.run_id, path)
    return manifest
