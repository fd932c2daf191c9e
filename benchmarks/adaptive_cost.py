"""What observing costs adaptive_lora: the same answers with observing on and off, interleaved, nothing learnt.

    python benchmarks/adaptive_cost.py --target T --draft D --suite gsm8k --limit 20 --rounds 3

CPU seconds of the process, so that a busy machine disturbs little; `settle` is what `gather` takes between answers. The
two kinds of answers must accept the same drafts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from specbench import registry, suite
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.load import load_lm
from specbench.lm.stops import stop_ids_of
from specbench.method import Request
from specbench.metrics import Bootstrap, percentile_interval
from specbench.sampling import Sampling, sequence_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--suite", default="gsm8k")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_lm(arguments.target, device=torch.device("cpu"), dtype=torch.float32)
    questions = suite.load_suite(arguments.suite, data_dirs=arguments.data).limited(arguments.limit, seed=0).questions
    requests = [
        Request(
            key=sequence_key(seed=0, question_id=question.question_id, turn=0),
            prompt=tuple(suite.render(lm.tokenizer, [{"role": "user", "content": question.turns[0]}], "chat")),
            max_new_tokens=arguments.max_new_tokens,
        )
        for question in questions
    ]
    longest = max(len(request.prompt) for request in requests) + arguments.max_new_tokens
    engine = Engine(lm, sampling=Sampling(), max_len=longest, max_nodes=4, stop=Stop(ids=frozenset(stop_ids_of(lm))))
    card, build = registry.card("adaptive_lora"), registry.load("adaptive_lora")
    drafters = [
        build(registry.check_options(card, {"model": arguments.draft, "adapt": adapt}), engine.view())
        for adapt in (False, True)
    ]
    learns = drafters[1].adaptation
    assert learns is not None
    for drafter in drafters:
        engine.generate(drafter, requests[:1])
    learns.gather()
    seconds_UK = np.zeros((len(requests), 3))  # off, on, settle
    num_steps = 0
    for turn in range(arguments.rounds):
        for place, request in enumerate(requests):
            found = {}
            for column in (0, 1) if (turn + place) % 2 else (1, 0):
                began = time.process_time()
                [found[column]] = engine.generate(drafters[column], [request]).generations
                seconds_UK[place, column] += time.process_time() - began
            began = time.process_time()
            learns.gather()
            # The same prompt comes again in the next round: its contexts must be new to it.
            learns.domain("").memory.contexts.clear()
            seconds_UK[place, 2] += time.process_time() - began
            assert [s.num_accepted for s in found[0].steps] == [s.num_accepted for s in found[1].steps]
            num_steps += len(found[0].steps)
    sums = Bootstrap(len(requests), seed=0).sums(seconds_UK)
    off, on, settle = seconds_UK.sum(0)
    inside = percentile_interval(sums[:, 1] / sums[:, 0] - 1, len(requests))
    both = percentile_interval((sums[:, 1] + sums[:, 2]) / sums[:, 0] - 1, len(requests))
    assert inside is not None and both is not None
    print(f"{len(requests)} questions, {arguments.rounds} rounds, {num_steps} steps, CPU seconds {off:.1f} without")
    print(f"in the step        {on / off - 1:+.2%} [{inside.low:+.2%}, {inside.high:+.2%}]")
    print(f"with the settling  {(on + settle) / off - 1:+.2%} [{both.low:+.2%}, {both.high:+.2%}]")


if __name__ == "__main__":
    main()
