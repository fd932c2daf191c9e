"""(a) Our engine against transformers' generate: plain (dynamic and static cache), assisted, prompt lookup; same
everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from specbench import registry
from specbench.api import load
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.load import resolve_folder
from specbench.lm.stops import stop_ids_of
from specbench.method import Request
from specbench.sampling import Sampling


def main() -> None:
    made = common.parser(__doc__ or "")
    made.add_argument("--num-tokens", type=int, default=4, help="K of the draft model, ours and theirs")
    made.add_argument("--lookup-tokens", type=int, default=10)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.target)
    stops = stop_ids_of(lm)
    texts = common.prompts(lm, args)
    longest = max(len(prompt) for prompt in texts) + args.max_new_tokens
    engine = Engine(lm, sampling=Sampling(), max_len=longest, stop=Stop(ids=stops))
    target = AutoModelForCausalLM.from_pretrained(resolve_folder(args.target), dtype=lm.dtype)
    draft = AutoModelForCausalLM.from_pretrained(resolve_folder(args.draft), dtype=lm.dtype)
    counted: dict[str, int] = {}

    def ours(method: str, **options: Any) -> Callable[[], float]:
        card = registry.card(method)
        drafter = registry.load(method)(registry.check_options(card, options), engine.view())
        engine.reserve(drafter.max_nodes)

        def run() -> float:
            num_tokens, start = 0, time.perf_counter()
            for index, prompt in enumerate(texts):
                request = Request(key=index, prompt=prompt, max_new_tokens=args.max_new_tokens)
                num_tokens += len(engine.generate(drafter, [request]).generations[0].tokens)
            counted[f"specbench {method}"] = num_tokens
            return num_tokens / (time.perf_counter() - start)

        return run

    def theirs(name: str, model: PreTrainedModel, **options: Any) -> Callable[[], float]:
        def run() -> float:
            num_tokens, start = 0, time.perf_counter()
            for prompt in texts:
                ids = torch.tensor([prompt])
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=args.max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(stops),
                    pad_token_id=0,
                    **options,
                )
                num_tokens += out.shape[1] - len(prompt)
            counted[name] = num_tokens
            return num_tokens / (time.perf_counter() - start)

        return run

    # transformers tunes the assistant's K by itself unless told not to; the comparison is at the same K.
    draft.generation_config.num_assistant_tokens = args.num_tokens
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    sides = {
        "specbench autoregressive": ours("autoregressive"),
        "transformers dynamic": theirs("transformers dynamic", target),
        "transformers static": theirs("transformers static", target, cache_implementation="static"),
        "specbench draft_model": ours("draft_model", model=args.draft, num_tokens=args.num_tokens),
        "transformers assisted": theirs("transformers assisted", target, assistant_model=draft),
        "specbench prompt_lookup": ours("prompt_lookup", num_tokens=args.lookup_tokens),
        "transformers prompt lookup": theirs(
            "transformers prompt lookup", target, prompt_lookup_num_tokens=args.lookup_tokens
        ),
    }
    rates = common.interleave(sides, rounds=args.rounds)
    against = {
        "specbench autoregressive": "transformers dynamic",
        "specbench draft_model": "transformers assisted",
        "specbench prompt_lookup": "transformers prompt lookup",
    }
    rows = []
    for name, values in rates.items():
        peer = against.get(name, "")
        if name == "specbench autoregressive":
            static = common.statistics.median(rates["transformers static"])
            peer = "transformers static" if static > common.statistics.median(rates[peer]) else peer
        rows.append(
            [
                name,
                common.spread(values),
                counted[name],
                f"{common.ratio(values, rates[peer])} x {peer}" if peer else "",
            ]
        )
    common.write(
        "peers",
        args,
        ["side", "tokens/s", "tokens", "against"],
        rows,
        target=f"{args.target.rstrip('/').rsplit('/', 1)[-1]} ({lm.num_parameters():,} parameters)",
        draft=args.draft.rstrip("/").rsplit("/", 1)[-1],
        K=args.num_tokens,
        lookup_tokens=args.lookup_tokens,
        prompts=f"{len(texts)} of {args.suite}",
        max_new_tokens=args.max_new_tokens,
        rounds=args.rounds,
        dtype=str(lm.dtype),
    )


if __name__ == "__main__":
    main()
