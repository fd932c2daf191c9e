"""The verbs of the command line for Python: `specbench.load`, `specbench.generate`, `specbench.bench`.

import specbench
print(specbench.generate("What is 12 times 7?", method="draft_model").text)
summary = specbench.bench("demo", methods=("prompt_lookup",), limit=4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench import registry, suite
from specbench.bench.defaults import DEMO_TARGETS, DEMO_THREADS
from specbench.bench.request import RunRequest
from specbench.bench.session import set_threads
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.lm.stops import stop_ids_of
from specbench.method import Request
from specbench.quantisation import NONE
from specbench.sampling import Sampling, sequence_key


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer and what it cost. Seconds are wall clock; total_s includes the prefill."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    method: str
    target: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_steps: int
    acceptance_length: float | None
    """Tokens kept per step, bonus included, the prefill's token excluded; None without a step."""
    prefill_s: float
    total_s: float


def load(
    target: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    attention: str = "auto",
    quantisation: str = NONE,
    trust_remote_code: bool = False,
) -> CachedLM:
    """A target or draft model on its device; threads None: torch's choice, one for the embedded models.

    Raises UsageError or EnvironmentFailed, see `specbench.lm.load`.
    """
    set_threads(DEMO_THREADS if threads is None and target in DEMO_TARGETS else threads)
    place = pick_device(device)
    return load_lm(
        target,
        device=place,
        dtype=pick_dtype(dtype, place),
        attention_name=attention,
        trust_remote_code=trust_remote_code,
        quantisation=quantisation,
    )


def generate(
    prompt: str,
    *,
    target: str | CachedLM = "demo",
    method: str = "autoregressive",
    options: Mapping[str, Any] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    quantisation: str = NONE,
    device: str = "auto",
    threads: int | None = None,
    template: str | None = None,
    trust_remote_code: bool = False,
    methods_dirs: tuple[Path, ...] = (),
) -> Answer:
    """Answer one prompt with one method. A loaded target may be passed in place of its name.

    options: the method's; those of a method it wraps as `NAME.OPTION`.

    Raises UsageError (unknown method or option, a method that reads a reference, a prompt that does not fit).
    """
    name = target if isinstance(target, str) else target.name
    said = registry.by_method(method, options or {})
    choice = registry.choose(method, said, target_is_demo=name in DEMO_TARGETS, methods_dirs=methods_dirs)
    stray = next((owner for owner in said if owner not in choice.members), None)
    if stray is not None:
        raise UsageError(f"an option of {stray!r} is given, the answer is by {choice.name}", where="options")
    if "reference" in choice.card.requires:
        raise UsageError(
            f"method {method!r} replays a known answer, so it cannot write a new one", try_="specbench run demo"
        )
    lm = target
    if isinstance(lm, str):
        lm = load(
            lm,
            device=device,
            dtype=dtype,
            threads=threads,
            quantisation=quantisation,
            trust_remote_code=trust_remote_code,
        )
    if lm.tokenizer is None:
        raise EnvironmentFailed(f"target {name!r} has no tokenizer files, so no prompt can be made for it")
    tokenizer = lm.tokenizer
    ids = tuple(suite.render(tokenizer, [{"role": "user", "content": prompt}], template or "chat"))
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    max_len = len(ids) + max_new_tokens
    engine = Engine(lm, sampling=sampling, max_len=max_len, stop=Stop(ids=stop_ids_of(lm)))
    engine.check_fits(len(ids), max_new_tokens)
    drafter = registry.build(choice, engine.view(), methods_dirs=methods_dirs)
    engine.reserve(drafter.max_nodes)
    key = sequence_key(seed=seed, question_id="prompt", turn=0)
    result = engine.generate(drafter, [Request(key=key, prompt=ids, max_new_tokens=max_new_tokens)])
    [generation] = result.generations
    num_steps = len(generation.steps)
    return Answer(
        text=str(tokenizer.decode(list(generation.tokens), skip_special_tokens=True)),
        tokens=generation.tokens,
        finish_reason=generation.finish_reason,
        method=choice.name,
        target=name,
        num_prompt_tokens=len(ids),
        num_new_tokens=len(generation.tokens),
        num_steps=num_steps,
        acceptance_length=(len(generation.tokens) - 1) / num_steps if num_steps else None,
        prefill_s=result.prefill_s,
        total_s=result.total_s,
    )


class Silent:
    """A `bench.Progress` that says nothing."""

    def plan(self, *, num_groups: int, num_done: int, title: str) -> None: ...

    def group_done(self, *, method: str, question: str, seconds: float, num_tokens: int, failed: bool) -> None: ...

    def say(self, text: str) -> None: ...


def bench(suite_name: str, *, methods: tuple[str, ...] | None = None, **options: Any) -> dict[str, Any]:
    """`specbench run`: the object of `run --json`. options: fields of `RunRequest`, unknown ones refused by it.

    Raises SpecbenchError where nothing could be measured, or summed up; a failed check is in the summary, not raised.
    """
    from specbench.bench.runner import run  # the store's 0.1 s of DuckDB come with it
    from specbench.store.records import to_json

    outcome = run(RunRequest(suite=suite_name, methods=methods, **options), Silent())
    if outcome.summary is None:
        raise EnvironmentFailed(
            f"run {outcome.run_id} is {outcome.state} and has no summary",
            try_=f"with DuckDB installed: specbench results ingest {outcome.run_id}",
        )
    body: dict[str, Any] = to_json(outcome.summary)
    return body
