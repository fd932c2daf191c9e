"""One worker of `data generate`: every num_workers-th prompt, whatever of it is not done yet.

Run by itself as `python -m specbench.data.worker OUT NUMBER HOW` it reports on stdout, one JSON object a line, and ends
with its parent: its stdin is a pipe that closes when the parent dies, however it dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from specbench.data.job import REPORT_MARK, Folder, How, Settings
from specbench.data.prompts import Prompt
from specbench.data.rendering import Renderer
from specbench.data.responses import Writer, make_room
from specbench.data.vllm import VllmWriter
from specbench.data.writing import Asked, EngineWriter, asks_of, write_missing
from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.lm.load import load_lm, load_tokenizer, pick_device, pick_dtype, resolve_folder
from specbench.lm.stops import stop_ids_in, stop_ids_of
from specbench.sampling import Sampling

Report = Callable[[int, int], None]
"""(rows just finished, their answer tokens)."""


def work(folder: Folder, worker: int, how: How, report: Report) -> int:
    """Write this worker's share -> prompts that cannot be asked, all of them perhaps: that none of the whole job fits
    is for the caller to see. Raises UsageError or EnvironmentFailed."""
    settings = folder.settings()
    share = folder.prompts()[worker :: how.num_workers]
    # The share is a matter of place alone: workers that start at different times must not see different shares.
    done = {row.prompt_id for row in folder.done()}
    missing = [prompt for prompt in share if prompt.prompt_id not in done]
    if not missing:
        return 0
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    sampling = Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
    )
    path = folder.shard(worker)
    make_room(path)
    build = _with_vllm if settings.backend == "vllm" else _with_engine
    writer, asked = build(settings, how, sampling, missing)
    for responses in write_missing(writer, asked.asks, done, path) if writer is not None else ():
        report(len(responses), sum(len(response.answer_ids) for response in responses))
    return asked.num_too_long


class _Built(NamedTuple):
    writer: Writer | None
    """None where nothing can be asked: a prompt that does not fit is never done, and a finished job is asked again."""
    asked: Asked


def _with_engine(settings: Settings, how: How, sampling: Sampling, prompts: Sequence[Prompt]) -> _Built:
    device = pick_device(how.device)
    lm = load_lm(
        settings.target,
        device=device,
        dtype=pick_dtype(settings.dtype, device),
        trust_remote_code=how.trust_remote_code,
        quantisation=settings.quantisation,
    )
    renderer = Renderer.of(_required(lm.tokenizer, settings), template=settings.template, stop_ids=stop_ids_of(lm))
    asked = asks_of(prompts, renderer, max_new_tokens=settings.max_new_tokens, context_length=lm.context_length)
    if not asked.asks:
        return _Built(None, asked)
    writer = EngineWriter(
        lm,
        renderer,
        sampling=sampling,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        batch_size=how.batch_size,
        max_prompt=max(len(ask.ids) for ask in asked.asks),
    )
    return _Built(writer, asked)


def _with_vllm(settings: Settings, how: How, sampling: Sampling, prompts: Sequence[Prompt]) -> _Built:
    folder = resolve_folder(settings.target)
    tokenizer = _required(load_tokenizer(settings.target, trust_remote_code=how.trust_remote_code), settings)
    renderer = Renderer.of(tokenizer, template=settings.template, stop_ids=stop_ids_in(folder, tokenizer))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=how.trust_remote_code).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    asked = asks_of(prompts, renderer, max_new_tokens=settings.max_new_tokens, context_length=context)
    if not asked.asks:
        return _Built(None, asked)
    writer = VllmWriter(
        str(folder),
        renderer,
        sampling=sampling,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        dtype=settings.dtype,
        num_devices=how.num_devices,
        max_prompt=max(len(ask.ids) for ask in asked.asks),
        trust_remote_code=how.trust_remote_code,
    )
    return _Built(writer, asked)


def _required(tokenizer: PreTrainedTokenizerBase | None, settings: Settings) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise EnvironmentFailed(
            f"target {settings.target!r} has no tokenizer files, so no prompt can be made for it",
            try_="put tokenizer.json and tokenizer_config.json beside its weights",
        )
    return tokenizer


def _die_with_parent() -> None:
    # The descriptor, not sys.stdin: its lock, held by this thread, would abort the interpreter at its end.
    while os.read(0, 1):
        pass
    # Not an exit by exception: the main thread may sit in a forward for seconds. What is finished is on the disk.
    os._exit(1)


def _say(**facts: Any) -> None:
    sys.stdout.write(f"{REPORT_MARK}{json.dumps(facts)}\n")
    sys.stdout.flush()


def main() -> int:
    """The child's whole life."""
    out, number, how = sys.argv[1:]
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        num_too_long = work(
            Folder(Path(out)),
            int(number),
            How(**json.loads(how)),
            lambda rows, tokens: _say(rows=rows, tokens=tokens),
        )
    except SpecbenchError as error:
        _say(error=error.as_dict())
        return error.exit_code
    _say(too_long=num_too_long)
    return 0


if __name__ == "__main__":
    sys.exit(main())
