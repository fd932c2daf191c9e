"""Answers through vLLM, where it is installed and asked for: the same prompts' ids, the same stop ids, exact ids back.

Its sampler draws other noise than ours: texts at a temperature differ between the two backends, their law does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from specbench.data.rendering import Renderer
from specbench.data.responses import Ask, Response
from specbench.data.writing import response_of
from specbench.sampling import Sampling, sequence_key

_GROUP = 512
"""Prompts handed over at once: vLLM batches by itself, this is how often finished rows reach the disk."""


class VllmWriter:
    """One vLLM engine over the devices this process sees."""

    def __init__(
        self,
        folder: str,
        renderer: Renderer,
        *,
        sampling: Sampling,
        max_new_tokens: int,
        seed: int,
        dtype: str,
        num_devices: int,
        max_prompt: int,
        trust_remote_code: bool,
    ) -> None:
        """num_devices: tensor parallel size. vLLM is installed: `generate` has looked."""
        # Seconds, and it takes the devices: only here.
        vllm: Any = importlib.import_module("vllm")
        self._renderer = renderer
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._params: Any = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=folder,
            dtype=dtype,
            tensor_parallel_size=num_devices,
            max_model_len=max_prompt + max_new_tokens,
            trust_remote_code=trust_remote_code,
            skip_tokenizer_init=True,
        )

    def groups(self, asks: Sequence[Ask]) -> list[list[Ask]]:
        """As many as it takes to keep it busy."""
        return [list(asks[at : at + _GROUP]) for at in range(0, len(asks), _GROUP)]

    def write(self, asks: Sequence[Ask]) -> list[Response]:
        """One group."""
        sampling = self._sampling
        params = [
            self._params(
                temperature=sampling.temperature,
                top_k=sampling.top_k or -1,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=self._max_new_tokens,
                seed=sequence_key(seed=self._seed, question_id=ask.prompt.prompt_id, turn=0),
                stop_token_ids=sorted(self._renderer.stop_ids),
                detokenize=False,
            )
            for ask in asks
        ]
        outputs = self._llm.generate([{"prompt_token_ids": list(ask.ids)} for ask in asks], params)
        return [self._response(ask, output.outputs[0]) for ask, output in zip(asks, outputs, strict=True)]

    def _response(self, ask: Ask, output: Any) -> Response:
        ids = list(output.token_ids)
        stopped = output.finish_reason == "stop"
        # The stop id is among the ids of some versions and only in stop_reason in others; it is learnt either way.
        if stopped and not (ids and ids[-1] in self._renderer.stop_ids) and isinstance(output.stop_reason, int):
            ids.append(output.stop_reason)
        return response_of(
            ask,
            ids,
            "stop_id" if stopped else "length",
            tokenizer=self._renderer.tokenizer,
            rendering=self._renderer.key,
        )
